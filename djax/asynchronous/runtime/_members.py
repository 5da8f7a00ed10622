"""Keeps track of all workers of a run: how far each of them is, and which are lost."""

import dataclasses
import enum
import json
import math
import time
from collections.abc import Sequence

import numpy as np

from djax.transport import Transport

from ._settings import Settings

# A rank may call `run` this many timeouts later than the first one, and a worker may
# load data and compile for this many timeouts after all others are ready.
START_PATIENCE = 10
# Seconds after which others learn of new gradients, which they show as progress, and by
# which the learning rate of `in_global_steps` decays.
_NEWS = 1.0


class WorkerLost(RuntimeError):
    """A worker has died, failed, or given no sign of life for too long."""


class Say(enum.StrEnum):
    """The kinds of messages of a run."""

    PAIR = "pair"
    MODEL = "model"
    STATUS = "status"
    LOST = "lost"
    NONFINITE = "nonfinite"
    RESULT = "result"
    MEAN = "mean"
    BYE = "bye"


def encode(kind: Say, *content: object) -> bytes:
    """Returns the header of a message, which is JSON."""
    return json.dumps([kind, *content]).encode()


@dataclasses.dataclass
class Status:
    """What a worker tells all others about itself.

    Attributes:
      gradients: number of gradients that it has computed.
      ready: whether it could start.
      done: whether it demands no more averagings.
      phase: what it is doing, in words, for reports.
      stopping: whether it asks all workers to end now.
    """

    gradients: int = 0
    ready: bool = False
    done: bool = False
    phase: str = "starting"
    stopping: bool = False


@dataclasses.dataclass
class _Signs:
    """When a worker was last heard of, and when its status last changed."""

    heard: float
    changed: float


class Members:
    """One worker's view of all workers.

    Every worker sends its status to all others several times in a `timeout`, as a sign
    of life, and while it computes gradients at least about once a second. It also sends
    its status after a number of gradients, which becomes smaller when fewer gradients
    are left in the budget. So all workers learn in time that all together have computed
    enough.

    Args:
      rank: rank of this worker.
      size: number of workers.
      settings: the settings of the run.
      transport: carries the messages.

    Attributes:
      own: the status of this worker, which the caller keeps up to date.
      others: the statuses of the other workers that are not lost, by rank.
      lost: for each lost worker the reason, by rank.
    """

    def __init__(self, rank: int, size: int, settings: Settings, transport: Transport):
        """Starts with all workers alive and not ready."""
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
        self._gone = 0  # Number of gradients of the lost workers.

    @property
    def alive(self) -> list[int]:
        """The ranks of the workers that are not lost, ascending."""
        return sorted([self.rank, *self.others])

    @property
    def everyone(self) -> list[Status]:
        """The statuses of all workers that are not lost."""
        return [self.own, *list(self.others.values())]

    @property
    def gradients(self) -> int:
        """Number of gradients of all workers together, as far as this worker knows."""
        return self._gone + sum(status.gradients for status in self.everyone)

    @property
    def stopping(self) -> bool:
        """Whether any worker asks all workers to end now."""
        return any(status.stopping for status in self.everyone)

    def say(
        self,
        peer: int | None,
        kind: Say,
        *content: object,
        buffers: Sequence[np.ndarray] = (),
    ) -> None:
        """Sends a message to one worker, or to all others if `peer` is None."""
        for receiver in self.others if peer is None else [peer]:
            self._transport.send(receiver, encode(kind, *content), buffers)

    def hear(self, sender: int, kind: Say, content: list) -> None:
        """Notes a sign of life of the sender, and its status if the message is one."""
        signs, now = self._signs[sender], time.monotonic()
        signs.heard = now
        if kind == Say.STATUS and sender in self.others:
            status = Status(*content)
            if dataclasses.replace(self.others[sender], phase=status.phase) != status:
                signs.changed = now
            self.others[sender] = status

    def tell(self) -> None:
        """Sends this worker's status to all others, if it is time to do so."""
        # A copy, since the main thread may change the status meanwhile.
        now, own = time.monotonic(), dataclasses.replace(self.own)
        left = (self._budget or 0) - self.gradients
        new = own.gradients - self._told.gradients
        counts = self._budget is not None and new >= max(1, left // (4 * self.size))
        news = own != dataclasses.replace(
            self._told, gradients=own.gradients, phase=own.phase
        )
        patience = min(self._timeout / 5, _NEWS if new else math.inf)
        if counts or news or now - self._told_at >= patience:
            self.say(None, Say.STATUS, *dataclasses.astuple(own))
            self._told, self._told_at = own, now
        if news:
            self._own_changed = now

    def silent(self) -> dict[int, str]:
        """Returns the workers that have to be given up now, and why, by rank.

        A worker is given up if nothing was heard of it for `timeout` seconds, because
        its process is stopped or dead. A worker is also given up if all others have
        finished and it has spent more than `timeout` seconds on one gradient, or if all
        others are ready to start and it is not ready after ten times `timeout`.
        """
        now, found = time.monotonic(), {}
        if now - self._looked_at > self._timeout / 2:
            # This worker itself was stopped, and has not read the others' messages yet.
            self._signs = {peer: _Signs(now, now) for peer in self._signs}
        self._looked_at = now
        changes = [self._signs[peer].changed for peer in self.others]
        latest_change = max([self._own_changed, *changes])
        for peer, status in self.others.items():
            rest = [self.own, *(s for r, s in self.others.items() if r != peer)]
            if now - self._signs[peer].heard > self._timeout:
                found[peer] = (
                    f"was not heard of for {self._timeout:g} s; when last heard of, "
                    f"it was {status.phase}"
                )
            elif now - latest_change > self._patience(status, rest):
                seconds = now - latest_change
                found[peer] = (
                    f"has held up everyone for {seconds:.0f} s: it was {status.phase}"
                )
        return found

    def _patience(self, status: Status, rest: list[Status]) -> float:
        """Returns how long, in seconds, a worker may keep all others waiting."""
        if not status.ready and all(other.ready for other in rest):
            return START_PATIENCE * self._timeout
        if not status.done and all(other.done for other in rest):
            return self._timeout
        return math.inf

    def lose(self, peer: int, reason: str) -> None:
        """Gives a worker up, and tells all others and, if it still runs, the worker."""
        self._gone += self.others.pop(peer).gradients
        self.lost[peer] = reason
        for receiver in (None, peer):
            self.say(receiver, Say.LOST, peer, reason)
        self._transport.forget(peer)
