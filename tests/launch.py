"""Starts programs under mpirun, so that plain `pytest` covers MPI too."""

import os
import pathlib
import shutil
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


def mpirun(
    ranks: int,
    *command: str,
    options: Sequence[str] = (),
    timeout: float = 300,
    **environment: str,
) -> subprocess.CompletedProcess[str]:
    """Runs a Python command on several ranks; a hang is an error."""
    launcher = shutil.which("mpirun", path=pathlib.Path(sys.executable).parent)
    launcher = launcher or shutil.which("mpirun")
    assert launcher, "no mpirun: install the dependency group `dev`"
    start = (launcher, *options, "-n", str(ranks), sys.executable)
    return run(*start, *command, timeout=timeout, **environment)


def python(*command: str, timeout: float = 300) -> subprocess.CompletedProcess[str]:
    """Runs a Python command."""
    return run(sys.executable, *command, timeout=timeout)


def run(
    *command: str, timeout: float, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs a command in the repository's root, with one CPU device a process."""
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", **environment}
    environment["XLA_FLAGS"] = QUICK_COMPILATION
    # Ranks outnumber cores: while one waits, MPICH lets the others compute.
    environment["MPIR_CVAR_ENABLE_HEAVY_YIELD"] = "1"
    environment.pop("PYTHONDONTWRITEBYTECODE", None)  # All but the first start faster.
    return subprocess.run(
        command,
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=timeout,
    )
