"""Who takes part in an asynchronous run, how far they are, and who is lost."""

import dataclasses
import enum
import json
import math
import time
from collections.abc import Sequence

import numpy as np

from djax.transport import Transport

from ._settings import Settings

# Timeouts for which a worker may load and compile when all others are ready.
_START = 10


class WorkerLost(RuntimeError):
    """A worker has died, failed, or not been heard of for too long."""


class Say(enum.StrEnum):
    """Kinds of messages."""

    PAIR = "pair"
    MODEL = "model"
    STATUS = "status"
    LOST = "lost"
    NONFINITE = "nonfinite"
    RESULT = "result"
    MEAN = "mean"
    BYE = "bye"


def encode(kind: Say, *content: object) -> bytes:
    """A message's header."""
    return json.dumps([kind, *content]).encode()


@dataclasses.dataclass
class Status:
    """What a worker tells everyone about itself.

    Attributes:
      gradients: how many it has computed.
      ready: whether it could start.
      done: whether it wants no averaging any more.
      phase: what it does, for people.
      stopping: whether it asks all to end now.
    """

    gradients: int = 0
    ready: bool = False
    done: bool = False
    phase: str = "starting"
    stopping: bool = False


@dataclasses.dataclass
class _Signs:
    """Of life: when a worker was last heard of, and when its status last changed."""

    heard: float
    changed: float


class Members:
    """One worker's view of all workers.

    Everyone tells everyone its status several times in a `timeout`, and whenever the
    number of its gradients may matter to somebody: the closer the end of the budget,
    the more often. So all can stop when all together have computed enough.

    Args:
      rank: this worker.
      size: number of workers.
      settings: of the run.
      transport: carries the messages.

    Attributes:
      own: this worker's status, to be kept up to date.
      others: those of the workers that are not lost.
      lost: the reasons by rank.
    """

    def __init__(
        self,
        rank: int,
        size: int,
        settings: Settings,
        transport: Transport,
    ):
        """All workers are starting."""
        self.rank, self.size = rank, size
        self.own = Status()
        self.others = {peer: Status() for peer in range(size) if peer != rank}
        self.lost: dict[int, str] = {}
        self._budget, self._timeout = settings.gradients, settings.timeout
        self._transport = transport
        now = time.monotonic()
        self._signs = {peer: _Signs(now, now) for peer in self.others}
        self._told, self._told_at, self._own_changed = Status(), now, now
        self._looked_at = now
        self._gone = 0  # Gradients of those that are lost.

    @property
    def alive(self) -> list[int]:
        """The ranks that are not lost, ascending."""
        return sorted([self.rank, *self.others])

    @property
    def everyone(self) -> list[Status]:
        """The statuses of all that are not lost."""
        return [self.own, *list(self.others.values())]

    @property
    def gradients(self) -> int:
        """How many all workers have computed, as far as is known."""
        return self._gone + sum(status.gradients for status in self.everyone)

    @property
    def stopping(self) -> bool:
        """Whether somebody asks all to end now."""
        return any(status.stopping for status in self.everyone)

    def say(
        self,
        peer: int | None,
        kind: Say,
        *content: object,
        buffers: Sequence[np.ndarray] = (),
    ) -> None:
        """Sends a message to a worker, or to all."""
        for receiver in self.others if peer is None else [peer]:
            self._transport.send(receiver, encode(kind, *content), buffers)

    def hear(self, sender: int, kind: Say, content: list) -> None:
        """A message has come, of whatever kind."""
        signs, now = self._signs[sender], time.monotonic()
        signs.heard = now
        if kind == Say.STATUS and sender in self.others:
            status = Status(*content)
            if dataclasses.replace(self.others[sender], phase=status.phase) != status:
                signs.changed = now
            self.others[sender] = status

    def tell(self) -> None:
        """Tells everyone this worker's status, if it is time to."""
        now, own = time.monotonic(), dataclasses.replace(self.own)  # Others change it.
        left = (self._budget or 0) - self.gradients
        enough = max(1, left // (4 * self.size))
        counts = self._budget is not None and (
            own.gradients - self._told.gradients >= enough
        )
        told = self._told
        news = (own.ready, own.done, own.stopping) != (
            told.ready,
            told.done,
            told.stopping,
        )
        if counts or news or now - self._told_at >= self._timeout / 5:
            self.say(None, Say.STATUS, *dataclasses.astuple(own))
            self._told, self._told_at = own, now
        if news:
            self._own_changed = now

    def silent(self) -> dict[int, str]:
        """Those that have to be given up now, and why.

        A worker is silent whose process is stopped or dead. It is as good as silent if
        it computes the same gradient since all others are done for the whole
        `timeout`, or is not ready ten times as long after them.
        """
        now, found = time.monotonic(), {}
        if now - self._looked_at > self._timeout / 2:
            # It is this worker that was stopped: what others said is still unread.
            self._signs = {peer: _Signs(now, now) for peer in self._signs}
        self._looked_at = now
        for peer, signs in self._signs.items():
            status = self.others.get(peer)
            if status is None:
                continue
            rest = [self.own, *(s for r, s in self.others.items() if r != peer)]
            if now - signs.heard > self._timeout:
                found[peer] = (
                    f"was not heard of for {self._timeout:g} s, last {status.phase}"
                )
            elif now - self._latest_change() > self._patience(status, rest):
                found[peer] = f"has held up everyone: {status.phase}"
        return found

    def _latest_change(self) -> float:
        return max(
            [self._own_changed, *(self._signs[peer].changed for peer in self.others)]
        )

    def _patience(self, status: Status, rest: list[Status]) -> float:
        """How long a worker may keep all others waiting that way."""
        if not status.ready and all(other.ready for other in rest):
            return _START * self._timeout
        if not status.done and all(other.done for other in rest):
            return self._timeout
        return math.inf

    def lose(self, peer: int, reason: str) -> None:
        """A worker is lost; tells the others, and itself."""
        self._gone += self.others.pop(peer).gradients
        self.lost[peer] = reason
        for receiver in (None, peer):
            self.say(receiver, Say.LOST, peer, reason)
        self._transport.forget(peer)
