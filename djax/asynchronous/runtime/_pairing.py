"""How neighbours agree to average, without a master.

Each worker runs this protocol with its neighbours. It is a pure state machine: what it
is told (a demand, a message, the end of an averaging) makes it return the messages that
it wants to send. A worker is free, asks one neighbour, or averages with one:

* who is free and wants to average sends `REQUEST` to a neighbour and waits for its
  answer;
* who is free and asked answers `ACCEPT`, and both average. Two that ask each other need
  no answer;
* who is averaging and asked answers `DECLINE`, and owes the asker a request of its own,
  which is called `RETURN` where it matters whose demand it is for;
* who asks one neighbour and is asked by another lets it wait for the answer to its own
  question if the asker has the higher rank, and else declines, owing it a request.

Nobody waits in a circle, since a worker waits only for one of lower rank that waits
itself. Nobody asks in vain for ever: a request that is declined is not repeated, but
returned once by the one who owes it, and asking upwards in rank it is never declined by
somebody who asks. Channels between two workers have to be reliable and ordered.

Which neighbour a worker wants is one of three policies:

* :class:`EdgeClocks`: each demand names one, and is served exactly once;
* :class:`FirstFree`: whoever is ready first; without demand of its own nobody is;
* :class:`FixedOrder`: a cycle over matchings of the graph, in which everyone waits for
  the neighbour whose turn it is (the schedule of AD-PSGD).
"""

import enum
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence

Messages = list[tuple[int, "Kind"]]
"""To whom, and what."""


class Kind(enum.IntEnum):
    """What the workers of the pairing tell each other."""

    REQUEST = 1
    ACCEPT = 2
    DECLINE = 3
    DONE = 4
    RETURN = 5


class Pairing:
    """One worker's part of the protocol; one of the three policies below.

    Every method that is told something returns the messages to be sent, in order.

    Args:
      rank: this worker.
      neighbors: those it may average with.

    Attributes:
      partner: the neighbour to average with now, or None; until `ended` is called.
      asking: the neighbour whose answer is awaited, or None.
      done: whether this worker has said `DONE`: it asks nobody any more, and averages
        with everyone who asks.
    """

    def __init__(self, rank: int, neighbors: Iterable[int]):
        """A free worker without demands."""
        self.rank = rank
        self.neighbors = list(neighbors)
        self.partner: int | None = None
        self.asking: int | None = None
        self.done = False
        self._finishing = False
        self._waiting: deque[int] = deque()
        self._out: Messages = []

    @property
    def backlog(self) -> int:
        """Number of averagings that are demanded here, or being made."""
        return self._demanded() + (self.partner is not None)

    @property
    def quiet(self) -> bool:
        """Whether there is nothing that this worker will do unless it is asked."""
        return self.done and self.partner is None and not self._waiting

    def demand(self, peer: int | None = None) -> Messages:
        """One more averaging is wanted.

        Args:
          peer: with whom; of the policies below only :class:`EdgeClocks` is told.
        """
        if self.neighbors and not self._finishing:
            self._demand(peer)
        return self._advance()

    def receive(self, sender: int, kind: Kind) -> Messages:
        """A neighbour's message has arrived."""
        if sender in self.neighbors:
            if kind in (Kind.REQUEST, Kind.RETURN):
                self._requested(sender)
            elif kind == Kind.DONE:
                self._served_by(sender)
            elif self.asking == sender:
                self.asking = None
                if kind == Kind.ACCEPT:
                    self._meet(sender)
                else:
                    self._declined(sender)
        return self._advance()

    def ended(self) -> Messages:
        """The averaging is made, or given up."""
        self.partner = None
        return self._advance()

    def finish(self) -> Messages:
        """This worker demands no more; it says `DONE` when it is free."""
        self._finishing = True
        self._drop_demands()
        return self._advance()

    def forget(self, peer: int) -> Messages:
        """A neighbour is no more; one that is averaging with it has to call `ended`."""
        if peer in self.neighbors:
            self.neighbors.remove(peer)
            if peer in self._waiting:
                self._waiting.remove(peer)
            if self.asking == peer:
                self.asking = None
            self._drop(peer)
            if not self.neighbors:
                self._drop_demands()
        return self._advance()

    def _requested(self, sender: int) -> None:
        if self.asking == sender:  # Both ask: both have their answer.
            self.asking = None
            self._crossed(sender)
            self._meet(sender)
        elif self.done or (self.asking is not None and sender > self.rank):
            self._waiting.append(sender)
        elif self.asking is None and self.partner is None and self._willing():
            self._out.append((sender, Kind.ACCEPT))
            self._meet(sender)
        else:
            self._out.append((sender, Kind.DECLINE))
            self._owe(sender)

    def _advance(self) -> Messages:
        """Does what a free worker does, and returns all messages that came up."""
        while self.partner is None and self.asking is None:
            if self._waiting:
                sender = self._waiting.popleft()
                if self.done or self._willing():
                    self._out.append((sender, Kind.ACCEPT))
                    self._meet(sender)
                else:
                    self._out.append((sender, Kind.DECLINE))
                    self._owe(sender)
            elif self._finishing:
                if not self.done:
                    self.done = True
                    self._out += [(peer, Kind.DONE) for peer in self.neighbors]
                break
            elif (peer := self._wanted()) is not None:
                self._out.append((peer, self._kind()))
                self.asking = peer
                self._asked(peer)
            else:
                break
        out, self._out = self._out, []
        return out

    def _meet(self, peer: int) -> None:
        self.partner = peer
        self._met(peer)

    # What the policies differ in.

    def _demand(self, peer: int | None) -> None:
        raise NotImplementedError

    def _willing(self) -> bool:
        """Whether a free worker averages with somebody who asks."""
        raise NotImplementedError

    def _wanted(self) -> int | None:
        """Whom a free worker asks next."""
        raise NotImplementedError

    def _kind(self) -> Kind:
        """How it is asked."""
        return Kind.REQUEST

    def _demanded(self) -> int:
        """Number of averagings that are demanded here and have not begun."""
        raise NotImplementedError

    def _drop_demands(self) -> None:
        raise NotImplementedError

    def _owe(self, peer: int) -> None:
        """Its request has been declined."""

    def _asked(self, peer: int) -> None:
        """It has been sent a request."""

    def _declined(self, peer: int) -> None:
        """It has declined, and will ask in its turn."""

    def _crossed(self, peer: int) -> None:
        """It has been sent a request, and has sent one."""

    def _met(self, peer: int) -> None:
        """An averaging with it begins."""

    def _served_by(self, peer: int) -> None:
        """It is done, and will average whenever asked."""

    def _drop(self, peer: int) -> None:
        """It is no more."""


class EdgeClocks(Pairing):
    """Each demand names the neighbour: what a clock of the pair does.

    A neighbour that declines takes the demand over, so that pairs average as often as
    their clocks tick, in whatever order. It stays in the backlog of the worker whose
    clock has ticked.
    """

    def __init__(self, rank: int, neighbors: Iterable[int]):
        """A free worker without demands."""
        super().__init__(rank, neighbors)
        self._owed: deque[tuple[int, bool]] = deque()  # Whom to ask; if for ourselves.
        self._own = False  # Whether what is asked now is for ourselves.
        self._handed: Counter[int] = Counter()  # Our demands that others have.
        self._returning: set[int] = set()  # Who asks for one of these.

    def receive(self, sender: int, kind: Kind) -> Messages:
        """A neighbour's message has arrived."""
        if kind == Kind.RETURN:
            self._returning.add(sender)
        return super().receive(sender, kind)

    def _demand(self, peer):
        if peer in self.neighbors:
            self._owed.append((peer, True))

    def _demanded(self):
        waiting = sum(own for _, own in self._owed) + self._handed.total()
        return waiting + (self.asking is not None and self._own)

    def _willing(self):
        return True

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
        """One averaging serves one demand: that of the lower rank's question."""
        if self.rank < peer:
            self._returning.discard(peer)
        elif not self._finishing:
            self._owed.appendleft((peer, self._own))

    def _met(self, peer):
        self._take_back(peer)

    def _take_back(self, peer: int) -> bool:
        """Whether its question is for a demand of ours, which it then has no more."""
        own = peer in self._returning
        self._returning.discard(peer)
        self._handed[peer] -= own and not self._finishing
        return own

    def _served_by(self, peer):
        """It has dropped what it had of ours, but answers."""
        self._owed.extend([(peer, True)] * self._handed.pop(peer, 0))

    def _drop(self, peer):
        self._owed = deque(demand for demand in self._owed if demand[0] != peer)
        self._handed.pop(peer, None)
        self._returning.discard(peer)


class FirstFree(Pairing):
    """A demand is for any neighbour: the first that has one, too.

    A worker with a demand asks its neighbours one after another, in random order. One
    without declines and takes a note, to ask in its turn when it has a demand; those of
    whom it has a note are asked first.

    Args:
      rank: this worker.
      neighbors: those it may average with.
      choose: picks one of several neighbours.
    """

    def __init__(
        self,
        rank: int,
        neighbors: Iterable[int],
        choose: Callable[[Sequence[int]], int],
    ):
        """A free worker without demands."""
        super().__init__(rank, neighbors)
        self._choose = choose
        self._due = 0
        self._noted: set[int] = set()  # They were ready, and know that we know.
        self._told: set[int] = set()  # They have a note of us.

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
        self._told.discard(peer)  # It asks nobody any more.

    def _drop(self, peer):
        self._noted.discard(peer)
        self._told.discard(peer)


class FixedOrder(Pairing):
    """A demand is for the next neighbour of a cycle, the same for both ends.

    Both ends send their request when their turn has come, and whose comes first waits.
    If all workers' cycles go through the same list of matchings of the graph, the
    earliest meeting that is not made can always be made, so that nobody waits for ever.

    Args:
      rank: this worker.
      cycle: the neighbours in their order, each once for every matching.
    """

    def __init__(self, rank: int, cycle: Sequence[int]):
        """A free worker without demands."""
        super().__init__(rank, dict.fromkeys(cycle))
        self._cycle = deque(cycle)
        self._due = 0
        self._noted: list[int] = []

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
        if peer in self._noted:  # It asked before us.
            self._noted.remove(peer)
            self.asking = None
            self._meet(peer)

    def _drop_demands(self):
        self._due = 0

    def _willing(self):
        return True

    def _advance(self):
        if self._finishing and self.asking is None and self.partner is None:
            self._waiting += self._noted
            self._noted = []
        return super()._advance()

    def _drop(self, peer):
        self._cycle = deque(p for p in self._cycle if p != peer)
        self._noted = [p for p in self._noted if p != peer]
