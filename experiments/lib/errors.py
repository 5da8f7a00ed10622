"""Reports mistakes that the user of the command line can correct."""

import contextlib
import difflib
import io
import itertools
import os
import signal
import sys
import time
from collections.abc import Iterable, Iterator

import jax

from djax import communicators
from djax.transport import process_number, processes_come, start_mpi

USAGE_EXIT_CODE, PATIENCE = 2, 10.0
_MEETINGS = itertools.count()


class UsageError(Exception):
    """A mistake of the user that all processes find, and that one line explains."""


def lookup(kind: str, name: str, choices: Iterable[str]) -> str:
    """Returns `name` if it is a choice, else raises UsageError with suggestions.

    If a choice contains a comma or is empty, all are quoted, so that the list can be
    read.
    """
    choices = sorted(choices)
    if name not in choices:
        plain = all(choice and "," not in choice for choice in choices)
        shown = {choice: choice if plain else repr(choice) for choice in choices}
        near = difflib.get_close_matches(name, choices, 1)
        meant = f" Did you mean {shown[near[0]]}?" if near else ""
        raise UsageError(
            f"unknown {kind} {name!r}; choose from {', '.join(shown.values())}.{meant}"
        )
    return name


@contextlib.contextmanager
def one_line_errors(*kinds: type[Exception]) -> Iterator[None]:
    """Ends all processes with one line on stderr if a mistake is found.

    If all ranks find the mistake, rank 0 prints the line; otherwise the ranks that find
    it do. Under `python -X dev` the traceback is shown instead.
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
    """Silences all ranks but rank 0 while a command line is parsed.

    Parsers print and exit by themselves, so every rank would print the same text. If
    only other ranks find a mistake, they print it. All ranks exit together.
    """
    said = io.StringIO()
    try:
        if process_number() == 0:
            with readers_may_leave():
                yield
        else:
            with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
                yield
    except SystemExit as stop:
        exit_together(stop.code, said.getvalue().strip())


@contextlib.contextmanager
def readers_may_leave() -> Iterator[None]:
    """Ends the process quietly if the reader of its output has gone, as with `| head`.

    The exit code is that of a program which the system ends for this reason.
    """
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # Writing the rest of the buffer at the exit would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(128 + signal.SIGPIPE)


def exit_together(code: int | str | None, message: str = "") -> None:
    """Exits once all ranks have called this, or ends them after `PATIENCE` seconds.

    Ranks wait for each other because a launcher kills all ranks as soon as one has
    failed, possibly before rank 0 has printed the reason. Rank 0 prints the message on
    stderr if all ranks call this; otherwise the ranks that do print it.
    """
    rank = process_number()
    if rank == 0 and message:
        print(message, file=sys.stderr, flush=True)
    if not all_come(PATIENCE):
        if rank != 0:
            print(f"rank {rank}: {message}", file=sys.stderr, flush=True)
        time.sleep(0.5)  # The launcher drops output that has not reached it by the end.
        if not jax.distributed.is_initialized():  # Those processes end together anyway.
            start_mpi().COMM_WORLD.Abort(USAGE_EXIT_CODE)
    sys.exit(code)


def all_come(patience: float) -> bool:
    """Waits for all ranks, and tells whether they come within `patience` seconds."""
    if jax.distributed.is_initialized():
        return processes_come(f"meeting {next(_MEETINGS)}", patience)
    if (communicators.launcher_size() or 1) == 1:
        return True
    try:
        world = start_mpi().COMM_WORLD
    except ImportError:  # MPI is missing on all ranks, so all find the same mistake.
        return True
    arrived, deadline = world.Ibarrier(), time.monotonic() + patience
    while not arrived.Test():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)
    return True
