"""The thread of a worker that averages, while another computes gradients.

All that it does it does in small steps between two looks for messages: it asks and
answers neighbours (:mod:`djax.asynchronous.runtime._pairing`), exchanges models,
tells everyone how far this worker is, notices who is lost, and takes part in the end.
"""

import json
import math
import sys
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np

from djax._interfaces import PyTree
from djax.training._nonfinite import NonFiniteError
from djax.transport import Message, Transport, as_bytes

from ._ending import Ending, Result
from ._members import Members, Say, WorkerLost
from ._model import Buffers, Model, sketch
from ._pairing import Kind, Messages
from ._record import Record
from ._settings import Settings


class Look(NamedTuple):
    """A worker at a moment of the run.

    Attributes:
      number: which of the looks that were asked for, from 1 on.
      time: seconds since the run began.
      params: its model, with a leading axis of 1.
    """

    number: int
    time: float
    params: PyTree


class Averager:
    """The averaging thread, and what the other one may ask of it.

    Args:
      model: of this worker.
      members: all workers.
      transport: carries the messages; closed at the end.
      record: where this worker notes what happens.
      settings: of the run.

    Attributes:
      record: as given.
      error: why the run cannot go on, or None.
      waits: whether gradients wait when too many averagings are due.
      looks: the models that were compared, if they are kept.
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
        self.record, self.looks = record, []
        self.error: BaseException | None = None
        self.waits = settings.max_backlog is not None
        self._model, self._members, self._transport = model, members, transport
        self._settings = settings
        rng = np.random.default_rng((settings.seed, members.rank))
        self._pairing = settings.make_pairing(members.rank, rng)
        self._clocks = settings.make_clocks(members.rank, model.time(), rng)
        self._ending = Ending(members, self._result, model.packing)
        # Between the threads.
        self._phase, self._since = "starting", time.monotonic()
        self._started, self._over = threading.Event(), threading.Event()
        self._finishing = False
        self._failure: tuple[Any, ...] | None = None  # What to say of it.
        self._served, self._served_until = threading.Condition(), -math.inf
        self._noticed = threading.Event()
        # The averaging that is being made, and what has come for it.
        self._sent: Buffers | None = None
        self._met_at = 0.0
        self._models: dict[int, list[np.ndarray] | None] = {}
        self._in_use: list[np.ndarray] = []
        self._looked = 0
        self._thread = threading.Thread(
            target=self._run, name="djax averagings", daemon=True
        )
        self._thread.start()

    # What the main thread calls.

    def begin(self, phase: str) -> None:
        """This worker does something new; said of it if it is lost."""
        self._phase, self._since = phase, time.monotonic()

    def check(self) -> None:
        """Raises what has come up in this thread."""
        if self.error is not None:
            self._noticed.set()
            raise self.error

    def start(self) -> None:
        """This worker is ready; waits until all are."""
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
        """A gradient has been applied; waits if too many averagings are due."""
        finished = self._model.time.finished
        self._members.own.gradients = finished
        self._transport.wake()
        if self.waits:
            with self._served:
                self._served.wait_for(
                    lambda: self._served_until >= finished or self._over.is_set()
                )
        self.check()

    def finish(self) -> Result:
        """Serves the others until all are done, and returns what all end with."""
        self.begin("serving others, done")
        self._finishing = True
        self._transport.wake()
        while not self._over.wait(60.0):
            pass
        self.check()
        self._thread.join()
        return self._ending.result

    def fail(self, error: BaseException) -> None:
        """This worker cannot go on; tells the others, and ends the thread."""
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

    # The thread.

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
                f"{self._describe()}."
            )

    def _pause(self) -> float:
        """How long this thread may sleep if no message comes."""
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
        elif not self._pairing.done:
            self._speak(self._pairing.finish())
        self._average()
        self._look()
        members.own.done = self._finishing and self._pairing.done
        members.own.phase = self._describe()
        members.tell()
        done = all(status.done for status in members.everyone)
        return done and self._pairing.quiet and self._ending.advance()

    def _open(self) -> None:
        """The run begins."""
        if not self._started.is_set():
            self.record.origin = time.perf_counter()
            self._started.set()

    def _describe(self) -> str:
        return f"{self._phase} for {time.monotonic() - self._since:.0f} s"

    def _handle(self, message: Message) -> None:
        kind, *content = json.loads(message.header)
        sender = message.sender
        if sender not in self._members.others:
            return
        self._members.hear(sender, kind, content)
        if kind == Say.PAIR:
            self._open()  # The sender knows that all are ready.
            self._speak(self._pairing.receive(sender, Kind(content[0])))
        elif kind == Say.MODEL:
            self._models[sender] = message.buffers if content[0] else None
        elif kind == Say.LOST:
            self._lose(*content)
        elif kind == Say.NONFINITE:
            raise NonFiniteError(*content)
        elif kind != Say.STATUS:
            self._ending.hear(sender, kind, content, message.buffers)
        self._average()

    def _speak(self, messages: Messages) -> None:
        for peer, kind in messages:
            if peer in self._members.others:
                self._members.say(peer, Say.PAIR, kind)

    def _demand(self) -> None:
        """Asks for the averagings that are due."""
        now = self._model.time()
        ticks = self._clocks.ticks(now)
        for tick in ticks:
            self._speak(self._pairing.demand(tick))
        most = self._settings.max_backlog
        if most is not None and self._pairing.backlog <= most:
            with self._served:
                self._served_until = now
                self._served.notify_all()

    def _average(self) -> None:
        """Exchanges models with the partner, and with the next one.

        A model that is not finite does not travel: both ends know of it, and both go on
        as if they had not met. If only one of them did, sums over workers would change.
        """
        while (peer := self._pairing.partner) is not None:
            if self._sent is None:
                self._met_at = self.record.now()
                self._sent = self._model.send()
                jax.block_until_ready(self._sent)  # So the last arrival is read, too.
                self._transport.recycle(self._in_use)
                self._in_use = []
                finite = self._model.sent_finite
                buffers = self._sent if finite else ()
                self._members.say(peer, Say.MODEL, finite, buffers=buffers)
            if peer not in self._models:
                return
            received = self._models.pop(peer)
            if received is not None and self._model.sent_finite:
                self._in_use = received
                self._model.receive(self._model.packing.view(received))
                self.record.averaging(peer, self._met_at)
            else:
                self._model.keep()
                self._transport.recycle(received or [])
            self._sent = None
            self._speak(self._pairing.ended())

    def _lose(self, peer: int, reason: str) -> None:
        """A worker is lost."""
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
        print(f"worker {peer} is lost: it {reason}", file=sys.stderr, flush=True)
        self._models.pop(peer, None)
        met = self._pairing.partner == peer
        self._speak(self._pairing.forget(peer))
        if met:
            self._sent = None
            self._speak(self._pairing.ended())

    def _look(self) -> None:
        """Notes what the model is, each time that another share of the run is over."""
        if not self._started.is_set():
            return
        number = int(min(1.0, self._share()) * self._settings.looks)
        if number > self._looked:
            self._looked = number
            params, _ = self._model.settle()
            self.record.look(number, np.asarray(sketch(params)))
            if self._settings.keep_looks:
                kept = jax.tree.map(lambda x: x[None], params)
                self.looks.append(Look(number, self.record.now(), kept))

    def _result(self) -> list[np.ndarray]:
        """The model as it travels, and the record."""
        self._model.settle()
        model = [*map(as_bytes, self._model.send())]
        self.record.end(self._model.sent_finite)
        return [*model, *self.record.pack()]
