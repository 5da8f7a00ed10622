"""A few steps of an optimizer on tiny models, as :func:`djax.check` needs them.

The caller chooses the models from which a group of workers starts, and their gradients.
One compiled program advances every group. It averages its measurements over all
workers, so that all processes come to the same verdict.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.checks import named_leaves
from djax._arrays.precision import promote
from djax._interfaces import Communicator, PyTree

STEPS = 64
"""Number of steps in one call of the compiled program."""


class Group(NamedTuple):
    """Workers with constant gradients; the leaves have an axis of local workers.

    Attributes:
      params: the models of the workers.
      gradient: the gradients of the workers, a tree like the models.
      state: the states of their optimizers.
    """

    params: PyTree
    gradient: PyTree
    state: PyTree


class Seen(NamedTuple):
    """What is measured after some steps, for each leaf of floats that is not empty.

    Attributes:
      mean: the mean of the workers' models, an array for each leaf.
      distance: `float[leaves]`, the mean squared distance of the models to that mean.
      changed: `bool[workers, leaves]`, whether the models differ, bit for bit, from
        those of the group with which they are compared.
      climbed: `float[steps, leaves]`, how many gradients each step has added.
    """

    mean: Any
    distance: Any
    changed: Any
    climbed: Any


class Trial:
    """Starts groups of workers, and lets them make steps.

    Attributes:
      size: number of workers.
      paths: names of the leaves that are measured.
      precisions: `float[leaves]`, the distance from 1 to the next number in the dtype.
    """

    def __init__(
        self,
        optimizer: optax.GradientTransformationExtraArgs,
        communicator: Communicator,
        shapes: PyTree,
        groups: np.ndarray | None = None,
    ) -> None:
        """Prepares a trial; nothing is compiled yet.

        Args:
          optimizer: the optimizer that every worker runs.
          communicator: connects the workers.
          shapes: the shapes of one worker's model.
          groups: `int[workers]`, the number of each worker's group, if the workers of a
            group have to start equal. Each group then counts as one worker.
        """
        count = communicator.size
        self._groups = np.arange(count) if groups is None else groups
        self.size, self._shapes = int(self._groups.max()) + 1, shapes
        self._shares_device = communicator.shares_device
        self.paths = [path for path, x in named_leaves(shapes) if _is_measured(x)]
        leaves = measured(shapes)
        self.precisions = np.array([float(jnp.finfo(x.dtype).eps) for x in leaves])
        everybody = communicator.rows == count
        ranks = range(count) if everybody else communicator.local_ranks
        self._rows = self._groups[list(ranks)]
        self._init = jax.jit(communicator.spmd(optimizer.init))
        advance = functools.partial(_advance, optimizer, communicator)
        self._advance = jax.jit(communicator.spmd(advance))

    def models(self, scale: float = 1.0, seed: int = 0) -> PyTree:
        """Draws models of all workers, `[size, ...]`, whose mean is zero.

        Args:
          scale: the largest entry, roughly.
          seed: seed of the draws.
        """
        rng = np.random.default_rng(seed)

        def draw(x):
            if not _is_measured(x):
                return np.zeros((self.size, *x.shape), x.dtype)
            values = rng.uniform(-scale, scale, (self.size, *x.shape))
            return (values - values.mean(0)).astype(x.dtype)

        return jax.tree.map(draw, self._shapes)

    def gradients(self) -> PyTree:
        """Draws one gradient for all workers.

        No optimizer makes steps as long as this gradient. If a step has its length, the
        gradient was added to the model as it is.
        """
        rng = np.random.default_rng(1)

        def draw(x):
            gradient = rng.choice([-0.75, -0.5, 0.5, 0.75], x.shape)
            return np.broadcast_to(gradient.astype(x.dtype), (self.size, *x.shape))

        return jax.tree.map(draw, self._shapes)

    def replaced(self, models: PyTree, others: PyTree, where: np.ndarray) -> PyTree:
        """Replaces the models of some workers.

        Args:
          models: the models of all workers, `[size, ...]`.
          others: the models that replace them, `[size, ...]`.
          where: `bool[size, leaves]` or `bool[size, 1]`, which models are replaced.
            Leaves that are not measured stay as they are.
        """
        where = np.broadcast_to(where, (self.size, len(self.paths)))
        columns = iter(where.T)

        def choose(x, y):
            if not _is_measured(x):
                return x
            rows = next(columns).reshape(-1, *[1] * (x.ndim - 1))
            return np.where(rows, y, x).astype(x.dtype)

        return jax.tree.map(choose, models, others)

    def group(self, models: PyTree, gradients: PyTree) -> Group:
        """Starts a group of workers.

        Args:
          models: the models of all workers, `[size, ...]`.
          gradients: the gradients of all workers, `[size, ...]`.
        """
        models, gradients = jax.tree.map(lambda x: x[self._rows], (models, gradients))
        return Group(models, gradients, self._init(models))

    def advance(self, group: Group, other: PyTree) -> tuple[Group, Seen]:
        """Lets a group of workers make :data:`STEPS` steps.

        Args:
          group: the workers.
          other: models with which those of the group are compared afterwards.
        """
        params, state, seen = self._advance(*group, other)
        # The row is the same for all workers. On a mesh of several hosts, it has to be
        # one of this host.
        found = jax.tree.map(lambda x: np.asarray(x.addressable_data(0))[0], seen)
        if self._shares_device:  # Each row has what has changed of this worker alone.
            found = found._replace(changed=np.asarray(seen.changed))
        changed = [found.changed[self._groups == i].any(0) for i in range(self.size)]
        found = found._replace(changed=np.array(changed))
        return Group(params, group.gradient, state), found


def _advance(
    optimizer: optax.GradientTransformationExtraArgs,
    communicator: Communicator,
    params: PyTree,
    gradient: PyTree,
    state: PyTree,
    other: PyTree,
) -> tuple[PyTree, PyTree, Seen]:
    """Makes all steps of one worker in one call, and measures all workers."""

    def step(carry, _):
        before, state = carry
        updates, state = optimizer.update(gradient, state, before)
        after = optax.apply_updates(before, updates)
        steps = zip(*map(measured, (before, after, gradient)), strict=True)
        return (after, state), jnp.stack([_climbed(*leaf) for leaf in steps])

    (params, state), climbed = jax.lax.scan(step, (params, state), length=STEPS)
    mine, theirs = measured(params), measured(other)
    mean = communicator.mean([promote(x) for x in mine])
    distances = [
        jnp.mean(jnp.square(jnp.abs(promote(x) - m)))
        for x, m in zip(mine, mean, strict=True)
    ]
    changed = jnp.stack([jnp.any(x != y) for x, y in zip(mine, theirs, strict=True)])
    if not communicator.shares_device:
        is_mine = np.arange(communicator.size) == communicator.rank()
        everyones = (is_mine[:, None] & changed).astype(jnp.float32)
        changed = communicator.mean(everyones) > 0
    distance, climbed = communicator.mean((jnp.stack(distances), climbed))
    return params, state, Seen(mean, distance, changed, climbed)


def _climbed(before: jax.Array, after: jax.Array, gradient: jax.Array) -> jax.Array:
    """How many gradients a step has added: its projection on the gradient."""
    before, after, gradient = map(promote, (before, after, gradient))
    along = jnp.sum(jnp.real(jnp.conj(gradient) * (after - before)))
    square = jnp.sum(jnp.square(jnp.abs(gradient)))
    return jnp.where(square > 0, along / jnp.where(square > 0, square, 1), 0)


def _is_measured(x: Any) -> bool:
    return jnp.issubdtype(x.dtype, jnp.inexact) and x.size > 0


def measured(tree: PyTree) -> list[Any]:
    """The leaves of a tree like the models that are measured."""
    return [x for x in jax.tree.leaves(tree) if _is_measured(x)]
