"""Says which message a rank has been waiting for, if it waits long.

If one rank takes part in fewer exchanges than the others, these wait for ever without a
word. So a program sends a message to its own rank before each exchange and receives it
afterwards. A rank that has such a message is in an exchange, and the tag of the message
says in which. A thread looks for the messages now and then. On a CPU this costs a
program 1 to 2 µs for each exchange.

When a rank has said for whom it waits, it asks these ranks, and those that do not wait
for anything say where they are.
"""

import contextlib
import functools
import math
import threading
import time
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from . import _standing
from ._end import before_the_end
from ._watch import name, say

_QUESTION = 0  # Tag of a question; tags of exchanges are larger.
_MANY = 8  # More ranks than this are counted, not named.


class Watchdog:
    """Says which exchange of a communicator this rank waits for, and for how long.

    Attributes:
      comms: MPI communicators on which a program sends to its own rank: for programs of
        the main thread, and for those of the second thread.
    """

    def __init__(self, comm: Any, comms: tuple[Any, Any]):
        """Lets the thread look after two new communicators; see :func:`watchdog`."""
        from mpi4py import MPI

        self.comms = comms
        group, world = comm.Get_group(), MPI.COMM_WORLD.Get_group()
        places = MPI.Group.Translate_ranks(group, range(comm.size), world)
        self._ranks: list[int] = list(places)
        self._lanes = [_Lane(x, self._ranks) for x in comms]
        self._thread = _thread()
        self._thread.lanes += self._lanes

    def tag(self, what: str, peers: Iterable[int], background: bool) -> int:
        """Returns the tag of messages that say that this rank is in an exchange.

        The tag depends on the arguments alone, so that equal programs have equal tags.

        Args:
          what: the exchange, in words.
          peers: the ranks with which this rank exchanges messages.
          background: whether the second thread makes the exchange.
        """
        return self._lanes[background].tag(what, tuple(sorted(peers)))

    @contextlib.contextmanager
    def waiting(self, what: str, peers: Iterable[int]) -> Iterator[None]:
        """Watches a wait of this process outside of programs, with such arguments."""
        wait = _Wait(self._lanes[0], [(what, tuple(peers))])
        self._thread.waits.append(wait)
        try:
            yield
        finally:
            self._thread.waits.remove(wait)


def watchdog(comm: Any) -> Watchdog | None:
    """Makes a watchdog of a communicator; all its ranks have to call this function.

    Returns:
      None if the communicator has one rank; if :data:`_standing.WATCHDOG` is 0; if two
      threads may not call MPI at the same time; or if a rank that sends to itself would
      wait for the receipt.

    Raises:
      ValueError: if :data:`_standing.WATCHDOG` is no number of seconds.
    """
    from mpi4py import MPI

    limit = _standing.watchdog_seconds()
    if comm.size == 1:
        return None
    # All ranks make these, as they might have different limits.
    comms = comm.Dup(), comm.Dup()
    threads = MPI.Query_thread() == MPI.THREAD_MULTIPLE
    if not (limit and threads and _sends_at_once(comms[0])):
        return None
    return Watchdog(comm, comms)


def _sends_at_once(comm: Any) -> bool:
    """Whether a small message to this rank itself is sent before it is received."""
    sent = comm.Isend([np.zeros(1, np.int32), _int32()], comm.rank, _QUESTION)
    at_once = sent.Test()
    comm.Recv([np.zeros(1, np.int32), _int32()], comm.rank, _QUESTION)
    sent.Wait()
    return at_once


def _int32() -> Any:
    from mpi4py import MPI

    return MPI.INT32_T


class _Wait:
    """A wait that is in progress.

    Attributes:
      sites: what is waited for, and the ranks of the lane's communicator.
      due: seconds after which it is reported, or reported again.
    """

    def __init__(self, lane: "_Lane", sites: Sequence[tuple[str, tuple[int, ...]]]):
        self.lane, self.sites = lane, sites
        self.since, self.due = time.monotonic(), 0.0


class _Lane:
    """The exchanges of one thread's programs on one communicator.

    Attributes:
      wait: the exchange in which the program is.
      ranks: the job's rank of each rank of the communicator.
    """

    def __init__(self, comm: Any, ranks: Sequence[int]):
        from mpi4py import MPI

        self.wait: _Wait | None = None
        self.ranks = ranks
        self._mpi, self._comm = MPI, comm
        self._largest = comm.Get_attr(MPI.TAG_UB) or 32767
        self._sites: dict[int, dict[tuple[str, tuple[int, ...]], None]] = {}
        self._stamp = np.zeros(1, np.int32)
        self._asked: list[Any] = []

    def tag(self, what: str, peers: tuple[int, ...]) -> int:
        tag = 1 + zlib.crc32(repr((what, peers)).encode()) % (self._largest - 1)
        self._sites.setdefault(tag, {})[what, peers] = None
        return tag

    def look(self) -> None:
        """Finds the message of an exchange, and marks the message as seen.

        The program receives its message at the end of the exchange, and waits if the
        message is just here. So the message is sent again at once.
        """
        status, found = self._mpi.Status(), np.empty(1, np.int32)
        me, kind = self._comm.rank, self._mpi.INT32_T
        message = self._comm.Improbe(me, self._mpi.ANY_TAG, status)
        if message is None:
            self.wait = None
            return
        # A program's own message says 0.
        new = self._stamp % (2**31 - 1) + np.int32(1)
        tag = status.Get_tag()
        message.Recv([found, kind])
        seen = self.wait is not None and found[0] == self._stamp[0]
        stamp = self._stamp if seen else new
        self._comm.Send([stamp, kind], me, tag)
        if not seen:
            self._stamp = stamp
            sites = self._sites.get(tag, {("an exchange", ()): None})
            self.wait = _Wait(self, list(sites))

    def ask(self, peers: Sequence[int]) -> None:
        """Asks ranks where they are."""
        self._asked = [request for request in self._asked if not request.Test()]
        for rank in peers:
            data = [b"?", self._mpi.BYTE]
            self._asked.append(self._comm.Isend(data, rank, _QUESTION))

    def askers(self) -> set[int]:
        """The job's ranks that have asked."""
        found, status = set(), self._mpi.Status()
        while self._comm.Iprobe(self._mpi.ANY_SOURCE, _QUESTION, status):
            sender = status.Get_source()
            self._comm.Recv([bytearray(1), self._mpi.BYTE], sender, _QUESTION)
            found.add(self.ranks[sender])
        return found


class _Thread:
    """The thread that looks for waits of all communicators of this process."""

    def __init__(self):
        """Starts the thread, and has it end before MPI does."""
        from mpi4py import MPI

        self.lanes: list[_Lane] = []
        self.waits: list[_Wait] = []  # Those outside of programs.
        self._limit, self._answered = _standing.watchdog_seconds(), -math.inf
        self._mpi, world = MPI, MPI.COMM_WORLD
        self._name = f"rank {world.rank} of {world.size}"
        self._over = threading.Event()
        self._thread = threading.Thread(
            target=self._run, name="djax watchdog", daemon=True
        )
        self._thread.start()
        before_the_end(self._finish)

    def _finish(self, seconds: float) -> bool:
        self._over.set()
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while not self._over.wait(_standing.pause(self._limit)):
            if self._mpi.Is_finalized():  # By the program itself.
                return
            for lane in self.lanes:
                lane.look()
            waits = [lane.wait for lane in self.lanes if lane.wait] + self.waits
            for wait in waits:
                self._report(wait)
            askers = set().union(*(lane.askers() for lane in self.lanes))
            if askers and not waits:
                self._answer(askers)

    def _report(self, wait: _Wait) -> None:
        """Says what this rank waits for, if it has waited long."""
        waited = time.monotonic() - wait.since
        if waited < max(wait.due, self._limit):
            return
        wait.due = waited + self._limit
        peers = sorted({rank for _, peers in wait.sites for rank in peers})
        who = name({wait.lane.ranks[rank] for rank in peers})
        if len(peers) > _MANY:
            who = f"{len(peers)} other ranks"
        elif not peers:
            who = "other ranks"
        what = " or ".join(dict.fromkeys(what for what, _ in wait.sites))
        say(
            f"{self._name} has waited for {who} for {waited:.0f} s, in {what}; Python "
            f"stands at {_standing.python_place()}. Do all ranks come to this "
            "exchange? The usual reason is a condition around a mechanism that differs "
            "between ranks."
        )
        wait.lane.ask(peers)

    def _answer(self, askers: set[int]) -> None:
        now = time.monotonic()
        if now - self._answered < self._limit:
            return
        self._answered = now
        waits = "wait" if len(askers) > 1 else "waits"
        say(
            f"{self._name}, for which {name(askers)} {waits}, is in no exchange; "
            f"Python stands at {_standing.python_place()}."
        )


@functools.cache
def _thread() -> _Thread:
    return _Thread()
