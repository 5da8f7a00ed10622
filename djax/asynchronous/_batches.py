"""Which batch each gradient takes."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from djax._base import PyTree
from djax.communicators._common import check_leading_axis

from ._events import Events


class Batches:
    """The batches of the gradients, in the order of the events.

    A worker takes its own, one after another, epoch by epoch. Workers are in different
    epochs at the same time; only those epochs are kept that are in use.
    """

    def __init__(self, batches: Callable[[int], PyTree], events: Events):
        """Looks at the first epoch; raises ValueError if its leaves do not fit."""
        self._batches = batches
        self._epochs = {0: batches(0)}
        check_leading_axis("simulate: batches", (self._epochs[0],), events.size)
        shapes = {np.shape(x)[1:2] for x in jax.tree.leaves(self._epochs[0])}
        if len(shapes) != 1 or shapes & {(), (0,)}:
            raise ValueError(
                "simulate: the leaves of an epoch's batches need two leading axes, "
                f"workers and steps, the same for all; got {sorted(shapes)} steps."
            )
        self._steps = shapes.pop()[0]
        self._worker = events.worker[events.is_gradient]
        self._turn = _turns(self._worker)
        self._taken = 0

    def take(self, count: int, size: int) -> PyTree:
        """The batches of the next `count` gradients, leaves `[size, ...]`."""
        now = slice(self._taken, self._taken + count)
        self._taken += count
        worker, (epoch, step) = (
            self._worker[now],
            np.divmod(self._turn[now], self._steps),
        )
        needed = np.unique(epoch).tolist() or list(self._epochs)[:1]
        self._epochs = {
            e: self._epochs[e] if e in self._epochs else self._batches(e)
            for e in needed
        }

        def pick(*leaves):
            result = np.zeros((size, *leaves[0].shape[2:]), leaves[0].dtype)
            for e, leaf in zip(needed, leaves, strict=True):
                where = np.flatnonzero(epoch == e)
                result[where] = np.asarray(leaf)[worker[where], step[where]]
            return jnp.asarray(result)

        return jax.tree.map(pick, *self._epochs.values())


def _turns(workers: np.ndarray) -> np.ndarray:
    """How often each entry occurred before, `int64[len(workers)]`."""
    order = np.argsort(workers, kind="stable")
    _, counts = np.unique(workers, return_counts=True)
    turns = np.empty(len(workers), np.int64)
    turns[order] = np.concatenate([np.arange(count) for count in counts])
    return turns
