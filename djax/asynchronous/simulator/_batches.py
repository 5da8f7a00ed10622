"""Selects the batch from which each gradient is computed."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.checks import check_leading_axis
from djax._arrays.keys import is_key
from djax._interfaces import PyTree

from ._events import Events


class Batches:
    """The batches of all workers' gradients, in the order of the events.

    A worker uses its own batches one after another, epoch by epoch. Since workers may
    be in different epochs at the same time, an epoch stays in memory until the slowest
    worker has passed it.

    Args:
      batches: `epoch -> tree` with leaves `[workers, steps, ...]`.
      events: the events of the simulation.

    Attributes:
      example: the first batch of the first worker.

    Raises:
      TypeError: if `batches` is no function.
      ValueError: if the leaves of an epoch have other leading axes.
    """

    def __init__(self, batches: Callable[[int], PyTree], events: Events):
        """Loads the first epoch."""
        self._batches, self._size = batches, events.size
        self._epochs: dict[int, PyTree] = {}
        self._steps = 0  # Per epoch; 0 until the first epoch is loaded.
        first = self._epoch(0)
        self._steps = jax.tree.leaves(first)[0].shape[1]
        self._worker = events.worker[events.is_gradient]
        self._turn = _turns(self._worker)
        self._earliest = np.minimum.accumulate(self._turn[::-1])[::-1]
        self._taken = 0
        self.example = jax.tree.map(lambda x: x[0, 0], first)

    def _epoch(self, epoch: int) -> PyTree:
        if epoch not in self._epochs:
            self._epochs[epoch] = _load(
                "simulate", self._batches, epoch, self._size, self._steps
            )
        return self._epochs[epoch]

    def take(self, count: int, size: int) -> PyTree:
        """Returns the next `count` batches, padded to leaves `[size, ...]`."""
        if not count:
            return jax.tree.map(
                lambda x: jnp.broadcast_to(x, (size, *x.shape)), self.example
            )
        now = slice(self._taken, self._taken + count)
        worker = self._worker[now]
        epoch, step = np.divmod(self._turn[now], self._steps)
        order = np.argsort(epoch, kind="stable")
        needed, starts = np.unique(epoch[order], return_index=True)
        groups = np.split(order, starts[1:])
        epochs = [self._epoch(e) for e in needed.tolist()]

        def pick(*leaves):
            if is_key(leaves[0]):
                data = pick(*map(jax.random.key_data, leaves))
                return jax.random.wrap_key_data(
                    data, impl=jax.random.key_impl(leaves[0])
                )
            result = np.empty((size, *leaves[0].shape[2:]), leaves[0].dtype)
            result[count:] = 0
            for group, leaf in zip(groups, leaves, strict=True):
                result[group] = np.asarray(leaf)[worker[group], step[group]]
            return jax.device_put(result)

        taken = jax.tree.map(pick, *epochs)
        self._taken += count
        if self._taken < len(self._turn):
            passed = self._earliest[self._taken] // self._steps
            self._epochs = {e: b for e, b in self._epochs.items() if e >= passed}
        return taken


class OwnBatches:
    """The batches of one worker's gradients, in their order.

    Args:
      batches: `epoch -> tree` with leaves `[1, steps, ...]`.

    Attributes:
      example: the first batch.

    Raises:
      TypeError: if `batches` is no function.
      ValueError: if the leaves of an epoch have other leading axes.
    """

    def __init__(self, batches: Callable[[int], PyTree]):
        """Loads the first epoch."""
        self._batches, self._steps = batches, 0
        self._epoch, self._data = 0, self._load(0)
        self._steps = jax.tree.leaves(self._data)[0].shape[1]
        self.example = jax.tree.map(lambda x: x[0, 0], self._data)

    def _load(self, epoch: int) -> PyTree:
        return _load("run", self._batches, epoch, 1, self._steps)

    def locate(self, turn: int) -> tuple[PyTree, int]:
        """Returns where the batch of the worker's gradient number `turn` is.

        Args:
          turn: number of the gradient, from 0 on.

        Returns:
          The epoch's batches, leaves `[1, steps, ...]`, and the index of the step.
        """
        epoch, step = divmod(turn, self._steps)
        if epoch != self._epoch:
            self._epoch, self._data = epoch, self._load(epoch)
        return self._data, step


def _load(
    name: str, batches: Callable[[int], PyTree], epoch: int, size: int, steps: int
) -> PyTree:
    """Loads an epoch, and checks it.

    Args:
      name: the function of djax that was given `batches`, for the error.
      batches: the function that returns an epoch.
      epoch: number of the epoch.
      size: number of workers.
      steps: number of steps of the first epoch, or 0 if it is not known yet.

    Raises:
      TypeError: if `batches` is no function.
      ValueError: unless the leaves are `[size, steps, ...]`.
    """
    if not callable(batches):
        raise TypeError(
            f"{name}: batches must be a function from the number of an epoch to its "
            f"batches, such as `lambda epoch: ...`; got {type(batches).__name__}."
        )
    made = batches(epoch)
    check_leading_axis(f"{name}: batches", (made,), size)
    counts = {np.shape(x)[1:2] for x in jax.tree.leaves(made)}
    if len(counts) != 1 or counts & {(), (0,)}:
        raise ValueError(
            f"{name}: the leaves of an epoch's batches need two leading axes, "
            f"workers and steps, the same for all; got {sorted(counts)} steps."
        )
    if steps and counts != {(steps,)}:
        raise ValueError(
            f"{name}: epoch {epoch} has {counts.pop()[0]} steps, but epoch 0 has "
            f"{steps}."
        )
    return made


def _turns(workers: np.ndarray) -> np.ndarray:
    """Counts the earlier occurrences of each entry's worker, `int64[len(workers)]`."""
    order = np.argsort(workers, kind="stable")
    _, counts = np.unique(workers, return_counts=True)
    turns = np.empty(len(workers), np.int64)
    turns[order] = np.concatenate([np.arange(count) for count in counts])
    return turns
