"""Counts what a worker's program sends, by a stand-in for its communicators.

While :func:`djax.communication_cost` traces a program, the methods of communicators
call a :class:`_Counter` in place of sending messages. The counter leaves marks with
their costs in the traced program, which are added up afterwards.
"""

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from ._arrays.precision import promote
from ._context import setting
from ._interfaces import PyTree
from ._transformations import lockstep
from .transport import count_bytes, count_messages


@dataclasses.dataclass(frozen=True)
class CommunicationCost:
    """The bytes and messages that each worker sends, as exact integers.

    Attributes:
      period: number of steps after which the sending repeats itself.
      bytes_per_period: `int[n]`, bytes that each rank sends in `period` steps, without
        headers.
      messages_per_period: `int[n]`, messages that each rank sends in `period` steps.
      by_name: the cost of each communicator alone, by its `name`, such as the levels
        "local" and "across" of :func:`djax.communicators.grouped`. `cost["local"]` is
        short for `cost.by_name["local"]`.
    """

    period: int
    bytes_per_period: tuple[int, ...]
    messages_per_period: tuple[int, ...]
    by_name: Mapping[str, "CommunicationCost"] = dataclasses.field(
        default_factory=dict, compare=False, repr=False
    )

    @property
    def bytes_per_step(self) -> tuple[int | float, ...]:
        """Bytes that each rank sends in a step, averaged over the period."""
        return tuple(_ratio(b, self.period) for b in self.bytes_per_period)

    @property
    def messages_per_step(self) -> tuple[int | float, ...]:
        """Messages that each rank sends in a step, averaged over the period."""
        return tuple(_ratio(m, self.period) for m in self.messages_per_period)

    @property
    def mean_bytes(self) -> int | float:
        """Bytes per worker and step, averaged over the workers."""
        return _ratio(sum(self.bytes_per_period), self.period * self.size)

    @property
    def max_bytes(self) -> int | float:
        """Bytes per step of the worker that sends the most bytes."""
        return max(self.bytes_per_step)

    @property
    def mean_messages(self) -> int | float:
        """Messages per worker and step, averaged over the workers."""
        return _ratio(sum(self.messages_per_period), self.period * self.size)

    @property
    def max_messages(self) -> int | float:
        """Messages per step of the worker that sends the most messages."""
        return max(self.messages_per_step)

    @property
    def size(self) -> int:
        """Number of workers."""
        return len(self.bytes_per_period)

    def __getitem__(self, name: str) -> "CommunicationCost":
        """The cost of the communicator of this name alone."""
        if name not in self.by_name:
            raise KeyError(
                f"no communicator named {name!r} sends anything, only "
                f"{', '.join(self.by_name) or 'none at all'}"
            )
        return self.by_name[name]

    def __repr__(self) -> str:
        numbers = (self.period, self.bytes_per_period, self.messages_per_period)
        names = ("period", "bytes_per_period", "messages_per_period")
        shown = [f"{name}={x}" for name, x in zip(names, numbers, strict=True)]
        if len(self.by_name) > 1:
            shown += [f"{name}: {cost!r}" for name, cost in self.by_name.items()]
        return f"CommunicationCost({', '.join(shown)})"

    def __add__(self, other: "CommunicationCost") -> "CommunicationCost":
        """The cost of sending both, over the least common multiple of the periods."""
        period = math.lcm(self.period, other.period)
        mine, theirs = period // self.period, period // other.period

        def total(xs: tuple[int, ...], ys: tuple[int, ...]) -> tuple[int, ...]:
            return tuple(mine * x + theirs * y for x, y in zip(xs, ys, strict=True))

        by_name = dict(self.by_name)
        for name, cost in other.by_name.items():
            by_name[name] = by_name[name] + cost if name in by_name else cost
        return CommunicationCost(
            period,
            total(self.bytes_per_period, other.bytes_per_period),
            total(self.messages_per_period, other.messages_per_period),
            by_name,
        )

    def times(self, count: int, period: int | None = None) -> "CommunicationCost":
        """The cost of sending `count` times as much.

        Args:
          count: the factor.
          period: the period of the result; by default that of this cost.
        """
        return CommunicationCost(
            self.period if period is None else period,
            tuple(count * b for b in self.bytes_per_period),
            tuple(count * m for m in self.messages_per_period),
            {name: cost.times(count, period) for name, cost in self.by_name.items()},
        )


@functools.cache
def _mark() -> Any:
    """The primitive that marks a place at which a program would send a message."""
    import jax.extend  # Here, so that `import djax` need not wait for it.

    mark = jax.extend.core.Primitive("djax_message")
    mark.multiple_results = True
    mark.def_abstract_eval(lambda *avals, cost: avals)
    return mark


class _Counter:
    """Replaces a communicator: marks what a worker would send, and sends nothing.

    Attributes:
      size: number of workers of the communicator, which exchange messages.
      name: the name of the communicator.
      ranks: the rank in the communicator of each worker of the run. Several workers
        have one rank if the communicator is a level of groups.
    """

    def __init__(self, size: int, name: str, ranks: Sequence[int]):
        self.size, self.name, self.ranks = size, name, ranks

    def rank(self) -> jax.Array:
        return jnp.zeros((), jnp.int32)

    def agreed(self, value: ArrayLike) -> ArrayLike:
        return value

    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        return self._mark(tree, tree, [sender != i for i, sender in enumerate(source)])

    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """Counts a period in which each of the permutations is used once."""
        times = (np.asarray(sources) != np.arange(self.size)).sum(axis=0).tolist()
        return self._mark(tree, tree, times, period=len(sources))

    def mean(self, tree: PyTree) -> PyTree:
        wire = jax.tree.map(promote, tree)
        return self._mark(tree, wire, [self.size > 1] * self.size)

    def broadcast(self, tree: PyTree) -> PyTree:
        return self._mark(tree, tree, [rank == 0 for rank in range(self.size)])

    def all_gather(self, tree: PyTree) -> PyTree:
        repeated = jax.tree.map(lambda x: jnp.stack([x] * self.size), tree)
        return self._mark(repeated, tree, [self.size > 1] * self.size)

    def alternate(
        self, schedule: Sequence[int], branches: Sequence[Callable], operands: tuple
    ) -> PyTree:
        """Marks what alternating branches send; the result has the right shapes."""
        tracing = functools.partial(jax.make_jaxpr, return_shape=True)
        traces = [tracing(branch)(*operands) for branch in branches]
        costs = [cost_of(program.jaxpr, self.size) for program, _ in traces]
        # The number of passes through the schedule after which each branch has gone
        # through whole periods of its own.
        taken = [(cost, schedule.count(index)) for index, cost in enumerate(costs)]
        passes = math.lcm(*(c.period // math.gcd(c.period, n) for c, n in taken))
        period = passes * len(schedule)
        total = CommunicationCost(period, (0,) * self.size, (0,) * self.size)
        for cost, count in taken:
            total += cost.times(passes * count // cost.period, period)
        _, shapes = traces[0]
        result = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        return self._bind(result, total)

    def _mark(
        self, tree: PyTree, wire: PyTree, times: Sequence[int], period: int = 1
    ) -> PyTree:
        """Marks that each rank sends `wire` so many times in a period."""
        times = [times[rank] for rank in self.ranks]
        leaves = [jnp.asarray(leaf) for leaf in jax.tree.leaves(wire)]
        size, count = count_bytes(leaves), count_messages(leaves)
        cost = CommunicationCost(
            period, tuple(size * n for n in times), tuple(count * n for n in times)
        )
        named = dataclasses.replace(cost, by_name={self.name: cost})
        return self._bind(tree, named)

    def _bind(self, tree: PyTree, cost: CommunicationCost) -> PyTree:
        leaves, treedef = jax.tree.flatten(tree)
        return jax.tree.unflatten(treedef, _mark().bind(*leaves, cost=cost))


_TRACES = itertools.count()
_COUNTER: ContextVar[_Counter | None] = ContextVar("djax_counter", default=None)


def present_counter() -> _Counter | None:
    """Returns the counter while a cost is counted, and None otherwise."""
    return _COUNTER.get()


def accounted(verb: Callable) -> Callable:
    """Makes a communicator's method call the counter while a cost is counted.

    Args:
      verb: a method of a communicator that sends something, such as `permute`.

    Returns:
      The method. While :func:`communication_cost` traces a program, it adds to the
      count and sends nothing.
    """

    @functools.wraps(verb)
    def deferring(self, *args, **kwargs):
        if (stand_in := present_counter()) is None:
            return verb(self, *args, **kwargs)
        whole = self.whole.size
        if whole != stand_in.size:
            raise ValueError(
                f"the transformation exchanges between {whole} workers, but its "
                f"cost was asked for {stand_in.size}."
            )
        ranks = range(whole) if self.level is None else self.level.place_of.tolist()
        named = _Counter(self.size, self.name, ranks)
        return getattr(named, verb.__name__)(*args, **kwargs)

    return deferring


def trace(size: int, fn: Callable, *args: PyTree) -> tuple[Any, PyTree]:
    """Traces the program of a worker; returns its jaxpr and the shapes of its results.

    The trace has a new axis name each time. Otherwise `jit` would use the trace, which
    sends nothing, for the same functions in a program that really sends messages.
    """
    axis_name = f"djax.accounting.{next(_TRACES)}"
    alone = jax.vmap(fn, in_axes=None, out_axes=None, axis_size=1, axis_name=axis_name)
    with setting(_COUNTER, _Counter(size, "", range(size))), lockstep():
        program, shapes = jax.make_jaxpr(alone, return_shape=True)(*args)
    return program.jaxpr, shapes


def cost_of(jaxpr: Any, size: int) -> CommunicationCost:
    """Adds up the costs of all marks in a traced program."""
    total = nothing = CommunicationCost(1, (0,) * size, (0,) * size)
    for equation in jaxpr.eqns:
        if equation.primitive is _mark():
            total += equation.params["cost"]
            continue
        costs = [cost_of(inner, size) for inner in jaxprs_in(equation)]
        match equation.primitive.name:
            case "scan":
                total += costs[0].times(equation.params["length"])
            case "cond" if all(cost == costs[0] for cost in costs):
                total += costs[0]
            case "while" | "cond" as name if any(cost != nothing for cost in costs):
                raise ValueError(
                    f"what the transformation sends depends on values, in a {name}: "
                    "communicate in some steps by djax.every, and loop by lax.scan."
                )
            case _:
                total = sum(costs, total)
    return total


def jaxprs_in(equation: Any) -> Iterator[Any]:
    for value in equation.params.values():
        for inner in value if isinstance(value, (tuple, list)) else [value]:
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield inner


def _ratio(total: int, count: int) -> int | float:
    return total // count if total % count == 0 else total / count
