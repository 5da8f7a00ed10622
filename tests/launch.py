"""Starts programs, also under mpirun, so that plain `pytest` covers MPI too."""

import atexit
import functools
import os
import pathlib
import shutil
import socket
import subprocess
import sys
from collections.abc import Sequence

ROOT = pathlib.Path(__file__).parent.parent
QUICK_COMPILATION = (
    "--xla_backend_optimization_level=0 --xla_cpu_use_fusion_emitters=false"
    " --xla_cpu_parallel_codegen_split_count=1"
)
"""Flags with which XLA compiles in a third of its time; tests run a program once."""
GUARD = str(ROOT / "djax" / "guard.py")
"""What `-m djax.guard` runs in the end; by its path it starts without JAX."""
FORK_SERVER = str(ROOT / "tests" / "fork_server.py")


def mpirun(
    ranks: int,
    *command: str,
    guarded: bool = False,
    fresh: bool = False,
    options: Sequence[str] = (),
    timeout: float = 300,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a Python command on several ranks; a hang is an error.

    Args:
      ranks: how many processes.
      command: what follows `python` on a command line.
      guarded: whether other ranks live on when one is killed.
      fresh: whether each rank is a new process, where its start or its end is what is
        tested, or what it learns from its launcher. Other ranks are copies of a process
        that has imported djax already, unless a variable of JAX is given.
      options: of mpirun.
      timeout: seconds after which it is a hang.
      environment: variables of the ranks.
    """
    launcher = shutil.which("mpirun", path=pathlib.Path(sys.executable).parent)
    launcher = launcher or shutil.which("mpirun")
    assert launcher, "no mpirun: install the dependency group `dev`"
    start = [launcher, *options, "-n", str(ranks), sys.executable]
    if guarded:
        start[1:1] = ["-disable-auto-cleanup"]
        start += [GUARD]
    if not (fresh or any(name.startswith("JAX_") for name in environment)):
        start += by_copies()
    return run(*start, *command, timeout=timeout, **environment)


def python(*command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a Python command in a copy of a process that has imported djax."""
    return run(sys.executable, *by_copies(), *command, timeout=timeout)


def processes(
    count: int,
    *command: str,
    devices: int = 1,
    timeout: float = 200,
    **environment: str,
) -> list[subprocess.CompletedProcess[str]]:
    """Runs a Python command in several processes that JAX connects, without MPI.

    Args:
      count: how many processes.
      command: what follows `python` on a command line.
      devices: of each process.
      timeout: seconds after which it is a hang.
      environment: variables of the processes.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    flags = f"--xla_force_host_platform_device_count={devices} {QUICK_COMPILATION}"
    job = {
        "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
        "JAX_NUM_PROCESSES": str(count),
        "XLA_FLAGS": flags,
    }
    running = [
        subprocess.Popen(
            [sys.executable, *command],
            cwd=ROOT,
            env=variables() | job | {"JAX_PROCESS_ID": str(number)} | environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(count)
    ]
    try:
        said = [process.communicate(timeout=timeout) for process in running]
    finally:
        for process in running:
            process.kill()
    return [
        subprocess.CompletedProcess(process.args, process.returncode, *texts)
        for process, texts in zip(running, said, strict=True)
    ]


def run(
    *command: str, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository's root, with one CPU device a process."""
    return subprocess.run(
        command,
        cwd=ROOT,
        env=variables() | environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )


def variables() -> dict[str, str]:
    """The environment of what tests start."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu"}
    environment["XLA_FLAGS"] = QUICK_COMPILATION
    # Ranks outnumber cores: while one waits, MPICH lets the others compute.
    environment["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # Later starts find bytecode.
    return environment


def by_copies() -> list[str]:
    """What comes between `python` and a command that a copy of the server is to run."""
    if sys.platform != "linux":  # The server needs what only Linux has.
        return []
    address = f"djax-tests-{os.getpid()}"
    start_server(address)
    return ["-I", "-S", FORK_SERVER, "ask", address]


@functools.cache
def start_server(address: str) -> subprocess.Popen:
    """Starts the server of `fork_server.py`, which ends with this process."""
    server = subprocess.Popen(
        [sys.executable, FORK_SERVER, "serve", address],
        cwd=ROOT,
        env=variables() | {"PYTHONPATH": str(ROOT)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        start_new_session=True,  # Ctrl-C is for the tests, which then end the server.
    )
    assert server.stdin and server.stdout
    assert server.stdout.readline(), "the server that forks ranks has not started"
    atexit.register(server.wait)
    atexit.register(server.stdin.close)
    return server
