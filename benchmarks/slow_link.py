"""Runs ranks of MPI over one slow link, which is emulated on one machine.

The loopback device of a separate network namespace lets only so many bits pass in a
second, and all ranks share it. This needs Linux, `unshare`, `ip` and `tc` (Debian:
util-linux, iproute2), and root.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from typing import Any

from djax import communicators

# Ticks of the kernel's clock in a second. The token bucket has to hold at least the
# bytes that pass between two ticks.
TICKS = 250
LARGEST_PACKET = 1 << 16  # Bytes of a packet on the loopback device.
COMMUNICATION = {
    "MPIR_CVAR_NOLOCAL": "1",  # Messages are not passed through shared memory.
    "MPIR_CVAR_CH4_NETMOD": "ofi",
    "FI_PROVIDER": "tcp",
    "FI_TCP_IFACE": "lo",
    "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",  # There may be more ranks than cores.
}


def run_behind(megabits: int, ranks: int, *module: str, **environment: str) -> None:
    """Runs a module of Python on ranks that share one slow link.

    Args:
      megabits: bandwidth of the link, in Mbit/s.
      ranks: number of ranks.
      *module: the module and its arguments.
      **environment: variables of the ranks.
    """
    burst = max(2 * LARGEST_PACKET, 1_200_000 * megabits // 8 // TICKS)
    script = (
        "ip link set lo up && tc qdisc add dev lo root tbf "
        f'rate {megabits}mbit burst {burst} latency 200ms && exec "$@"'
    )
    command = ["unshare", "-n", "sh", "-c", script, "sh", "mpirun"]
    command += ["-launcher", "fork", "-hosts", "localhost"]
    command += ["-n", str(ranks), sys.executable, "-m", *module]
    root = pathlib.Path(__file__).parent.parent
    environment = {**os.environ, **COMMUNICATION, **environment}
    subprocess.run(command, cwd=root, env=environment, check=True)


def is_done(name: str, config: Any, measure: Callable[[Any], Any]) -> bool:
    """Does what a rank has to do, or says why nothing can be done on this machine.

    Args:
      name: the name of the script.
      config: the options of the command line; a rank has a file to measure into.
      measure: makes the records of a rank.

    Returns:
      Whether the script is done; otherwise it has to start ranks.
    """
    if config.measure_into is not None:
        records = measure(config)
        if communicators.launcher_rank() == 0:
            config.measure_into.write_text(json.dumps(records))
        return True
    if (reason := _obstacle(name)) is not None:
        print(f"{name}: skipped: {reason}")
    return reason is not None


def _obstacle(name: str) -> str | None:
    """Says why the network cannot be slowed down on this machine, or nothing."""
    missing = [name for name in ("unshare", "ip", "tc") if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}; Debian has them in util-linux, iproute2."
    if os.geteuid() != 0:
        return f'needs root: sudo env "PATH=$PATH" python -m benchmarks.{name}.'
    if subprocess.run(["unshare", "-n", "true"], capture_output=True).returncode:
        return "may not make a network namespace here."
    return None
