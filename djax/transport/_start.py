"""How a process joins the other ranks of an MPI job, in bounded time.

Starting MPI and its first collective calls wait for every rank of the job. One that has
died or does something else would let all others wait for ever without a word. So each
step has a limit, after which the process ends and names who is missing.
"""

import contextlib
import ctypes
import math
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from . import _watch
from ._launch import launcher_size

START_TIMEOUT = "DJAX_START_TIMEOUT", 600.0
"""Environment variable, and default: seconds that a rank waits for all to start."""
PATIENCE = 30.0
"""Seconds after which a rank says that it waits for others to start."""

_TAG = 32003  # Of the messages by which all meet, in nobody else's way.
_ROUND_TRIP = 5.0  # Seconds that rank 0 has to answer when its own time is over.


class Absent(RuntimeError):
    """Ranks have not come to where all have to be.

    Attributes:
      ranks: who.
    """

    def __init__(self, what: str, seconds: float, ranks: list[int]):
        """Makes the message."""
        self.ranks = ranks
        super().__init__(
            f"{what}: ranks {ranks} have not called it within {seconds:.0f} s; all "
            "ranks have to."
        )


def seconds_of(variable: tuple[str, float]) -> float:
    """Seconds that an environment variable sets.

    Args:
      variable: its name, and the default.

    Raises:
      ValueError: if it is not a positive number.
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
    """Starts MPI, unless it has been, and ends the process if that takes too long.

    The start waits for all ranks of the job; :data:`START_TIMEOUT` bounds it. The
    process is also bound to its launcher: it does not outlive it.

    Returns:
      The module `mpi4py.MPI`.

    Raises:
      ImportError: if mpi4py is missing.
    """
    if "mpi4py.MPI" not in sys.modules:
        _die_with_launcher()
        seconds = seconds_of(START_TIMEOUT)
        with watched("starting MPI", seconds, min(PATIENCE, seconds / 2)):
            from mpi4py import MPI
    from mpi4py import MPI

    return MPI


@contextlib.contextmanager
def watched(doing: str, seconds: float, patience: float) -> Iterator[None]:
    """Ends this process, with one line, if what is within takes too long.

    Args:
      doing: what it is, for the line.
      seconds: the limit.
      patience: seconds after which it is said once that this takes long.
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
    """Ends this process, with one line, if it lives for longer than so many seconds.

    For calls of MPI that hold the interpreter's lock, where no thread could watch.
    Where no launcher has started this process, nobody is waited for.

    Args:
      doing: what it does meanwhile, for the line.
      seconds: the limit.
      patience: seconds after which it is said once that this takes long.

    Returns:
      The process that watches; it ends by itself when this one does.
    """
    if (launcher_size() or 1) == 1:
        return None
    numbers = map(str, (patience, seconds, os.getpid()))
    command = [sys.executable, "-I", "-S", _watch.__file__, doing, *numbers]
    # In a session of its own, as the launcher's signals to a rank would end it.
    return subprocess.Popen(command, stdin=subprocess.PIPE, start_new_session=True)


def _die_with_launcher() -> None:
    """Lets the kernel end this process when its MPICH launcher or guard is killed."""
    parent = os.getppid()
    name = pathlib.Path(f"/proc/{parent}/comm")
    with contextlib.suppress(OSError):
        if name.read_text().startswith("hydra_pmi_prox"):
            ctypes.CDLL(None).prctl(1, signal.SIGKILL, 0, 0, 0)  # PR_SET_PDEATHSIG
            if os.getppid() != parent:  # It has died meanwhile.
                os.kill(os.getpid(), signal.SIGKILL)


def meet(comm: Any, what: str, seconds: float) -> None:
    """Waits until all ranks are here, so that what follows cannot hang.

    Rank 0 hears everybody and answers. It says once who is late, after
    :data:`PATIENCE` seconds or half of the limit. Ranks that are known to have died are
    not waited for.

    Args:
      comm: an MPI communicator.
      what: what all ranks have to call, for the messages.
      seconds: how long to wait.

    Raises:
      Absent: if some are not here in time; it names them.
    """
    begin = time.monotonic()
    missing = _gather(comm, what, seconds) if comm.rank == 0 else _report(comm, seconds)
    if missing:
        raise Absent(what, time.monotonic() - begin, missing)


class _Deaths:
    """Which ranks have died, looked up now and then."""

    def __init__(self):
        """Nobody is known to have."""
        self._looked, self._before = time.monotonic(), set()

    def include(self, ranks: set[int]) -> bool:
        """Whether all of these have died, at two looks a second apart."""
        if time.monotonic() < self._looked + 1:
            return False
        dead, _ = _watch.missing(os.getpid())
        twice, self._before = dead & self._before, dead
        self._looked = time.monotonic()
        return ranks <= twice


def _gather(comm: Any, what: str, seconds: float) -> list[int]:
    """Hears all other ranks, and tells them who is missing."""
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
        if waited > min(PATIENCE, seconds / 2) and not said:
            said = True
            names = f"{_watch.name(set(missing))} of {comm.size}"
            verb = "have" if len(missing) > 1 else "has"
            _watch.say(f"{names} {verb} not come to {what} after {waited:.0f} s.")
        time.sleep(1e-3)
    late = sorted(missing)
    requests = [comm.isend(late, rank, _TAG) for rank in range(1, comm.size)]
    if late:  # Who is not here does not take it.
        requests = [
            r
            for r, rank in zip(requests, range(1, comm.size), strict=True)
            if rank not in missing
        ]
    MPI.Request.Waitall(requests)
    return late


def _report(comm: Any, seconds: float) -> list[int]:
    """Tells rank 0 that this rank is here; returns who is not."""
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
