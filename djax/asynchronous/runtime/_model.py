"""One worker's model, which gradients and averagings change at the same time."""

import functools
import threading
import time
from typing import Any, NamedTuple

import jax
import numpy as np
import optax

from djax._interfaces import PyTree
from djax.asynchronous._finite import applied
from djax.asynchronous.algorithms._acid import EventTransformation
from djax.training._nonfinite import all_finite
from djax.transport import Packing

Buffers = list[Any]
"""A model as it travels: its large leaves, and one array for the small of a dtype."""


class Arrival(NamedTuple):
    """What an averaging will change, once somebody reads the model.

    Attributes:
      peer: what this worker received.
      sent: what it sent, or None: what the model is, mixed up to `time`.
      time: of the averaging, in the worker's own time.
    """

    peer: Buffers
    sent: Buffers | None
    time: float


class OwnTime:
    """A worker's time: the number of its gradients, and the share of the current one.

    The share is an estimate, from the duration of the gradients so far: half of it is
    the last one's, a quarter the one's before, and so on. Who stalls ages no more than
    one gradient; during the very first one no time passes.

    Attributes:
      finished: number of gradients.
      duration: of a gradient, in seconds, or 0 before the first has finished.
    """

    def __init__(self, finished: int = 0):
        """No gradient is being computed."""
        self.finished = finished
        self.duration = 0.0
        self._began: float | None = None

    def begin(self) -> None:
        """A gradient begins."""
        self._began = time.perf_counter()

    def end(self) -> None:
        """It has ended."""
        assert self._began is not None
        latest = time.perf_counter() - self._began
        self.duration = (latest + (self.duration or latest)) / 2
        self._began = None
        self.finished += 1

    def __call__(self) -> float:
        # The other thread may end it meanwhile: then it has just begun, or just ended.
        finished, began = self.finished, self._began
        if began is None or not self.duration:
            return float(finished)
        share = (time.perf_counter() - began) / self.duration
        return finished + min(share, 1.0)

    def until(self, time_: float) -> float:
        """Seconds until then, if the current gradient lasts long enough."""
        return (time_ - self()) * (self.duration or 1.0)


class Model:
    """The model and its state under a lock.

    Arrays are never written in place: who holds a model holds it as it was. An
    averaging that has been made is kept as an :class:`Arrival` until the model is read,
    so that a program that reads the parameters anyway, such as the next update, applies
    it in the same pass.

    Args:
      algorithm: what one worker does.
      params: the first model.
      state: of the algorithm.
      finished: number of gradients that it has seen.
      skip: whether updates that are not finite are left out.

    Attributes:
      lock: of everything.
      time: the worker's own.
      averagings: how many there were.
      updated: `bool[2]`, whether the latest gradient was finite, and whether the model
        was that it led to.
      packing: of the model into the arrays that travel.
    """

    def __init__(
        self,
        algorithm: EventTransformation,
        params: PyTree,
        state: PyTree,
        finished: int = 0,
        skip: bool = False,
    ):
        """Compiles nothing yet; see `compile`."""
        self.lock = threading.RLock()
        self.time = OwnTime(finished)
        self.params, self.state = params, state
        self.averagings = 0
        leaves, structure = jax.tree.flatten(params)
        self._programs, self.packing = _make_programs(
            algorithm, structure, tuple((x.shape, x.dtype) for x in leaves), skip
        )
        self._arrival: Arrival | None = None
        self._last = float(finished)  # Time of the last event.
        self._sent: Buffers = []
        self._sent_finite: Any = True
        self.updated: Any = (True, True)
        self._sent_at: float | None = None  # If nothing has happened since.

    def compile(self, grads: PyTree) -> None:
        """Runs all programs once, to no effect, before the clock runs.

        Args:
          grads: abstract gradients.
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
        """The model that a gradient is taken at, and the number of averagings in it.

        Args:
          settled: whether the last averaging, if one has just been made, has to be in
            it; it costs a pass over the parameters, which the next update saves.
        """
        with self.lock:
            if settled and self._arrival is not None:
                self.settle()
            return self.params, self.averagings - (self._arrival is not None)

    def update(self, grads: PyTree, global_step: int) -> int:
        """Applies a gradient, whenever the model was that it was taken at.

        Args:
          grads: the gradient.
          global_step: number of all workers' gradients before.

        Returns:
          The number of averagings before.
        """
        with self.lock:
            arrival, *times = self._take_arrival(self.time.finished + 1.0)
            self.params, self.state, self.updated = self._programs.update(
                grads, self.params, self.state, arrival, *times, np.int32(global_step)
            )
            self.time.end()
            return self.averagings

    def send(self) -> Buffers:
        """The model mixed up to now, packed for a neighbour.

        `receive` or `keep` is next.
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
        """Whether what `send` returned has neither NaN nor infinities."""
        return bool(self._sent_finite)

    def keep(self) -> None:
        """No averaging is made of what `send` returned: the model stays as it is."""
        with self.lock:
            self._sent = []

    def receive(self, peer: Buffers) -> None:
        """An averaging is made of what `send` returned and what the neighbour sent.

        Args:
          peer: the latter, which must not change before `settle`, `send` or `update`
            has returned and its results are computed.
        """
        with self.lock:
            assert self._arrival is None
            if self._sent_at is not None:  # The model can tell what it was.
                self._arrival = Arrival(peer, None, self._sent_at)
            else:
                self._arrival = Arrival(peer, self._sent, self._last)
            self._sent = []
            self.averagings += 1

    def settle(self) -> tuple[PyTree, PyTree]:
        """Mixes up to now, for good, and returns the model and its state."""
        with self.lock:
            arrival, *times = self._take_arrival(self._now())
            self.params, self.state = self._programs.settle(
                self.params, self.state, arrival, *times
            )
            return self.params, self.state

    def _take_arrival(self, now: float) -> tuple[Any, np.float32, np.float32]:
        """What has arrived, and the times from the last event to it and to now."""
        arrival = self._arrival
        middle = self._last if arrival is None else arrival.time
        before, after = np.float32(middle - self._last), np.float32(now - middle)
        self._last, self._arrival, self._sent_at = now, None, None
        return arrival and (arrival.peer, arrival.sent), before, after

    def _now(self) -> float:
        return max(self._last, self.time())


_ZERO = np.float32(0)


class _Programs(NamedTuple):
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
    """The events, composed such that each reads the parameters once, and the packing.

    They are kept, so that another run in the same process compiles nothing.
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
        return applied(
            algorithm,
            skip,
            grads,
            state,
            params,
            elapsed=after,
            global_step=global_step,
        )

    return _Programs(*map(_jit, (settle, pack, send, update))), packing


def _jit(function):
    """`jax.jit`, but what the function returns as it was given is not copied.

    Which results these are may depend on the structure of the arguments alone.
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


SKETCH = 1024
"""Numbers that stand for a model when distances are estimated."""


@jax.jit
def sketch(params: PyTree) -> jax.Array:
    r"""Projects a model at random: distances survive to about :math:`\sqrt{2 / 1024}`.

    Each coordinate is added, with a random sign, to one of 1,024 sums (a tensor sketch
    without its products: the expected squared norm is that of the model). Models of no
    more coordinates are returned as they are.
    """
    leaves = [x.ravel().astype(np.float32) for x in jax.tree.leaves(params)]
    if sum(x.size for x in leaves) <= SKETCH:
        return jax.numpy.concatenate(leaves)
    total = jax.numpy.zeros(SKETCH, np.float32)
    for number, x in enumerate(leaves):
        signed, whole = _flip(x, number), x.size // SKETCH * SKETCH
        total += signed[:whole].reshape(-1, SKETCH).sum(0)
        total += jax.numpy.pad(signed[whole:], (0, SKETCH + whole - x.size))
    return total


def _flip(x: jax.Array, number: int) -> jax.Array:
    """Changes about half of the signs, the same on all workers, chosen by a hash."""
    bits = jax.lax.iota(np.uint32, x.size) + np.uint32(number * 0x9E3779B9 & 0xFFFFFFFF)
    for shift, factor in ((16, 0x7FEB352D), (15, 0x846CA68B)):
        bits = (bits ^ (bits >> shift)) * np.uint32(factor)
    bits = jax.lax.bitcast_convert_type(x, np.uint32) ^ (bits & np.uint32(1 << 31))
    return jax.lax.bitcast_convert_type(bits, np.float32)
