"""One contestant of a race, in a process of its own.

    python -m benchmarks.races.contestant SIDE FUNCTION PROBLEM RESULT

This program imports nothing but NumPy and the library of its side, so that its start
and its memory are those of a user's program. It runs the race once and writes the
result. After that it runs the race again for each line on its standard input. To each
run it answers with a line on its standard output, and at the end of the input with the
largest memory that it has occupied.

Args:
  SIDE: the library; the module `benchmarks.races.in_SIDE` is its part of the races.
  FUNCTION: the function of this module that prepares the race.
  PROBLEM: file of arrays, the arguments of the function.
  RESULT: file to which the result of the first run is written.
"""

import importlib
import os
import pathlib
import sys
import time
from collections.abc import Iterator
from typing import Any

import numpy as np


def main(side: str, function: str, problem: str, result: str) -> None:
    """Runs the race once, and again whenever it is asked to."""
    contestants = importlib.import_module(f"benchmarks.races.in_{side}")
    with np.load(problem) as arrays:
        run = getattr(contestants, function)(**arrays)
    comm = _ranks()
    first = run()
    if comm is None or comm.rank == 0:
        np.save(result, first)
        print("ready", flush=True)
    for _ in sys.stdin if comm is None else _lines(comm):
        run()
        if comm is None or comm.rank == 0:
            print("done", flush=True)
    if comm is None or comm.rank == 0:
        print(_peak(), flush=True)


def _ranks() -> Any:
    """The communicator of all ranks if mpirun has started this process, or None."""
    if not {"PMI_RANK", "PMIX_RANK"} & os.environ.keys():
        return None
    from mpi4py import MPI

    return MPI.COMM_WORLD


def _lines(comm: Any) -> Iterator[str]:
    """Yields the lines of rank 0's standard input on all ranks.

    MPI waits by asking again and again, which would take a core from the other side.
    """
    while True:
        line = sys.stdin.readline() if comm.rank == 0 else None
        request = comm.Ibarrier()
        while not request.Test():
            time.sleep(1e-3)
        if not (line := comm.bcast(line)):
            return
        yield line


def _peak() -> int:
    """The largest memory of this process in kB.

    `ru_maxrss` would be at least the memory of the process that has started this one.
    """
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


if __name__ == "__main__":
    main(*sys.argv[1:])
