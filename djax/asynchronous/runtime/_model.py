"""One worker's model, which gradients and averagings change at the same time.

Each pass over the parameters of a large model delays the next gradient. So the programs
below read the parameters only once for each event. When a neighbour's model arrives, it
is stored, and the model stays as it is. The next program that reads the parameters
anyway then applies the averaging, too.
"""

import functools
import threading
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from djax._arrays.finite import all_finite
from djax._interfaces import PyTree
from djax.transport import Packing

from .._finite import applied
from ..algorithms import EventTransformation
from ._own_time import OwnTime

Buffers = list[Any]
"""The arrays that carry a model, as :class:`djax.transport.Packing` makes them."""


class Arrival(NamedTuple):
    """An averaging that is not applied to the model yet.

    Attributes:
      peer: the model that this worker received.
      sent: the model that this worker sent, or None if the present model, mixed up to
        `time`, is equal to it.
      time: when the averaging was made, in the worker's own time.
    """

    peer: Buffers
    sent: Buffers | None
    time: float


class Model:
    """A worker's model and its state of the algorithm, shared by two threads.

    Arrays are never overwritten. So a thread can still use a model that it has read
    when the other thread has changed the model.

    Args:
      algorithm: the asynchronous algorithm.
      params: the first model.
      state: the first state of the algorithm.
      finished: number of gradients that were applied to the first model before.
      skip: whether updates that are not finite are left out.

    Attributes:
      lock: protects the model, the state and their times.
      time: the worker's own time.
      averagings: number of averagings so far.
      updated: `bool[2]`: whether the latest gradient was finite, and whether the model
        with this gradient applied was finite.
      packing: turns the model into the arrays that are sent, and back.
    """

    def __init__(
        self,
        algorithm: EventTransformation,
        params: PyTree,
        state: PyTree,
        finished: int = 0,
        skip: bool = False,
    ):
        """Takes the first model; compiling, which takes long, is left to `compile`."""
        self.lock = threading.RLock()
        self.time = OwnTime(finished)
        self.params, self.state = params, state
        self.averagings = 0
        leaves, structure = jax.tree.flatten(params)
        self._programs, self.packing = _make_programs(
            algorithm, structure, tuple((x.shape, x.dtype) for x in leaves), skip
        )
        self._arrival: Arrival | None = None
        self._last = float(finished)  # When the last event happened.
        self._sent: Buffers = []
        self._sent_finite: Any = True
        self.updated: Any = (True, True)
        # When the model was sent, or None if an event has happened since.
        self._sent_at: float | None = None

    def compile(self, grads: PyTree) -> None:
        """Compiles all programs by running them once, without an effect on the model.

        Args:
          grads: shapes and dtypes of the gradients.
        """
        grads = jax.tree.map(lambda x: jax.numpy.zeros(x.shape, x.dtype), grads)
        model, times = (self.params, self.state), (_ZERO, _ZERO)
        self._programs.pack(self.params)
        packed, _ = self._programs.send(*model, _ZERO)
        received = jax.tree.map(np.asarray, packed)
        for arrival in (None, (received, None), (received, packed)):
            self._programs.settle(*model, arrival, *times)
            self._programs.update(grads, *model, arrival, *times, np.int32(0))

    def snapshot(self, settled: bool) -> tuple[PyTree, int]:
        """Returns the model for a gradient, and the number of averagings in it.

        Args:
          settled: whether an averaging that has arrived is applied first. This costs a
            pass over the parameters, which the next update would make anyway.
        """
        with self.lock:
            if settled and self._arrival is not None:
                self.settle()
            return self.params, self.averagings - (self._arrival is not None)

    def update(self, grads: PyTree, global_step: int) -> int:
        """Applies a gradient, even if averagings have changed the model meanwhile.

        Args:
          grads: a tree like the model.
          global_step: number of gradients that all workers have computed before.

        Returns:
          The number of averagings before this gradient.
        """
        with self.lock:
            arrival, *times = self._take_arrival(self.time.finished + 1.0)
            self.params, self.state, self.updated = self._programs.update(
                grads, self.params, self.state, arrival, *times, np.int32(global_step)
            )
            self.time.end()
            return self.averagings

    def send(self) -> Buffers:
        """Returns the model, mixed up to now and packed for a neighbour.

        The caller has to call `receive` or `keep` next.
        """
        with self.lock:
            if self._arrival is not None:
                self.settle()
                self._sent_at = self._last
                self._sent, self._sent_finite = self._programs.pack(self.params)
                return self._sent
            params, state, self._sent_at = self.params, self.state, self._now()
            since = np.float32(self._sent_at - self._last)
        self._sent, self._sent_finite = self._programs.send(params, state, since)
        return self._sent

    @property
    def sent_finite(self) -> bool:
        """Whether the model that `send` returned has neither NaN nor infinities."""
        return bool(self._sent_finite)

    def keep(self) -> None:
        """Leaves out the averaging for which `send` was called."""
        with self.lock:
            self._sent = []

    def receive(self, peer: Buffers) -> None:
        """Averages the model that `send` has returned with a neighbour's model.

        Args:
          peer: the neighbour's model. It must not change before the results of the next
            `settle`, `send` or `update` are computed.
        """
        with self.lock:
            assert self._arrival is None
            if self._sent_at is not None:  # No event since: it can be computed again.
                self._arrival = Arrival(peer, None, self._sent_at)
            else:
                self._arrival = Arrival(peer, self._sent, self._last)
            self._sent = []
            self.averagings += 1

    def settle(self) -> tuple[PyTree, PyTree]:
        """Applies an arrived averaging, mixes up to now; returns model and state."""
        with self.lock:
            arrival, *times = self._take_arrival(self._now())
            self.params, self.state = self._programs.settle(
                self.params, self.state, arrival, *times
            )
            return self.params, self.state

    def _take_arrival(self, now: float) -> tuple[Any, np.float32, np.float32]:
        """Returns the arrived averaging, if any, and two times.

        These are the time from the last event to the averaging, and from there to now.
        """
        arrival = self._arrival
        middle = self._last if arrival is None else arrival.time
        before, after = np.float32(middle - self._last), np.float32(now - middle)
        self._last, self._arrival, self._sent_at = now, None, None
        return arrival and (arrival.peer, arrival.sent), before, after

    def _now(self) -> float:
        return max(self._last, self.time())


_ZERO = np.float32(0)


class _Programs(NamedTuple):
    """Compiled programs of one worker; :class:`Model` calls them."""

    settle: Any
    pack: Any
    send: Any
    update: Any


@functools.lru_cache(maxsize=8)
def _make_programs(
    algorithm: EventTransformation,
    structure: Any,
    kinds: tuple[tuple[tuple[int, ...], np.dtype], ...],
    skip: bool,
) -> tuple[_Programs, Packing]:
    """Makes the programs of all events, each of which reads the parameters once.

    They are cached, so that another run in the same process compiles nothing.
    """
    like = structure.unflatten([jax.ShapeDtypeStruct(*kind) for kind in kinds])
    packing = Packing(like)

    def pack(params):
        return packing.pack(params), all_finite(params)

    def arrived(params, state, arrival, before):
        if arrival is None:
            return params, state
        peer, sent = (buffers and packing.unpack(buffers) for buffers in arrival)
        params, state = algorithm.mix(params, state, before)
        updates, state = algorithm.average(peer, state, params, sent=sent)
        return optax.apply_updates(params, updates), state

    def settle(params, state, arrival, before, after):
        return algorithm.mix(*arrived(params, state, arrival, before), after)

    def send(params, state, after):
        return pack(algorithm.mix(params, state, after)[0])

    def update(grads, params, state, arrival, before, after, global_step):
        params, state = arrived(params, state, arrival, before)
        options = {"elapsed": after, "global_step": global_step}
        return applied(algorithm, skip, grads, state, params, **options)

    return _Programs(*map(_jit, (settle, pack, send, update))), packing


def _jit(function):
    """Compiles a function so that results that are arguments are not copied.

    Which results are arguments may depend on the structure of the arguments only.
    """
    kept: dict[Any, list[int | None]] = {}
    structures: dict[Any, Any] = {}

    def changed(*args):
        leaves, given = jax.tree.flatten(args)
        numbers = {id(leaf): i for i, leaf in enumerate(leaves)}
        results, structures[given] = jax.tree.flatten(function(*args))
        kept[given] = [numbers.get(id(result)) for result in results]
        return [x for x in results if id(x) not in numbers]

    program = jax.jit(changed)

    def call(*args):
        new = iter(program(*args))
        leaves, given = jax.tree.flatten(args)
        results = [next(new) if i is None else leaves[i] for i in kept[given]]
        return structures[given].unflatten(results)

    return call
