"""The thread of a worker that averages while the main thread computes gradients.

The thread never blocks. Between two polls for messages it does whatever is due: it
exchanges models (:mod:`djax.asynchronous.runtime._averagings`), tells the others how
far this worker is, notices lost workers, and takes part in the end of the run.
"""

import json
import math
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from djax._interfaces import PyTree
from djax.training import NonFiniteError
from djax.transport import Message, Transport, as_bytes, say

from ._averagings import Averagings
from ._ending import Ending, Result
from ._members import Members, Say, WorkerLost
from ._model import Model
from ._pairing import Kind
from ._record import Record
from ._settings import Settings
from ._sketch import sketch


class WorkerSnapshot(NamedTuple):
    """One worker at one time of a run in real time.

    It holds one worker, unlike a :class:`djax.asynchronous.Snapshot`: since no worker
    waits for another, workers take their snapshots at slightly different times.

    Attributes:
      number: number of the snapshot among those requested, from 1 on.
      time: seconds since the run began.
      params: the worker's model, with a leading axis of 1.
    """

    number: int
    time: float
    params: PyTree


class Averager:
    """Runs the averaging thread, through which the main thread talks to other workers.

    Args:
      model: the model of this worker.
      members: this worker's view of all workers.
      transport: carries the messages; the thread closes it in the end.
      record: where this worker notes what happens.
      settings: the settings of the run.

    Attributes:
      record: the same record.
      error: the error that has ended the averaging thread, or None.
      waits: whether a gradient has to wait when too many averagings are due.
      snapshots: the snapshots of this worker, if they are kept.
    """

    def __init__(
        self,
        model: Model,
        members: Members,
        transport: Transport,
        record: Record,
        settings: Settings,
    ):
        """Starts the thread."""
        self.record, self.snapshots = record, []
        self.error: BaseException | None = None
        self.waits = settings.max_backlog is not None
        self._model, self._members, self._transport = model, members, transport
        self._settings = settings
        rng = np.random.default_rng((settings.seed, members.rank))
        pairing = settings.make_pairing(members.rank, rng)
        self._averagings = Averagings(model, members, transport, record, pairing)
        self._clocks = settings.make_clocks(members.rank, model.time(), rng)
        self._ending = Ending(members, self._result, model.packing)
        # What the two threads tell each other.
        self._phase, self._since = "starting", time.monotonic()
        self._started, self._over = threading.Event(), threading.Event()
        self._finishing = False
        self._failure: tuple[Any, ...] | None = None  # The message for the others.
        self._served, self._served_until = threading.Condition(), -math.inf
        self._noticed = threading.Event()
        self._snapshots_taken = 0  # Number of the latest snapshot.
        self._thread = threading.Thread(
            target=self._run, name="djax averagings", daemon=True
        )
        self._thread.start()

    # Methods for the main thread.

    def begin(self, phase: str) -> None:
        """Notes what this worker does next; others report it if the worker is lost."""
        self._phase, self._since = phase, time.monotonic()

    def check(self, wait: bool = False) -> None:
        """Raises the error that has ended the averaging thread, if any.

        Args:
          wait: whether to wait for the end of the thread, since it ends on another
            member of the group.
        """
        if wait:
            self._over.wait(self._settings.timeout)
        if self.error is not None:
            self._noticed.set()
            raise self.error

    def start(self) -> None:
        """Tells the others that this worker is ready; waits until all workers are."""
        self.begin("ready, waiting for others to start")
        self._members.own.ready = True
        self._transport.wake()
        self._started.wait()
        self.check()

    def enough(self) -> bool:
        """Whether the run is over."""
        return self._share() >= 1

    def stop(self) -> None:
        """Asks all workers to end now."""
        self._members.own.stopping = True
        self._transport.wake()

    def _share(self) -> float:
        if self._members.stopping:
            return 1.0
        return self._settings.share(self._members.gradients, self.record.now())

    def step(self) -> None:
        """Notes that a gradient was applied; waits if too many averagings are due."""
        finished = self._model.time.finished
        self._members.own.gradients = finished
        self._transport.wake()
        if self.waits:
            with self._served:
                self._served.wait_for(
                    lambda: self._served_until >= finished or self._over.is_set()
                )

    def finish(self) -> Result:
        """Averages on request until all workers are done; returns the result."""
        self.begin("serving others, done")
        self._finishing = True
        self._transport.wake()
        while not self._over.wait(60.0):
            pass
        self.check()
        self._thread.join()
        return self._ending.result

    def fail(self, error: BaseException) -> None:
        """Tells the others that this worker has failed, and ends the thread."""
        self._noticed.set()
        error.add_note(f"Worker {self._members.rank} was {self._phase}.")
        if isinstance(error, NonFiniteError):
            self._failure = Say.NONFINITE, str(error), error.ranks, error.step
        else:
            text = f"{type(error).__name__}: {error}".splitlines()[0]
            reason = f"failed, {self._phase}: {text[:500]}"
            self._failure = Say.LOST, self._members.rank, reason
        if not self._over.is_set():
            self._transport.wake()
            self._over.wait(10.0)

    # Methods for the averaging thread.

    def _run(self) -> None:
        try:
            while not self._tick():
                for message in self._transport.poll(self._pause()):
                    self._handle(message)
            if self._failure is not None:
                self._members.say(None, *self._failure)
            if self._failure is None or self._transport.survives:
                self._transport.close()
        except BaseException as error:
            self.error = error
        finally:
            self._started.set()
            self._over.set()
            with self._served:
                self._served.notify_all()
        if self.error is not None and not self._noticed.wait(self._settings.timeout):
            self._transport.abort(
                f"rank {self._members.rank}: {self.error} Meanwhile this rank was "
                f"{self._phase} for {time.monotonic() - self._since:.0f} s."
            )

    def _pause(self) -> float:
        """Returns the seconds that this thread may sleep if no message comes."""
        most = self._settings.timeout / 10
        if self._started.is_set() and not self._finishing:
            most = min(most, self._model.time.until(self._clocks.next))
        return max(0.0, most)

    def _tick(self) -> bool:
        """Does what is due; returns whether the run is over."""
        if self._failure is not None:
            return True
        members = self._members
        for peer, reason in members.silent().items():
            self._lose(peer, reason)
        if not self._started.is_set():
            if all(status.ready for status in members.everyone):
                self._open()
        elif not self._finishing:
            self._demand()
        else:
            self._averagings.finish()
        self._averagings.advance()
        self._take_snapshot()
        members.own.done = self._finishing and self._averagings.pairing.done
        members.own.phase = self._phase
        members.tell()
        done = all(status.done for status in members.everyone)
        return done and self._averagings.pairing.quiet and self._ending.advance()

    def _open(self) -> None:
        """Starts the clock of the run, since all workers are ready."""
        if not self._started.is_set():
            self.record.origin = time.perf_counter()
            self._started.set()

    def _handle(self, message: Message) -> None:
        kind, *content = json.loads(message.header)
        sender = message.sender
        if sender not in self._members.others:
            return
        self._members.hear(sender, kind, content)
        if kind == Say.PAIR:
            self._open()  # The sender knows that all are ready.
            self._averagings.hear(sender, Kind(content[0]))
        elif kind == Say.MODEL:
            model = message.buffers if content[0] else None
            self._averagings.hear_model(sender, model)
        elif kind == Say.LOST:
            self._lose(*content)
        elif kind == Say.NONFINITE:
            raise NonFiniteError(*content)
        elif kind != Say.STATUS:
            self._ending.hear(sender, kind, content, message.buffers)
        self._averagings.advance()

    def _demand(self) -> None:
        """Demands the averagings that are due, and lets a waiting gradient begin."""
        now = self._model.time()
        for tick in self._clocks.ticks(now):
            self._averagings.demand(tick)
        most = self._settings.max_backlog
        if most is not None and self._averagings.pairing.backlog <= most:
            with self._served:
                self._served_until = now
                self._served.notify_all()

    def _lose(self, peer: int, reason: str) -> None:
        """Continues without a worker, or raises WorkerLost if that is impossible."""
        members = self._members
        if peer == members.rank:
            raise WorkerLost(f"the others go on without this worker: it {reason}.")
        if peer in members.lost:
            return
        members.lose(peer, reason)
        if not self._transport.survives:
            raise WorkerLost(
                f'worker {peer} {reason}. With transport="zmq" the others could go on '
                "without it."
            )
        say(f"worker {peer} is lost: it {reason}")
        self._averagings.lose(peer)

    def _take_snapshot(self) -> None:
        """Takes the next snapshot if its share of the run is over."""
        if not self._started.is_set():
            return
        number = int(min(1.0, self._share()) * self._settings.snapshots)
        if number > self._snapshots_taken:
            self._snapshots_taken = number
            params, _ = self._model.settle()
            self.record.snapshot(number, np.asarray(sketch(params)))
            if self._settings.keep_snapshots:
                kept = jax.tree.map(lambda x: x[None], params)
                self.snapshots.append(WorkerSnapshot(number, self.record.now(), kept))

    def _result(self) -> list[np.ndarray]:
        """Returns the packed model and the packed record, which `Ending` collects."""
        self._model.settle()
        model = [*map(as_bytes, self._model.send())]
        self.record.end(self._model.sent_finite)
        return [*model, *self.record.pack()]
