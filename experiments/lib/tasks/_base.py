"""Defines a task: data, model and loss in the form in which trainings use them."""

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

    Only the data of the workers of this process, the `local_ranks`, are read. All other
    fields but `workers` are options of the same names.
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
    """Everything that a training must know about its learning problem.

    Attributes:
      init: `key -> params`, makes the parameters of one model.
      gradient_fn: the gradient, in the form that :func:`djax.simulation.make_steps`
        takes; its metrics contain the `loss`.
      evaluate: `(params, model_state, batch) -> sums`, evaluates one model on a batch
        of held-out samples. The sums have `samples`, the number of samples, and each
        measure, summed over the samples.
      held_out: returns the batches of all held-out samples.
      score: name of the measure by which models are compared.
      batches: `(start, stop) -> tree`, the batches of the local workers in the steps
        from `start` to `stop - 1`, counted from the start of the training. Leaves are
        `[local, stop - start, ...]`.
      model_state: initial state of the local workers' models, such as running
        statistics; leaves are `[local, ...]`. `()` if models have no state.
      statistics: `(params, batch) -> model_state`, the model state for one batch alone.
        An averaged model gets its model state from these. None if it needs none.
      pooled_statistics: whether the variances of an averaged model are those of all
        batches together. Otherwise the variance of the batches' means is left out.
      derive: takes the means of all measures, and adds measures that follow from them.
      dispatch: argument of :func:`djax.simulation.make_steps`.
      split: the class of each training sample, and the indices of each worker's
        samples in the first epoch; None without classes.
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
    split: tuple[np.ndarray, Sequence[np.ndarray]] | None = None
    epochs: int = 40

    def epoch(self, number: int) -> Any:
        """Returns the batches of an epoch; epochs are counted from 1."""
        return self.batches(
            (number - 1) * self.steps_per_epoch, number * self.steps_per_epoch
        )

    def assess(self, params: Any, model_state: Any = ()) -> dict[str, jax.Array]:
        """Evaluates one model on all held-out samples; may be compiled by `jax.jit`."""
        sums = [self.evaluate(params, model_state, batch) for batch in self.held_out()]
        return self.average(jax.tree.map(lambda *xs: sum(xs), *sums))

    def average(self, sums: dict[str, Any]) -> dict[str, Any]:
        """Divides the sums of the measures by the number of samples."""
        means = {k: v / sums["samples"] for k, v in sums.items() if k != "samples"}
        return self.derive(means)


def make_keys(local_ranks: Sequence[int], start: int, stop: int) -> np.ndarray:
    """Makes the numbers that :func:`random_key` turns into random keys.

    They are `uint32[local, stop - start, 3]`: rank, step, and 0 for a part of a batch.
    """
    ranks, steps = np.meshgrid(local_ranks, np.arange(start, stop), indexing="ij")
    return np.stack([ranks, steps, np.zeros_like(steps)], axis=-1).astype(np.uint32)


def random_key(seed: int, numbers: jax.Array) -> jax.Array:
    """Makes the random key of a worker's step from an element of :func:`make_keys`."""
    key = jax.random.key(seed)
    for i in range(3):
        key = jax.random.fold_in(key, numbers[i])
    return key


def make_gradient_fn(
    loss_fn: Callable[[Any, Any, Any], tuple[jax.Array, Any]], parts: int, *, rows: bool
) -> GradientFn:
    """Makes the gradient function of a :class:`Task`, whose loss is a mean over parts.

    The loss is `(params, model_state, batch) -> (loss, model_state)`. Parts of a batch
    are computed one after another, which needs less memory. With more than one, batches
    are dictionaries whose leaves are `[samples, ...]`, except `key`. If the model state
    has no `rows`, one for each sample, each part starts with the state that the part
    before has returned.
    """

    def gradient_fn(params, model_state, batch):
        gradient = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, after), grads = gradient(params, model_state, batch)
        return grads, after, {"loss": loss}

    return gradient_fn if parts == 1 else _accumulate(gradient_fn, parts, rows)


def _accumulate(gradient_fn: GradientFn, parts: int, rows: bool) -> GradientFn:
    def cut(x):
        if x.ndim == 0:
            return jnp.stack([x] * parts)
        return x.reshape(parts, -1, *x.shape[1:])

    def take(tree, i):
        return jax.tree.map(lambda x: x[i], tree)

    def accumulated(params, model_state, batch):
        batch = dict(batch)
        key = batch.pop("key")
        keys = jnp.stack([key.at[2].set(i) for i in range(parts)])
        pieces = jax.tree.map(cut, batch) | {"key": keys}
        states = jax.tree.map(cut, model_state) if rows else None
        before = take(states, 0) if rows else model_state

        def part(carry, piece):
            sums, state = carry
            piece, own = piece
            grads, after, metrics = gradient_fn(params, own if rows else state, piece)
            sums = jax.tree.map(lambda a, b: a + b / parts, sums, (grads, metrics))
            return (sums, before if rows else after), after if rows else None

        grads, _, metrics = jax.eval_shape(gradient_fn, params, before, take(pieces, 0))
        zeros = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), (grads, metrics))
        (sums, state), own = jax.lax.scan(part, (zeros, before), (pieces, states))
        if rows:
            state = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), own)
        return sums[0], state, sums[1]

    return accumulated
