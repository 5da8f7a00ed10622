"""Mistakes that the person at the command line can mend."""

import contextlib
import os
import sys
import time
from collections.abc import Iterable, Iterator

from djax import communicators

USAGE_EXIT_CODE = 2


class UsageError(Exception):
    """A mistake that every process sees, and that one line explains."""


def lookup(kind: str, name: str, choices: Iterable[str]) -> str:
    """Returns `name`, or raises UsageError with the choices."""
    choices = sorted(choices)
    if name not in choices:
        raise UsageError(f"unknown {kind} {name!r}; choose from {', '.join(choices)}.")
    return name


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends all processes with one line on rank 0's stderr where a mistake is found.

    Args:
      *kinds: the exceptions that speak of mistakes, and that all ranks raise alike.
    """
    try:
        yield
    except kinds as error:
        if launcher_rank() == 0:
            print(f"error: {error}", file=sys.stderr, flush=True)
        exit_together(USAGE_EXIT_CODE)


@contextlib.contextmanager
def heard_once() -> Iterator[None]:
    """Silences all ranks but the first, and lets them exit together.

    For command-line parsers, which print and exit by themselves.
    """
    try:
        if launcher_rank() == 0:
            yield
        else:
            with open(os.devnull, "w") as nowhere:
                with contextlib.redirect_stdout(nowhere):
                    with contextlib.redirect_stderr(nowhere):
                        yield
    except SystemExit as stop:
        sys.stdout.flush()
        exit_together(stop.code)


def launcher_rank() -> int:
    """This process's rank, read from the launcher's environment; 0 without one."""
    if communicators.launcher_size() is None:
        return 0
    names = ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
    return next((int(os.environ[n]) for n in names if n in os.environ), 0)


def exit_together(code: int | str | None, patience: float = 10.0) -> None:
    """Exits when every rank has come here, or after `patience` seconds.

    A launcher kills the others as soon as one rank has failed, possibly before rank 0
    has said why.
    """
    if (communicators.launcher_size() or 1) > 1:
        with contextlib.suppress(ImportError):
            from mpi4py import MPI

            arrived, deadline = MPI.COMM_WORLD.Ibarrier(), time.monotonic() + patience
            while not arrived.Test():
                if time.monotonic() > deadline:  # The others saw no mistake.
                    MPI.COMM_WORLD.Abort(USAGE_EXIT_CODE)
                time.sleep(0.01)
    sys.exit(code)
