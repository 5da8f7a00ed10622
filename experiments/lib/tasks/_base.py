"""A task: the data, the model and the loss, as the trainer needs to know them."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..data import DataOptions

Sums = dict[str, jax.Array]
GradientFn = Callable[[Any, Any, Any], tuple[Any, Any, dict[str, jax.Array]]]


class Setting(NamedTuple):
    """Which workers learn a task, from which samples, and how they compute gradients.

    Attributes:
      workers: number of workers.
      local_ranks: the workers of this process; data are made for them alone.
      split: which samples each holds, see :mod:`experiments.lib.data`; None for the
        task's own.
      batch_size: samples of a worker's step.
      seed: of the split, the batches and the noise.
      data: where data sets are.
      model: name of the model; None for the task's own.
      model_options: its arguments.
      precision: dtype in which models compute; parameters are float32.
      accumulation: parts of a batch whose gradients are computed one after another.
    """

    workers: int
    local_ranks: Sequence[int]
    split: str | None
    batch_size: int
    seed: int
    data: DataOptions = DataOptions()
    model: str | None = None
    model_options: dict[str, Any] = {}
    precision: str = "float32"
    accumulation: int = 1


class Task(NamedTuple):
    """Data, model and loss.

    Attributes:
      init: `key -> params`, one model's parameters.
      gradient_fn: as :func:`djax.simulation.make_steps` takes it; its metrics have a
        `loss`.
      evaluate: `(params, model_state, batch) -> sums` of one model over a batch of
        held-out samples: `samples`, how many there are, and measures summed over them.
      held_out: makes these batches.
      score: which measure counts.
      higher_is_better: whether a good score is a high one.
      batches: `(start, stop) -> tree`, of the steps from `start` to `stop - 1`, counted
        from the start of the training; for the local workers, leaves
        `[local, stop - start, ...]`.
      steps_per_epoch: number of steps in one epoch.
      model_state: of the local workers, leaves `[local, ...]`; `()` if there is none.
      statistics: `(params, batch) -> model state` of the batch alone. An averaged model
        gets its model state from these. None if it needs none.
      pooled_statistics: whether the variances of an averaged model are those of all
        batches together, the mean of the batches' variances plus the variance of the
        batches' means; otherwise the variance of the means is left out.
      derive: adds to the means of all measures what follows from them.
      dispatch: as :func:`djax.simulation.make_steps` takes it.
      class_counts: `int[workers, classes]`, how many samples of each class a worker
        holds; None without classes.
      epochs: how many are enough, unless the command line says otherwise.
    """

    init: Callable[[jax.Array], Any]
    gradient_fn: GradientFn
    evaluate: Callable[[Any, Any, Any], Sums]
    held_out: Callable[[], Iterable[Any]]
    score: str
    higher_is_better: bool
    batches: Callable[[int, int], Any]
    steps_per_epoch: int
    model_state: Any = ()
    statistics: Callable[[Any, Any], Any] | None = None
    pooled_statistics: bool = False
    derive: Callable[[dict[str, Any]], dict[str, Any]] = lambda means: means
    dispatch: bool = False
    class_counts: np.ndarray | None = None
    epochs: int = 40

    def epoch(self, number: int) -> Any:
        """The batches of an epoch, counted from 1."""
        return self.batches(
            (number - 1) * self.steps_per_epoch, number * self.steps_per_epoch
        )

    def assess(self, params: Any, model_state: Any = ()) -> dict[str, jax.Array]:
        """Means of the measures of one model over all that is held out; jittable."""
        sums = [self.evaluate(params, model_state, batch) for batch in self.held_out()]
        return self.average(jax.tree.map(lambda *xs: sum(xs), *sums))

    def average(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Means of the measures, from their sums over all batches."""
        means = {k: v / sums["samples"] for k, v in sums.items() if k != "samples"}
        return self.derive(means)


def make_keys(local_ranks: Sequence[int], start: int, stop: int) -> np.ndarray:
    """`uint32[local, stop - start, 3]`: worker, step, and part of the batch, 0."""
    steps = np.arange(start, stop)
    keys = np.zeros((len(local_ranks), len(steps), 3), np.uint32)
    keys[..., 0] = np.asarray(local_ranks)[:, None]
    keys[..., 1] = steps
    return keys


def random_key(seed: int, numbers: jax.Array) -> jax.Array:
    """The key of a part of a worker's step, of `uint32[3]` from :func:`make_keys`."""
    key = jax.random.key(seed)
    for i in range(3):
        key = jax.random.fold_in(key, numbers[i])
    return key


def make_gradient_fn(
    loss_fn: Callable[[Any, Any, Any], tuple[jax.Array, Any]], parts: int, *, rows: bool
) -> GradientFn:
    """Makes a gradient function of a loss, which may go through a batch in parts.

    Args:
      loss_fn: `(params, model_state, batch) -> (loss, model_state)`.
      parts: how many parts of a batch are computed one after another, to need less
        memory. It divides the number of samples. With several, batches are
        dictionaries, with leaves `[samples, ...]` but for `key`.
      rows: whether the model state has a row for each sample, as that of a recurrent
        network. If not, each part starts with what the last one has left.

    Returns:
      As `gradient_fn` of a :class:`Task`; the loss is the mean over the parts.
    """

    def gradient_fn(params, model_state, batch):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, after), grads = gradient(params, model_state, batch)
        return grads, after, {"loss": loss}

    return gradient_fn if parts == 1 else _accumulate(gradient_fn, parts, rows)


def _accumulate(gradient_fn: GradientFn, parts: int, rows: bool) -> GradientFn:
    def cut(tree):
        return jax.tree.map(
            lambda x: (
                jnp.stack([x] * parts)
                if x.ndim == 0
                else x.reshape(parts, -1, *x.shape[1:])
            ),
            tree,
        )

    def accumulated(params, model_state, batch):
        batch = dict(batch)
        key = batch.pop("key")
        keys = jnp.stack([key.at[2].set(i) for i in range(parts)])
        pieces = cut(batch) | {"key": keys}
        first = jax.tree.map(lambda x: x[0], pieces)
        states = cut(model_state) if rows else None
        before = jax.tree.map(lambda x: x[0], states) if rows else model_state

        def part(carry, piece):
            sums, state = carry
            piece, own = piece
            grads, after, metrics = gradient_fn(params, own if rows else state, piece)
            sums = jax.tree.map(lambda a, b: a + b / parts, sums, (grads, metrics))
            return (sums, before if rows else after), after if rows else None

        like = jax.eval_shape(gradient_fn, params, before, first)
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (like[0], like[2]))
        (sums, state), own = jax.lax.scan(part, (zeros, before), (pieces, states))
        if rows:
            state = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own)
        return sums[0], state, sums[1]

    return accumulated
