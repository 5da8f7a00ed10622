"""How a process leaves an MPI job, in bounded time.

MPI's end waits for every rank, and so does every message between ranks. A rank that
leaves early, with or without an exit code, would let the others wait for ever. So each
rank tells all others when its program has ended, and a rank that is still waiting for
one that has left ends the job. Nobody enters MPI's end before all have come to theirs.
"""

import atexit
import contextlib
import ctypes
import dis
import math
import os
import stat
import sys
import threading
import time
from types import FrameType
from typing import Any, NoReturn

import jax

from . import (
    _start,
    _watch,
)

EXIT_TIMEOUT = "DJAX_EXIT_TIMEOUT", 60.0
"""Environment variable, and default: seconds in which a rank has to show progress once
another has ended."""
GUARD = "DJAX_GUARD_PIPE"
"""Environment variable: a pipe into which :mod:`djax.guard` writes when another rank
has died. Where it is set, the ranks do not end each other."""

_POLL = 1.0  # Seconds between two looks while a program runs.
_QUICK_POLL = 0.01  # And when it has ended.
_ALIVE, _ENDED, _LEFT = range(3)  # Tags.
_AFTER_A_DEATH = 5.0  # Seconds in which a rank gives a sign once somebody has died.
_FIRST_WORD = 1.0  # Seconds that others have to exit, too, before one ends them.
_PENDING = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p)
_LAST_WORDS = 0.5  # The launcher drops what it has not passed on by the end.


def end_together(world: Any) -> None:
    """Makes this process end with all others of its job, whatever ends it.

    All ranks have to call it. An exit code other than 0 ends all of them at once. Needs
    an MPI in which several threads may communicate; without one only exit codes are
    heeded. A second call does nothing.

    Args:
      world: `mpi4py.MPI.COMM_WORLD`.
    """
    global _end
    if _end is None:
        _end = _End(world)


def leave_alone() -> None:
    """Lets this process end without waiting for others, some of which are lost."""
    if _end is not None:
        _end.alone = True


def fail_alone() -> None:
    """Lets this process, after :func:`leave_alone`, end with exit code 1."""
    if _end is not None:
        _end.failed = True


class _End:
    """Of this process's program, and what is heard of the others'.

    Args:
      world: all ranks.

    Attributes:
      alone: whether this process ends without the others.
      failed: whether it ends by an exception.
    """

    def __init__(self, world: Any):
        """Starts to listen."""
        from mpi4py import MPI

        self.alone = self.failed = False
        self._name = f"rank {world.rank} of {world.size}"
        self._mpi, self._world = MPI, world
        self._limit = _start.seconds_of(EXIT_TIMEOUT)
        self._threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
        self._comm = world.Dup()  # Nobody else's messages are on it.
        self._process = os.getpid()
        self._frame = frame = _main_frame()
        while frame is not None:
            self._frame, frame = frame, frame.f_back
        self._code, self._exit = None, sys.exit
        sys.exit = self._remember
        self._others = set(range(world.size)) - {world.rank}
        self._ended: set[int] = set()
        self._heard = dict.fromkeys(self._others, time.monotonic())
        self._sent: list[Any] = []
        self._guard = _guard()
        self._death = False  # Of another rank, as a guard has told.
        self._apart = False  # Whether another rank ends without the others.
        self._moved, self._asked = True, 0.0
        self._move = _PENDING(self._note_move)
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=self._listen, name="djax end", daemon=True
        )
        if self._threads:
            self._thread.start()
        atexit.register(self._leave)

    def _remember(self, status: Any = None, /) -> NoReturn:
        """Stands in for `sys.exit`: nothing else knows the code of an exit."""
        if threading.current_thread() is threading.main_thread():
            self._code = status
        self._exit(status)

    # While the program runs, in a thread that mostly sleeps.

    def _listen(self) -> None:
        """Ends the job if this rank waits for one that has ended or died."""
        told = 0.0
        while not self._over.wait(_POLL):
            self._hear()
            if not self._ended and not self._death:
                continue
            now = time.monotonic()
            if self._moved:
                # Runs in the main thread, between two steps of its Python program.
                self._moved, self._asked = False, now
                ctypes.pythonapi.Py_AddPendingCall(self._move, None)
            elif now - self._asked > self._limit:
                self._give_up(now - self._asked)
            if now - told > min(self._limit, 10) / 4:
                told = now
                for rank in self._ended:
                    self._say(rank, _ALIVE)

    def _note_move(self, _: Any) -> int:
        self._moved = True
        return 0

    def _hear(self) -> None:
        """Takes what others have said."""
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
        """Ends this rank, and all others, as it will never come to its end."""
        gone = "another rank has died"
        if self._ended:
            gone = f"{_watch.name(self._ended)} ended before"
        frame, place = _main_frame(), "its end"
        if frame is not None:
            code = frame.f_code
            place = f"{code.co_filename}:{frame.f_lineno}, in {code.co_name},"
        _watch.say(
            f"{self._name} stands at {place} for {seconds:.0f} s, and {gone}: it ends. "
            "All ranks have to communicate equally often."
        )
        self._stop(1)

    def _stop(self, code: int) -> None:
        """Ends this process; all ranks, where they are not guarded."""
        _flush()
        time.sleep(_LAST_WORDS)
        if self._guard is not None:
            os._exit(code)
        self._world.Abort(code)

    # When the program has ended.

    def _leave(self) -> None:
        """Waits for all other programs' ends; what is left to do is short."""
        if os.getpid() != self._process or self._mpi.Is_finalized():
            return  # A fork, or a program that has ended MPI itself.
        code = self._exit_code()
        if not self._threads:
            return self._end_all(code) if code else None
        if not self.alone:
            jax.effects_barrier()  # Messages on their way.
        self._over.set()
        self._thread.join()
        for rank in self._others:
            self._say(rank, _LEFT if self.alone else _ENDED)
        if not self.alone:
            # Guarded ranks go on without one that has failed.
            if code and self._guard is None and self._silent(_FIRST_WORD):
                self._end_all(code)
            self._wait()
        if self.alone or self._apart or self._death:  # MPI's end would wait.
            _flush()
            os._exit(code)
        _start.watch("ending MPI", self._limit)

    def _exit_code(self) -> int:
        """The code with which the interpreter is about to end, as far as is known."""
        if self.failed:
            return 1
        if self._code is None or not _is_exit(self._frame):
            return 0
        return int(self._code) if isinstance(self._code, int) else 1

    def _end_all(self, code: int) -> None:
        """An exit code ends all ranks, as an exception does."""
        _watch.say(f"{self._name} ended with exit code {code}: all ranks end.")
        _flush()
        time.sleep(_LAST_WORDS)
        self._world.Abort(code)

    def _wait(self) -> None:
        """Waits for all others; ends the job without those that have died."""
        if silent := self._silent(math.inf):
            has = "have" if len(silent) > 1 else "has"
            _watch.say(
                f"{self._name} has ended; {_watch.name(silent)} {has} given no sign of "
                f"life since, for {self._patience:.0f} s: it does not wait."
            )
            self._stop(0 if self._guard is not None else 1)

    @property
    def _patience(self) -> float:
        return min(self._limit, _AFTER_A_DEATH) if self._death else self._limit

    def _silent(self, seconds: float) -> set[int]:
        """Waits until all have ended.

        Args:
          seconds: how long at most.

        Returns:
          Who has not and gives no sign of life, or has not in time.
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


def _main_frame() -> FrameType | None:
    """Where the main thread is."""
    return sys._current_frames().get(threading.main_thread().ident or 0)


def _is_exit(frame: FrameType | None) -> bool:
    """Whether a program's outermost frame was left by an exception.

    Else an earlier exit was caught, and the program came to its regular end.
    """
    if frame is None:
        return True
    instruction = dis.opname[frame.f_code.co_code[frame.f_lasti]]
    return not instruction.startswith("RETURN")


def _guard() -> int | None:
    """The open file of :data:`GUARD`, if this process has a guard."""
    try:
        file = int(os.environ[GUARD])
        if stat.S_ISFIFO(os.fstat(file).st_mode):
            os.set_blocking(file, False)
            return file
    except (KeyError, OSError, ValueError):
        pass
    return None


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
