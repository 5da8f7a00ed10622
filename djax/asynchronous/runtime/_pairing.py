"""How neighbours agree to average, without a master that could fail or be slow.

Each worker runs this protocol with its neighbours. The protocol is a pure state
machine, so that tests can explore all that may happen: a demand, a received message or
the end of an averaging goes in, and the messages to be sent come out.

A worker is free, waits for one neighbour's answer, or averages with one neighbour.

* A free worker that wants to average sends `REQUEST` to a neighbour, and waits for the
  answer.
* A free worker that receives a request answers `ACCEPT`, and both average. If two
  workers have sent each other a request, they average without an answer.
* A worker that is averaging answers `DECLINE`. It then owes the requester a request in
  return. If a policy has to know whose demand a request serves, it sends a request in
  return as `RETURN`.
* A worker that is waiting for an answer may itself receive a request. If the requester
  has a higher rank, the worker holds its reply back until its own request is answered.
  If the requester has a lower rank, the worker declines, and later sends that neighbour
  a request in return.

Workers never wait for each other in a circle: a worker holds a reply back only from a
worker of higher rank, and only while it waits for an answer itself. No request is
repeated for ever: a worker whose request was declined waits for the request in return,
and a worker that waits for an answer never declines a request from a higher rank. The
channel between two workers has to be reliable and to keep the order of messages.

The three policies in :mod:`djax.asynchronous.runtime._policies` decide with which
neighbour a worker wants to average.
"""

import enum
from collections import deque
from collections.abc import Iterable

Messages = list[tuple[int, "Kind"]]
"""Messages to be sent, each as the rank of its receiver and its kind."""


class Kind(enum.IntEnum):
    """The kinds of messages of the protocol."""

    REQUEST = 1
    ACCEPT = 2
    DECLINE = 3
    DONE = 4
    RETURN = 5


class Pairing:
    """One worker's part of the protocol, which a policy completes.

    Each public method stands for one event, which its docstring states. It returns the
    messages to be sent, in their order.

    Args:
      rank: rank of this worker.
      neighbors: ranks of the workers that it may average with.

    Attributes:
      partner: the neighbour to average with now, until `ended` is called, or None.
      asking: the neighbour whose answer this worker waits for, or None.
      done: whether this worker has sent `DONE`. It then sends no more requests, and
        accepts all that it receives.
    """

    def __init__(self, rank: int, neighbors: Iterable[int]):
        """Starts as a free worker without demands."""
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
        """Number of this worker's demands, the averaging in progress included."""
        return self._demanded() + (self.partner is not None)

    @property
    def quiet(self) -> bool:
        """Whether this worker does nothing any more unless it receives a request."""
        return self.done and self.partner is None and not self._waiting

    def demand(self, peer: int | None = None) -> Messages:
        """This worker wants one more averaging.

        Args:
          peer: the neighbour to average with, for policies that leave this choice to
            the caller.
        """
        if self.neighbors and not self._finishing:
            self._demand(peer)
        return self._advance()

    def receive(self, sender: int, kind: Kind) -> Messages:
        """A message of a neighbour has arrived."""
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
        """The averaging has been made, or given up."""
        self.partner = None
        return self._advance()

    def finish(self) -> Messages:
        """This worker wants no more averagings; it sends `DONE` once it is free."""
        self._finishing = True
        self._drop_demands()
        return self._advance()

    def forget(self, peer: int) -> Messages:
        """A neighbour is lost; if it is the partner, call `ended` afterwards."""
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
        if self.asking == sender:  # The two requests answer each other.
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
        """Lets a free worker act, and returns all messages that are to be sent."""
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

    # Every policy defines the following methods.

    def _demand(self, peer: int | None) -> None:
        """Notes one more demand."""
        raise NotImplementedError

    def _wanted(self) -> int | None:
        """Returns the neighbour that a free worker sends a request to, if any."""
        raise NotImplementedError

    def _demanded(self) -> int:
        """Returns the number of this worker's demands whose averaging has not begun."""
        raise NotImplementedError

    def _drop_demands(self) -> None:
        """Forgets all demands."""
        raise NotImplementedError

    def _willing(self) -> bool:
        """Returns whether a free worker accepts a request."""
        return True

    def _kind(self) -> Kind:
        """Returns the kind of the request that is sent to the neighbour `_wanted`."""
        return Kind.REQUEST

    # A policy may note the following events between this worker and a neighbour.

    def _owe(self, peer: int) -> None:
        """This worker has declined a request of the neighbour."""

    def _asked(self, peer: int) -> None:
        """This worker has sent the neighbour a request."""

    def _declined(self, peer: int) -> None:
        """The neighbour has declined, and will send a request in return."""

    def _crossed(self, peer: int) -> None:
        """This worker and the neighbour have sent each other a request."""

    def _met(self, peer: int) -> None:
        """An averaging with the neighbour begins."""

    def _served_by(self, peer: int) -> None:
        """The neighbour is done, and accepts every request from now on."""

    def _drop(self, peer: int) -> None:
        """The neighbour is lost."""
