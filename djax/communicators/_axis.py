"""Communicators whose workers are the entries of one named axis of a program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, NoReturn, Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from djax._arrays.checks import check_averageable, check_leading_axis
from djax._arrays.precision import promote
from djax._counting import accounted
from djax._interfaces import OutsideError, PyTree
from djax._transformations import lockstep

from . import _common
from ._grouped import Level


def verb_of_axis(verb: Callable) -> Callable:
    """Counts what a method sends, and explains JAX's error of an unbound axis name."""

    @accounted
    @functools.wraps(verb)
    def checked(self, *args, **kwargs):
        try:
            size = jax.lax.axis_size(self.axis_name)
        except NameError as error:
            raise OutsideError(
                f"{verb.__name__} was called outside of the per-worker program: run "
                "it inside communicator.spmd(...), or inside your own jax.vmap or "
                f"jax.shard_map over the axis {self.axis_name!r}."
            ) from error
        if size != self.rows:
            raise ValueError(
                f"the axis {self.axis_name!r} has {size} workers, but the communicator "
                f"has {self.rows}."
            )
        return verb(self, *args, **kwargs)

    return checked


@dataclasses.dataclass(frozen=True)
class AxisCommunicator:
    """The methods that are the same under `vmap` and under `shard_map`."""

    size: int
    axis_name: str
    message_dtype: str | None = None
    rounding_seed: int | None = None
    level: Level | None = dataclasses.field(default=None, kw_only=True)

    drop_probability: ClassVar[float] = 0.0
    maker: ClassVar[str] = "simulated"

    @property
    def name(self) -> str:
        """See :class:`djax.Communicator`."""
        return self.axis_name if self.level is None else self.level.name

    @property
    def whole(self) -> Any:
        """See :class:`djax.Communicator`."""
        return self if self.level is None else self.level.whole

    @property
    def rows(self) -> int:
        """See :class:`djax.Communicator`; arrays of a mesh are global."""
        return self.whole.size

    def at_level(self, level: Level) -> Self:
        """Returns the communicator of one of two levels of groups.

        Args:
          level: see :func:`djax.communicators.grouped`.
        """
        return dataclasses.replace(self, size=level.table.shape[1], level=level)

    def __repr__(self) -> str:
        if self.level is not None:
            return f"{self.level.name}({self.size} of {self.level.whole!r})"
        defaults = dict(axis_name="workers", message_dtype=None, rounding_seed=None)
        shown = [
            f", {name}={getattr(self, name)!r}"
            for name, default in defaults.items()
            if getattr(self, name) != default
        ]
        return f"{self.maker}({self.size}{''.join(shown)})"

    @verb_of_axis
    def rank(self) -> jax.Array:
        """See :class:`djax.Communicator`."""
        rank = jax.lax.axis_index(self.axis_name)
        return rank if self.level is None else jnp.asarray(self.level.place_of)[rank]

    @verb_of_axis
    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """See :class:`djax.Communicator`."""
        _common.check_permutation(source, self.size)
        senders = self._of_all(np.asarray(source)).tolist()
        pairs = [(sender, receiver) for receiver, sender in enumerate(senders)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis_name, pairs), tree)

    def _of_all(self, source: np.ndarray) -> np.ndarray:
        """Turns permutations of `size` ranks into permutations of all workers."""
        return source if self.level is None else self.level.lifted(source)

    def arrived(self, *args: Any, **kwargs: Any) -> bool:
        """See :class:`djax.Communicator`; no message is lost."""
        return True

    def compare_starts(self, name: str, facts: dict[str, Any], after: PyTree) -> None:
        """See :class:`djax.Communicator`; a single program starts all workers."""


@dataclasses.dataclass(frozen=True, repr=False)
class SimulatedCommunicator(AxisCommunicator):
    """Workers that share one device, along an axis of `vmap`.

    Made by :func:`djax.communicators.simulated`.
    """

    shares_device: ClassVar[bool] = True
    sharding: ClassVar[None] = None

    @property
    def local_ranks(self) -> Sequence[int]:
        """Every worker's rank."""
        return range(self.rows)

    @verb_of_axis
    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """See :class:`djax.Communicator`."""
        _common.check_permutation(source, self.size)
        senders = jnp.asarray(self._of_all(np.asarray(source)))
        return self._receive(tree, senders[self._row()])

    @verb_of_axis
    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """See :class:`djax.Communicator`."""
        # One gather serves all permutations; a `lax.switch` would compile each of them.
        table = _common.check_permutations(sources, self.size)
        senders = jnp.asarray(self._of_all(table))
        return self._receive(tree, senders[index, self._row()])

    def _row(self) -> jax.Array:
        """This worker's index among all workers."""
        return jax.lax.axis_index(self.axis_name)

    def _receive(self, tree: PyTree, sender: jax.Array) -> PyTree:
        """Returns the tree of the worker in the row `sender`, `int32[]`.

        With several rows, `int32[...]`, the leaves have their axes in front.

        `jax.lax.ppermute` would ask under `vmap` whether each index is in range, and
        replace the other entries in one more pass over the arrays.
        """

        def of_leaf(x):
            everyones = jax.lax.all_gather(x, self.axis_name)
            return everyones.at[sender].get(mode="promise_in_bounds")

        return jax.tree.map(of_leaf, tree)

    @verb_of_axis
    def agreed(self, value: ArrayLike) -> ArrayLike:
        """See :class:`djax.Communicator`."""
        return jax.lax.pmax(value, self.axis_name)

    @verb_of_axis
    def mean(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        # XLA's CPU backend computes a product ten times faster than a sum over a
        # leading axis.
        check_averageable("mean", tree)
        ones = np.ones(self.size)

        def mean(x):
            everyones = jax.lax.all_gather(promote(x), self.axis_name)
            weights = jnp.asarray(ones, everyones.dtype)
            total = jnp.tensordot(weights, everyones, axes=1, precision="highest")
            return (total / self.size).astype(jnp.result_type(x))

        def mean_of_circle(x):
            circles = self._circles(promote(x))
            ones = jnp.ones(circles.shape[:2], circles.dtype)
            totals = jnp.einsum("cs,cs...->c...", ones, circles, precision="highest")
            total = totals.at[self._place()[0]].get(mode="promise_in_bounds")
            return (total / self.size).astype(jnp.result_type(x))

        return jax.tree.map(mean if self.level is None else mean_of_circle, tree)

    def _circles(self, x: jax.Array) -> jax.Array:
        """`[circles, size, ...]`, the arrays of all workers, without an axis of `vmap`.

        In simulation, groups consist of neighbouring ranks.
        """
        assert self.level is not None
        everyones = jax.lax.all_gather(x, self.axis_name)
        circles, size = self.level.table.shape
        if self.level.name == "local":
            return everyones.reshape(circles, size, *x.shape)
        return everyones.reshape(size, circles, *x.shape).swapaxes(0, 1)

    def _place(self) -> tuple[jax.Array, jax.Array]:
        """This worker's circle, and its rank in the circle."""
        assert self.level is not None
        tables = self.level.circle_of, self.level.place_of
        circle, place = (jnp.asarray(table)[self._row()] for table in tables)
        return circle, place

    @verb_of_axis
    def broadcast(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        if self.level is not None:
            return self._receive(tree, self._members()[0])
        return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axis_name)[0], tree)

    @verb_of_axis
    def all_gather(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        if self.level is not None:
            return self._receive(tree, self._members())
        return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axis_name), tree)

    def _members(self) -> jax.Array:
        """`int32[size]`, the rows of the workers of this worker's circle."""
        assert self.level is not None
        return jnp.asarray(self.level.table)[self._place()[0]]

    def combine(self, tree: PyTree, weights: jax.Array) -> PyTree:
        """Returns a weighted sum of the trees of all workers, in float32 or wider.

        In the program of all workers it is a product of the matrix of their weights and
        the matrix of their trees. Other communicators have no such method, since their
        workers would have to send their trees to all others.

        Args:
          tree: this worker's arrays of floats.
          weights: `float[size]`, this worker's weight for the tree of each worker.
        """

        def of_leaf(x):
            everyones = jax.lax.all_gather(promote(x), self.axis_name)
            mine = weights.astype(everyones.dtype)
            return jnp.tensordot(mine, everyones, axes=1, precision="highest")

        def of_circle(x):
            circles = self._circles(promote(x))
            matrices = self._circles(weights.astype(circles.dtype))
            sums = jnp.einsum(
                "cij,cj...->ci...", matrices, circles, precision="highest"
            )
            return sums.at[self._place()].get(mode="promise_in_bounds")

        return jax.tree.map(of_leaf if self.level is None else of_circle, tree)

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See :class:`djax.Communicator`."""
        _common.check_function(fn)

        @functools.wraps(fn)
        def all_workers(*args, **kwargs):
            check_leading_axis("spmd", args, self.rows, kwargs)
            program = jax.vmap(fn, axis_name=self.axis_name, axis_size=self.rows)
            with lockstep():
                return program(*args, **kwargs)

        return all_workers

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """See :class:`djax.Communicator`."""
        return _common.check_one_each("gather", values, self.rows)

    def hosts(self) -> NoReturn:
        """Raises ValueError, since simulated workers have no hosts."""
        raise ValueError(
            'grouped: by="node" asks on which hosts the workers are, but all workers '
            f"of {self!r} share one device; pass a group_size, such as "
            f"grouped({self!r}, 4)."
        )
