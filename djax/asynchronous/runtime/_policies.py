"""Three policies, which decide with which neighbour a worker wants to average.

:class:`EdgeClocks` lets pairs average at the times that the analysis of A²CiD² assumes,
:class:`FirstFree` lets a worker average with whichever neighbour is ready first, and
:class:`FixedOrder` is the schedule of AD-PSGD.
"""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

from ._pairing import Kind, Messages, Pairing


class EdgeClocks(Pairing):
    """Each demand names a neighbour, because the clock of this pair has ticked.

    Every pair averages exactly as often as its clock ticks, in whatever order. To make
    sure of this, a neighbour that declines a request takes over the demand, and later
    sends a request for it. Meanwhile the demand still counts in the backlog of the
    worker whose clock has ticked.

    Args:
      rank: rank of this worker.
      neighbors: ranks of the workers that it may average with.
    """

    def __init__(self, rank: int, neighbors: Iterable[int]):
        """Starts as a free worker without demands."""
        super().__init__(rank, neighbors)
        # Requests to be sent: to which neighbour, and whether for an own demand.
        self._owed: deque[tuple[int, bool]] = deque()
        # Whether the request that awaits its answer is for a demand of this worker.
        self._own = False
        # This worker's demands that neighbours have taken over.
        self._handed: Counter[int] = Counter()
        # The neighbours that have sent a request for a demand that they took over.
        self._returning: set[int] = set()

    def receive(self, sender: int, kind: Kind) -> Messages:
        """A message of a neighbour has arrived."""
        if kind == Kind.RETURN:
            self._returning.add(sender)
        return super().receive(sender, kind)

    def _demand(self, peer):
        if peer in self.neighbors:
            self._owed.append((peer, True))

    def _demanded(self):
        waiting = sum(own for _, own in self._owed) + self._handed.total()
        return waiting + (self.asking is not None and self._own)

    def _wanted(self):
        if not self._owed:
            return None
        peer, self._own = self._owed.popleft()
        return peer

    def _kind(self):
        return Kind.REQUEST if self._own else Kind.RETURN

    def _drop_demands(self):
        self._owed.clear()
        self._handed.clear()

    def _owe(self, peer):
        own = self._take_back(peer)
        if not self._finishing:
            self._owed.append((peer, own))

    def _declined(self, peer):
        if self._own and not self._finishing:
            self._handed[peer] += 1

    def _crossed(self, peer):
        # One averaging serves one demand, that of the lower rank's request.
        if self.rank < peer:
            self._returning.discard(peer)
        elif not self._finishing:
            self._owed.appendleft((peer, self._own))

    def _met(self, peer):
        self._take_back(peer)

    def _take_back(self, peer: int) -> bool:
        """Takes a demand back if the neighbour sent a request for it; says whether."""
        own = peer in self._returning
        self._returning.discard(peer)
        self._handed[peer] -= own and not self._finishing
        return own

    def _served_by(self, peer):
        # The neighbour has dropped demands that it had taken over, but now accepts all
        # requests. So this worker sends requests for these demands.
        self._owed.extend([(peer, True)] * self._handed.pop(peer, 0))

    def _drop(self, peer):
        self._owed = deque(demand for demand in self._owed if demand[0] != peer)
        self._handed.pop(peer, None)
        self._returning.discard(peer)


class FirstFree(Pairing):
    """Each demand is served by the first neighbour that has a demand, too.

    A worker with a demand sends requests to its neighbours one after another, in random
    order. A neighbour without a demand declines, and remembers the requester. As soon
    as the neighbour has a demand, it sends its first requests to the workers that it
    remembers.

    Args:
      rank: rank of this worker.
      neighbors: ranks of the workers that it may average with.
      choose: a function that picks one of several ranks.
    """

    def __init__(
        self,
        rank: int,
        neighbors: Iterable[int],
        choose: Callable[[Sequence[int]], int],
    ):
        """Starts as a free worker without demands."""
        super().__init__(rank, neighbors)
        self._choose = choose
        self._due = 0
        # The neighbours whose demand this worker remembers.
        self._noted: set[int] = set()
        # The neighbours that remember the demand of this worker.
        self._told: set[int] = set()

    def _demand(self, peer):
        self._due += 1

    def _demanded(self):
        return max(0, self._due)

    def _willing(self):
        return self._due > 0

    def _wanted(self):
        if self._due <= 0:
            return None
        others = self._noted or set(self.neighbors) - self._told
        return self._choose(sorted(others)) if others else None

    def _drop_demands(self):
        self._due = 0
        self._noted.clear()

    def _owe(self, peer):
        if not self._finishing:
            self._noted.add(peer)

    def _asked(self, peer):
        self._noted.discard(peer)

    def _declined(self, peer):
        self._told.add(peer)

    def _met(self, peer):
        self._due -= 1
        self._noted.discard(peer)
        self._told.discard(peer)

    def _served_by(self, peer):
        self._told.discard(peer)  # The neighbour will send no request in return.

    def _drop(self, peer):
        self._noted.discard(peer)
        self._told.discard(peer)


class FixedOrder(Pairing):
    """Each demand is for the next neighbour of a cycle, as in the schedule of AD-PSGD.

    A worker sends a request to the next neighbour of its cycle, and waits until this
    neighbour has sent a request to it. No worker waits for ever if the cycles of all
    workers follow one list of matchings of the graph. Of all averagings that are not
    made yet, the earliest in this list can then always be made.

    Args:
      rank: rank of this worker.
      cycle: ranks of the neighbours with which the worker averages, in this order
        again and again.
    """

    def __init__(self, rank: int, cycle: Sequence[int]):
        """Starts as a free worker without demands."""
        super().__init__(rank, dict.fromkeys(cycle))
        self._cycle = deque(cycle)
        self._due = 0
        self._noted: list[int] = []  # The neighbours whose request came early.

    def _demand(self, peer):
        self._due += 1

    def _demanded(self):
        return self._due + (self.asking is not None)

    def _requested(self, sender):
        if self.asking == sender:
            self.asking = None
            self._meet(sender)
        else:
            self._noted.append(sender)

    def _wanted(self):
        if not self._due:
            return None
        self._due -= 1
        self._cycle.rotate(-1)
        return self._cycle[-1]

    def _asked(self, peer):
        if peer in self._noted:  # The two requests answer each other.
            self._noted.remove(peer)
            self.asking = None
            self._meet(peer)

    def _drop_demands(self):
        self._due = 0

    def _advance(self):
        if self._finishing and self.asking is None and self.partner is None:
            self._waiting += self._noted
            self._noted = []
        return super()._advance()

    def _drop(self, peer):
        self._cycle = deque(p for p in self._cycle if p != peer)
        self._noted = [p for p in self._noted if p != peer]
