"""Lets a process join the other ranks of an MPI job in bounded time.

Starting MPI waits for every rank of the job, and so do the first collective calls. If
one rank has died, or does something else, all others would wait for ever without a
word. So each step has a time limit, after which the process names the missing ranks and
ends.
"""

import contextlib
import ctypes
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from . import _watch
from ._launch import launcher_size

START_TIMEOUT = "DJAX_START_TIMEOUT", 600.0
"""Environment variable, and its default: seconds that a rank waits for all to start."""

_PATIENCE = 30.0  # Seconds after which a rank reports that it waits for others.
_TAG = 32003  # Tag of the messages of `meet`; no other message has it.
_ROUND_TRIP = 5.0  # Seconds in which rank 0 has to answer after its own time limit.


class Absent(RuntimeError):
    """Some ranks did not call, in time, a function that all ranks have to call.

    Attributes:
      ranks: the missing ranks.
    """

    def __init__(self, what: str, seconds: float, ranks: list[int]):
        """Makes the message."""
        self.ranks = ranks
        super().__init__(
            f"{what}: ranks {ranks} have not called it within {seconds:.0f} s; all "
            "ranks have to."
        )


def seconds_of(variable: tuple[str, float]) -> float:
    """Returns the time in seconds that an environment variable sets.

    Args:
      variable: the name of the variable, and the default.

    Raises:
      ValueError: if the value is not a positive number.
    """
    name, default = variable
    text = os.environ.get(name, "")
    try:
        value = float(text) if text else default
    except ValueError:
        value = 0.0
    if not value > 0:
        raise ValueError(f"{name}={text} must be a positive number of seconds.")
    return value


def start_mpi() -> Any:
    """Starts MPI, and ends the process if that takes too long.

    The start waits for all ranks of the job, for at most :data:`START_TIMEOUT`. The
    kernel is asked to end this process when its launcher dies. If MPI has been started
    already, this function does nothing.

    Returns:
      The module `mpi4py.MPI`.

    Raises:
      ImportError: if mpi4py is missing.
    """
    if "mpi4py.MPI" not in sys.modules:
        _die_with_launcher()
        seconds = seconds_of(START_TIMEOUT)
        with watched("starting MPI", seconds, min(_PATIENCE, seconds / 2)):
            from mpi4py import MPI
    from mpi4py import MPI

    return MPI


@contextlib.contextmanager
def watched(doing: str, seconds: float, patience: float) -> Iterator[None]:
    """Ends this process, with one line, if the body of the `with` takes too long.

    Args:
      doing: what the body does, for the lines that are written.
      seconds: the time limit.
      patience: seconds after which a first line says that the body takes long.
    """
    watcher = watch(doing, seconds, patience)
    try:
        yield
    finally:
        if watcher is not None:
            watcher.kill()
            watcher.communicate()


def watch(
    doing: str, seconds: float, patience: float = math.inf
) -> subprocess.Popen[bytes] | None:
    """Starts a second process, which ends this process when a time limit is over.

    Some calls of MPI hold the interpreter's lock, so that no thread could do this. If
    no launcher has started this process, it waits for no other process, and no second
    process is started.

    Args:
      doing: what this process does meanwhile, for the lines that are written.
      seconds: the time limit.
      patience: seconds after which a first line says that this takes long.

    Returns:
      The second process, or None. It ends by itself when this process ends.
    """
    if (launcher_size() or 1) == 1:
        return None
    numbers = map(str, (patience, seconds, os.getpid()))
    command = [sys.executable, "-I", "-S", _watch.__file__, doing, *numbers]
    # In a session of its own, it does not get the launcher's signals to this rank.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _die_with_launcher() -> None:
    """Makes the kernel end this process when its MPICH launcher or guard dies."""
    parent = os.getppid()
    with contextlib.suppress(OSError):
        if _watch.is_launcher(parent):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # The parent has died meanwhile.
                os.kill(os.getpid(), signal.SIGKILL)


def meet(comm: Any, what: str, seconds: float | None = None) -> None:
    """Waits until all ranks have called it, so that collective calls can follow safely.

    Every rank reports to rank 0, which answers. After 30 seconds, or half of the time
    limit, rank 0 writes which ranks are late. It does not wait for ranks that are known
    to have died, and no other rank waits for rank 0 if rank 0 has died.

    Args:
      comm: an MPI communicator.
      what: name of the function that all ranks have to call, for the messages.
      seconds: the time limit; by default :data:`START_TIMEOUT`.

    Raises:
      Absent: if some ranks have not called this function in time; the error names them.
    """
    seconds = seconds_of(START_TIMEOUT) if seconds is None else seconds
    begin = time.monotonic()
    missing = _gather(comm, what, seconds) if comm.rank == 0 else _report(comm, seconds)
    if missing:
        raise Absent(what, time.monotonic() - begin, missing)


class _Deaths:
    """Looks up, at most once a second, which ranks have died."""

    def __init__(self):
        """Starts without knowing of any death."""
        self._looked, self._before = time.monotonic(), set()

    def include(self, ranks: set[int]) -> bool:
        """Returns whether the last two searches found all of these ranks dead."""
        if time.monotonic() < self._looked + 1:
            return False
        dead, _ = _watch.missing(os.getpid())
        twice, self._before = dead & self._before, dead
        self._looked = time.monotonic()
        return ranks <= twice


def _gather(comm: Any, what: str, seconds: float) -> list[int]:
    """Waits for the reports of all other ranks, and tells them which are missing."""
    from mpi4py import MPI

    begin, said, deaths = time.monotonic(), False, _Deaths()
    missing = {
        rank: comm.Irecv([bytearray(1), MPI.BYTE], rank, _TAG)
        for rank in range(1, comm.size)
    }
    while missing := {r: x for r, x in missing.items() if not x.Test()}:
        waited = time.monotonic() - begin
        if waited > seconds or deaths.include(set(missing)):
            break
        if waited > min(_PATIENCE, seconds / 2) and not said:
            said = True
            names = f"{_watch.name(set(missing))} of {comm.size}"
            verb = "have" if len(missing) > 1 else "has"
            _watch.say(f"{names} {verb} not come to {what} after {waited:.0f} s.")
        time.sleep(1e-3)
    late = sorted(missing)
    requests = {rank: comm.isend(late, rank, _TAG) for rank in range(1, comm.size)}
    # A rank that is missing does not receive the message.
    MPI.Request.Waitall([x for rank, x in requests.items() if rank not in missing])
    return late


def _report(comm: Any, seconds: float) -> list[int]:
    """Reports to rank 0, and returns the missing ranks that it names."""
    from mpi4py import MPI

    said = comm.Isend([b"!", MPI.BYTE], 0, _TAG)
    answer, end = comm.irecv(source=0, tag=_TAG), time.monotonic() + seconds
    deaths = _Deaths()
    while True:
        arrived, late = answer.test()
        if arrived:
            said.Wait()
            return late
        if time.monotonic() > end + _ROUND_TRIP or deaths.include({0}):
            return [0]
        time.sleep(1e-3)
