"""Mistakes that the person at the command line can mend."""

import contextlib
import difflib
import os
import sys
import time
from collections.abc import Iterable, Iterator

from djax import communicators

USAGE_EXIT_CODE = 2


class UsageError(Exception):
    """A mistake that every process sees, and that one line explains."""


def lookup(kind: str, name: str, choices: Iterable[str]) -> str:
    """Returns `name`, or raises UsageError with the choices, the likeliest apart."""
    choices = sorted(choices)
    if name not in choices:
        near = difflib.get_close_matches(name, choices, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(
            f"unknown {kind} {name!r}; choose from {', '.join(choices)}.{meant}"
        )
    return name


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends all processes with one line on stderr where a mistake is found.

    Rank 0 says what all ranks find; what a single rank finds, it says itself. Under
    `python -X dev` the traceback is shown instead.

    Args:
      *kinds: the exceptions that speak of mistakes.
    """
    try:
        yield
    except kinds as error:
        if sys.flags.dev_mode:
            raise
        text = str(error).strip().splitlines() or [type(error).__name__]
        exit_together(USAGE_EXIT_CODE, f"error: {text[0]}")


@contextlib.contextmanager
def heard_once() -> Iterator[None]:
    """Silences all ranks but the first, and lets them exit together.

    For command-line parsers, which print and exit by themselves.
    """
    try:
        if communicators.launcher_rank() == 0:
            yield
        else:
            with (
                open(os.devnull, "w") as nowhere,
                contextlib.redirect_stdout(nowhere),
                contextlib.redirect_stderr(nowhere),
            ):
                yield
    except SystemExit as stop:
        sys.stdout.flush()
        exit_together(stop.code)


def exit_together(
    code: int | str | None, message: str = "", patience: float = 10.0
) -> None:
    """Exits when every rank has come here, or ends them all after `patience` seconds.

    A launcher kills the others as soon as one rank has failed, possibly before rank 0
    has said why.

    Args:
      code: exit code.
      message: for stderr; said by rank 0 if all ranks come here, else by those who do.
      patience: how long to wait for the others.
    """
    rank = communicators.launcher_rank()
    if rank == 0 and message:
        print(message, file=sys.stderr, flush=True)
    if (communicators.launcher_size() or 1) > 1 and not _all_come(patience):
        if rank != 0:
            print(f"rank {rank}: {message}", file=sys.stderr, flush=True)
        _abort()
    sys.exit(code)


def _all_come(patience: float) -> bool:
    """Whether every rank comes here within `patience` seconds."""
    try:
        from mpi4py import MPI
    except ImportError:  # The mistake that all have to hear of.
        return True
    arrived, deadline = MPI.COMM_WORLD.Ibarrier(), time.monotonic() + patience
    while not arrived.Test():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _abort() -> None:
    from mpi4py import MPI

    time.sleep(0.5)  # The launcher drops what it has not passed on by the end.
    MPI.COMM_WORLD.Abort(USAGE_EXIT_CODE)
