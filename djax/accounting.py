"""What an algorithm sends, counted from what its program really exchanges."""

import contextlib
import contextvars
import dataclasses
import functools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from . import _wire
from ._base import PyTree, wide


@dataclasses.dataclass(frozen=True)
class CommunicationCost:
    """What each worker sends, in exact integers over one period of the algorithm.

    Attributes:
      period: number of steps after which what is sent repeats itself.
      bytes_per_period: `int[n]`, payload bytes sent by each rank in `period` steps.
      messages_per_period: `int[n]`, messages sent by each rank in `period` steps.
    """

    period: int
    bytes_per_period: tuple[int, ...]
    messages_per_period: tuple[int, ...]

    @property
    def bytes_per_step(self) -> tuple[int | float, ...]:
        """Bytes sent by each rank in one step, averaged over the period."""
        return tuple(_ratio(b, self.period) for b in self.bytes_per_period)

    @property
    def messages_per_step(self) -> tuple[int | float, ...]:
        """Messages sent by each rank in one step, averaged over the period."""
        return tuple(_ratio(m, self.period) for m in self.messages_per_period)

    @property
    def mean_bytes(self) -> int | float:
        """Bytes per worker and step, averaged over the workers."""
        return _ratio(sum(self.bytes_per_period), self.period * self.size)

    @property
    def max_bytes(self) -> int | float:
        """Bytes per step of the worker that sends most."""
        return max(self.bytes_per_step)

    @property
    def mean_messages(self) -> int | float:
        """Messages per worker and step, averaged over the workers."""
        return _ratio(sum(self.messages_per_period), self.period * self.size)

    @property
    def max_messages(self) -> int | float:
        """Messages per step of the worker that sends most."""
        return max(self.messages_per_step)

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self.bytes_per_period)

    def __add__(self, other: "CommunicationCost") -> "CommunicationCost":
        """The cost of sending both, over their least common period."""
        period = math.lcm(self.period, other.period)
        mine, theirs = period // self.period, period // other.period

        def total(xs: tuple[int, ...], ys: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(mine * x + theirs * y for x, y in zip(xs, ys, strict=True))

        return CommunicationCost(
            period,
            total(self.bytes_per_period, other.bytes_per_period),
            total(self.messages_per_period, other.messages_per_period),
        )


def communication_cost(
    transformation: optax.GradientTransformation, params: PyTree, topology: Any
) -> CommunicationCost:
    """Bytes and messages that one update makes each worker send.

    The update is evaluated on shapes alone: no array is made and nothing is sent.
    What is counted is what the communicators would hand to MPI: leaves of 1 MiB and
    more are messages of their own, smaller ones share one message per dtype. The
    buffer of an all-reduce is counted once, as the papers do, although a ring of
    workers would pass on `2 (n - 1) / n` of it.

    Args:
      transformation: a mechanism, or a chain that contains some.
      params: ONE worker's parameters, or their shapes (`jax.ShapeDtypeStruct`).
      topology: anything with the number of workers as its `size`.

    Returns:
      A :class:`CommunicationCost`.

    Examples:
      >>> import djax, jax
      >>> ring = djax.topologies.ring(8)
      >>> gossip = djax.gossip(ring, djax.communicators.simulated(8))
      >>> weights = jax.ShapeDtypeStruct((1000,), "float32")
      >>> djax.communication_cost(gossip, weights, ring).mean_bytes
      8000
      >>> rarely = djax.every(4, gossip)
      >>> djax.communication_cost(rarely, weights, ring).mean_messages
      0.5
    """

    with _recording(topology.size):  # Should it communicate, it does so only once.
        state = jax.eval_shape(transformation.init, params)
    with _recording(topology.size) as recorded:
        jax.eval_shape(transformation.update, params, state, params)
    return recorded.cost


class _Ledger:
    """Stands in for a communicator: notes what a worker sends, and sends nothing."""

    def __init__(self, size: int):
        self.size = size
        self.cost = CommunicationCost(1, (0,) * size, (0,) * size)

    def rank(self) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        self._note(tree, [sender != i for i, sender in enumerate(source)])
        return tree

    def mean(self, tree: PyTree) -> PyTree:
        self._note(jax.tree.map(wide, tree), [self.size > 1] * self.size)
        return tree

    def broadcast(self, tree: PyTree) -> PyTree:
        self._note(tree, [rank == 0 for rank in range(self.size)])
        return tree

    def agreed(self, value: jax.Array) -> jax.Array:
        return value

    def alternate(
        self, schedule: Sequence[int], branches: Sequence[Callable], operands: tuple
    ) -> PyTree:
        """Notes branches that the steps take in turn; returns one's result."""
        result, costs = None, []
        for branch in branches:
            with _recording(self.size) as branch_ledger:
                result = branch(*operands)
            costs.append(branch_ledger.cost)
        # Through so many passes of the schedule every branch ends a whole period.
        passes = math.lcm(*(cost.period for cost in costs))
        for index, cost in enumerate(costs):
            taken = passes * schedule.count(index) // cost.period
            self.cost += CommunicationCost(
                passes * len(schedule),
                tuple(taken * b for b in cost.bytes_per_period),
                tuple(taken * m for m in cost.messages_per_period),
            )
        return result

    def _note(self, tree: PyTree, sends: Sequence[bool]) -> None:
        if len(sends) != self.size:
            raise ValueError(
                f"the transformation exchanges between {len(sends)} workers, but its "
                f"cost was asked for {self.size}."
            )
        leaves = jax.tree.leaves(tree)
        size, count = _wire.count_bytes(leaves), _wire.count_messages(leaves)
        self.cost += CommunicationCost(
            1, tuple(size * s for s in sends), tuple(count * s for s in sends)
        )


_LEDGER: contextvars.ContextVar[_Ledger | None] = contextvars.ContextVar(
    "djax_ledger", default=None
)


def ledger() -> _Ledger | None:
    """What stands in for the communicators while a cost is counted, else None."""
    return _LEDGER.get()


@contextlib.contextmanager
def _recording(size: int) -> Iterator[_Ledger]:
    recorded = _Ledger(size)
    token = _LEDGER.set(recorded)
    try:
        yield recorded
    finally:
        _LEDGER.reset(token)


def accounted(verb: Callable) -> Callable:
    """Makes a communicator's verb defer to the ledger while a cost is counted."""

    @functools.wraps(verb)
    def deferring(self, *args):
        if (stand_in := ledger()) is None:
            return verb(self, *args)
        return getattr(stand_in, verb.__name__)(*args)

    return deferring


def _ratio(total: int, count: int) -> int | float:
    return total // count if total % count == 0 else total / count
