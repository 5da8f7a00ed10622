"""Mistakes that the person at the command line can mend."""

import contextlib
import difflib
import io
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator

from djax import communicators
from djax.transport import start_mpi

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

    For command-line parsers, which print and exit by themselves. What rank 0 does not
    find, the rank that has found it says.
    """
    said = io.StringIO()
    try:
        if communicators.launcher_rank() == 0:
            with readers_may_leave():
                yield
        else:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                yield
    except SystemExit as stop:
        exit_together(stop.code, said.getvalue().strip())


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """Ends the process quietly when nobody reads its output any more, as in `| head`.

    The exit code is the one of a program that the system ends for this.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # What is still in the buffer would fail again at the end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


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
    if not all_come(patience):
        if rank != 0:
            print(f"rank {rank}: {message}", file=sys.stderr, flush=True)
        _abort()
    sys.exit(code)


def all_come(patience: float) -> bool:
    """Returns whether all ranks come here within `patience` seconds; waits for them."""
    if (communicators.launcher_size() or 1) == 1:
        return True
    try:
        world = start_mpi().COMM_WORLD
    except ImportError:  # The mistake that all have to hear of.
        return True
    arrived, deadline = world.Ibarrier(), time.monotonic() + patience
    while not arrived.Test():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True


def _abort() -> None:
    time.sleep(0.5)  # The launcher drops what it has not passed on by the end.
    start_mpi().COMM_WORLD.Abort(USAGE_EXIT_CODE)
