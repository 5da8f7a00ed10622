"""Communicators whose workers are the entries of one named axis of a program."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

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
        if size != self.size:
            raise ValueError(
                f"the axis {self.axis_name!r} has {size} workers, but the communicator "
                f"has {self.size}."
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

    drop_probability: ClassVar[float] = 0.0
    maker: ClassVar[str] = "simulated"

    @property
    def name(self) -> str:
        """See :class:`djax.Communicator`."""
        return self.axis_name

    @property
    def rows(self) -> int:
        """See :class:`djax.Communicator`; arrays of a mesh are global."""
        return self.size

    def __repr__(self) -> str:
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
        return jax.lax.axis_index(self.axis_name)

    @verb_of_axis
    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """See :class:`djax.Communicator`."""
        _common.check_permutation(source, self.size)
        pairs = [(sender, receiver) for receiver, sender in enumerate(source)]
        return jax.tree.map(lambda x: jax.lax.ppermute(x, self.axis_name, pairs), tree)

    @verb_of_axis
    def mean(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        check_averageable("mean", tree)
        if self.size == 1:  # XLA refuses a sum of one if other axes are not manual.
            return jax.tree.map(jnp.asarray, tree)

        def mean(x):
            return jax.lax.pmean(promote(x), self.axis_name).astype(jnp.result_type(x))

        return jax.tree.map(mean, tree)

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
        return range(self.size)

    @verb_of_axis
    def permute(self, tree: PyTree, source: Sequence[int]) -> PyTree:
        """See :class:`djax.Communicator`."""
        _common.check_permutation(source, self.size)
        return self._receive(tree, jnp.asarray(source)[self.rank()])

    @verb_of_axis
    def permute_one_of(
        self, tree: PyTree, sources: Sequence[Sequence[int]], index: ArrayLike
    ) -> PyTree:
        """See :class:`djax.Communicator`."""
        # One gather serves all permutations; a `lax.switch` would compile each of them.
        table = _common.check_permutations(sources, self.size)
        return self._receive(tree, jnp.asarray(table)[index, self.rank()])

    def _receive(self, tree: PyTree, sender: jax.Array) -> PyTree:
        """Returns the tree of the worker with the rank `sender`, `int32[]`.

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

        return jax.tree.map(mean, tree)

    @verb_of_axis
    def broadcast(self, tree: PyTree) -> PyTree:
        """See :class:`djax.Communicator`."""
        return jax.tree.map(lambda x: jax.lax.all_gather(x, self.axis_name)[0], tree)

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

        return jax.tree.map(of_leaf, tree)

    def spmd(self, fn: Callable[..., PyTree]) -> Callable[..., PyTree]:
        """See :class:`djax.Communicator`."""
        _common.check_function(fn)

        @functools.wraps(fn)
        def all_workers(*args, **kwargs):
            check_leading_axis("spmd", args, self.size, kwargs)
            program = jax.vmap(fn, axis_name=self.axis_name, axis_size=self.size)
            with lockstep():
                return program(*args, **kwargs)

        return all_workers

    def gather(self, values: Sequence[Any]) -> list[Any]:
        """See :class:`djax.Communicator`."""
        return _common.check_one_each("gather", values, self.size)
