"""Lets a process leave an MPI job in bounded time.

The end of MPI (`MPI_Finalize`) waits for all ranks, and a receiver of a message waits
for its sender. If a rank left early, by an error or not, the others would wait for it
for ever. So each rank tells all others when its program has ended. A rank that then
still waits for this rank ends the job. No rank enters the end of MPI before the
programs of all ranks have ended.

This file is longer than others, since what a rank does while its program runs and what
it does afterwards are two halves of one conversation, which has to be read as a whole.
"""

import atexit
import contextlib
import math
import os
import stat
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any

import jax

from ._exit_code import ExitCode, main_frame
from ._standing import Standstill
from ._start import seconds_of, watch
from ._watch import name, say

EXIT_TIMEOUT = "DJAX_EXIT_TIMEOUT", 60.0
"""Environment variable, and its default: seconds in which a rank has to make progress
after another rank has ended."""
GUARD = "DJAX_GUARD_PIPE"
"""Environment variable: the number of a pipe into which :mod:`djax.guard` writes when
another rank has died. If the variable is set, ranks do not end each other."""

_POLL = 1.0  # Seconds between two polls for messages while the program runs.
_QUICK_POLL = 0.01  # Seconds between two polls when the program has ended.
_ALIVE, _ENDED, _LEFT = range(3)  # Tags of MPI messages.
_AFTER_A_DEATH = 5.0  # Seconds in which ranks must give a sign of life after a death.
_FIRST_WORD = 1.0  # Seconds in which others may exit before a failed rank ends them.
_LAST_WORDS = 0.5  # Seconds that the launcher gets to pass output on.


def end_now(reason: str, code: int, world: Any = None) -> None:
    """Writes a reason to stderr, and ends this process, whatever its threads do.

    Args:
      reason: one or several lines.
      code: the exit code.
      world: an MPI communicator, all ranks of which are ended; by default none.
    """
    say(reason)
    _flush()
    time.sleep(_LAST_WORDS)
    if world is not None:
        world.Abort(code)
    os._exit(code)


def end_on_exceptions(world: Any) -> None:
    """Makes an uncaught exception on one rank end all ranks.

    Otherwise the other ranks would wait for this rank for ever. If all ranks raise the
    same exception, it is mostly reported once, since the others let rank 0 report
    first. A second call does nothing.

    Args:
      world: `mpi4py.MPI.COMM_WORLD`.
    """
    if world.size > 1 and not isinstance(sys.excepthook, _Excepthook):
        sys.excepthook = _Excepthook(f"rank {world.rank} of {world.size}", world)


def end_together(world: Any) -> None:
    """Makes this process end together with all others of its job, however it ends.

    All ranks have to call this function. If one rank exits with a code other than 0,
    all ranks are ended at once. If MPI does not allow several threads to communicate,
    nothing but this is done. A second call does nothing.

    Args:
      world: `mpi4py.MPI.COMM_WORLD`.
    """
    global _end
    if _end is None:
        _end = _End(world)


def before_the_end(finish: Callable[[float], bool]) -> None:
    """Registers work of another thread that has to be done before MPI ends.

    When the programs of all ranks have ended, each rank waits for such work, as it may
    exchange messages with other ranks. If it is not done in time, all ranks end.

    Args:
      finish: waits for the work at most for some seconds, and returns whether it is
        done.
    """
    if _end is not None:
        _end.unfinished.append(finish)


def leave_alone(rank: int) -> None:
    """Lets this process end without waiting for other ranks, since some are lost.

    After an uncaught exception the process ends with exit code 1.

    Args:
      rank: rank of this worker, which the report of an exception names.
    """
    sys.excepthook = _Excepthook(f"rank {rank}", None)
    if _end is not None:
        _end.alone = True


class _Excepthook:
    """Reports an uncaught exception, and ends all ranks of `world`, if it is given."""

    def __init__(self, name: str, world: Any):
        self._name, self._world = name, world

    def __call__(self, *exception):
        if self._world is not None and self._world.rank:
            time.sleep(1.0)
        text = "".join(traceback.format_exception(*exception)).rstrip("\n")
        text = f"{self._name} failed:\n{text}"
        if self._world is not None:
            end_now(text, 1, self._world)
        say(text)
        if _end is not None:
            _end.failed = True


class _End:
    """Tells other ranks when this process's program ends, and listens for their ends.

    Args:
      world: an MPI communicator of all ranks.

    Attributes:
      alone: whether this process ends without the others.
      failed: whether a process that ends without the others ends by an exception.
      unfinished: see :func:`before_the_end`.
    """

    def __init__(self, world: Any):
        """Starts the thread that listens."""
        from mpi4py import MPI

        self.alone = self.failed = False
        self.unfinished: list[Callable[[float], bool]] = []
        self._name = f"rank {world.rank} of {world.size}"
        self._mpi, self._world = MPI, world
        self._limit = seconds_of(EXIT_TIMEOUT)
        self._threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._comm = world.Dup()  # No other messages are on it.
        self._process, self._code = os.getpid(), ExitCode()
        self._others = set(range(world.size)) - {world.rank}
        self._ended: set[int] = set()
        self._heard = dict.fromkeys(self._others, time.monotonic())
        self._sent: list[Any] = []
        self._guard = _guard()
        self._death = False  # Whether the guard has reported another rank's death.
        self._apart = False  # Whether another rank ends without waiting for others.
        self._standstill = Standstill()
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=self._listen, name="djax end", daemon=True
        )
        if self._threads:
            self._thread.start()
        atexit.register(self._leave)

    # Methods that run beside the program, in a thread that sleeps most of the time.

    def _listen(self) -> None:
        """Ends the job if this rank waits for a rank that has ended or died."""
        told = 0.0
        while not self._over.wait(_POLL):
            self._hear()
            if not self._ended and not self._death:
                continue
            now = time.monotonic()
            if (seconds := self._standstill.seconds()) > self._limit:
                self._give_up(seconds)
            if now - told > min(self._limit, 10) / 4:
                told = now
                for rank in self._ended:
                    self._say(rank, _ALIVE)

    def _hear(self) -> None:
        """Reads the messages of the other ranks, and of the guard."""
        status = self._mpi.Status()
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, self._mpi.ANY_TAG, status):
            sender, tag = status.Get_source(), status.Get_tag()
            self._comm.Recv([bytearray(1), self._mpi.BYTE], sender, tag)
            self._heard[sender] = time.monotonic()
            if tag != _ALIVE:
                self._ended.add(sender)
            self._apart |= tag == _LEFT
        self._sent = [request for request in self._sent if not request.Test()]
        if self._guard is not None and not self._death:
            with contextlib.suppress(BlockingIOError):
                self._death = bool(os.read(self._guard, 1))

    def _say(self, rank: int, tag: int) -> None:
        self._sent.append(self._comm.Isend([b"!", self._mpi.BYTE], rank, tag))

    def _give_up(self, seconds: float) -> None:
        """Ends this rank and all others, since it would wait for ever."""
        gone = "another rank has died"
        if self._ended:
            gone = f"{name(self._ended)} ended before"
        frame, place = main_frame(), "its end"
        if frame is not None:
            code = frame.f_code
            place = f"{code.co_filename}:{frame.f_lineno}, in {code.co_name},"
        self._stop(
            f"{self._name} stands at {place} for {seconds:.0f} s, and {gone}: it ends. "
            "All ranks have to communicate equally often.",
            1,
        )

    def _stop(self, reason: str, code: int) -> None:
        """Ends this process and, unless guards keep them alive, all other ranks."""
        end_now(reason, code, None if self._guard is not None else self._world)

    # Methods that run after the program has ended.

    def _leave(self) -> None:
        """Waits until the programs of all ranks have ended, so that MPI can end.

        This does nothing in a forked process, or if the program itself has ended MPI.
        """
        if os.getpid() != self._process or self._mpi.Is_finalized():
            return
        code = 1 if self.failed else self._code()
        if not self._threads:
            return self._end_all(code) if code else None
        if not self.alone:
            jax.effects_barrier()  # Compiled programs may still be sending messages.
        self._over.set()
        self._thread.join()
        for rank in self._others:
            self._say(rank, _LEFT if self.alone else _ENDED)
        if not self.alone:
            # Ranks with guards continue without a rank that has failed.
            if code and self._guard is None and self._silent(_FIRST_WORD):
                self._end_all(code)
            self._wait()
            self._finish(code)
        if self.alone or self._apart or self._death:  # MPI's end would wait for ever.
            _flush()
            os._exit(code)
        watch("ending MPI", self._limit)

    def _end_all(self, code: int) -> None:
        reason = f"{self._name} ended with exit code {code}: all ranks end."
        end_now(reason, code, self._world)

    def _wait(self) -> None:
        """Waits for all other ranks; ends the job if some of them have died."""
        if silent := self._silent(math.inf):
            has = "have" if len(silent) > 1 else "has"
            self._stop(
                f"{self._name} has ended; {name(silent)} {has} given no sign of "
                f"life since, for {self._patience:.0f} s: it does not wait.",
                0 if self._guard is not None else 1,
            )

    def _finish(self, code: int) -> None:
        """Waits for what :func:`before_the_end` was given."""
        for finish in self.unfinished:
            # After a failure, nobody needs the result, and others may have failed, too.
            if not finish(_FIRST_WORD if code else self._limit):
                self._stop(
                    f"{self._name} has ended, and so have all others, but an exchange "
                    "that it has started does not end: it does not wait. All ranks "
                    "have to communicate equally often.",
                    code or 1,
                )

    @property
    def _patience(self) -> float:
        return min(self._limit, _AFTER_A_DEATH) if self._death else self._limit

    def _silent(self, seconds: float) -> set[int]:
        """Waits until all other ranks have ended.

        Args:
          seconds: the longest time to wait.

        Returns:
          The ranks that give no sign of life, or, when the time is over, those that
          have not ended.
        """
        start = time.monotonic()
        while True:
            self._hear()
            if not (left := self._others - self._ended) and not self._sent:
                return set()
            now = time.monotonic()
            if now - start > seconds:
                return left
            silent = {
                rank
                for rank in left
                if now - max(start, self._heard[rank]) > self._patience
            }
            if silent:
                return silent
            time.sleep(_QUICK_POLL)


_end: _End | None = None


def _guard() -> int | None:
    """Returns the open file that :data:`GUARD` names, if this process has a guard."""
    with contextlib.suppress(KeyError, OSError, ValueError):
        file = int(os.environ[GUARD])
        if stat.S_ISFIFO(os.fstat(file).st_mode):
            os.set_blocking(file, False)
            return file
    return None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
