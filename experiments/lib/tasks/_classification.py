"""Makes tasks in which images or texts are classified."""

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..data import Dataset, Prefetch, Sampler, Source
from ..models import BATCH_NORM_MOMENTUM
from ._base import Setting, Task, make_gradient_fn, make_keys, random_key

SPLIT = "dirichlet:0.1"
"""The default split of the samples among workers."""
EVALUATION_BATCH = 1000
"""Number of samples that are evaluated at once."""
RESIDENT = 512 * 2**20
"""Held-out samples of at most this many bytes stay on the device all the time."""


def classification(
    setting: Setting,
    dataset: Dataset,
    model,
    *,
    epochs: int,
    convolutions: bool,
    load: Callable[[Any], Any] | None = None,
) -> Task:
    """Makes the task of classifying samples; `load` replaces the initial parameters."""
    sampler = Sampler(
        dataset.train.labels,
        setting.workers,
        setting.split or SPLIT,
        setting.batch_size,
        setting.seed,
    )
    example = jax.tree.map(jnp.asarray, dataset.train.read(np.zeros(1, int), (0,)))

    augment, normalize = dataset.augment, dataset.normalize  # Not the data itself.

    def inputs(batch, key):
        if "tokens" in batch:
            return batch["tokens"], batch["tokens"] > 0
        images = batch["image"]
        if key is not None:
            images = augment(key, images)
        return (normalize(images),)

    def init(key):
        variables = dict(model.init(key, *inputs(example, None), train=False))
        return variables.pop("params"), variables

    init_params = jax.jit(lambda key: init(key)[0])
    rest = jax.jit(lambda: init(jax.random.key(0))[1])()
    model_state = jax.tree.map(lambda x: np.stack([x] * len(setting.local_ranks)), rest)

    def loss_fn(params, model_state, batch):
        augmenting, dropping = jax.random.split(random_key(setting.seed, batch["key"]))
        logits, after = model.apply(
            {"params": params, **dict(model_state)},
            *inputs(batch, augmenting),
            train=True,
            rngs={"dropout": dropping},
            mutable=list(rest),
        )
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        return losses.mean(), after if rest else model_state

    def statistics(params, batch):
        zeros = jax.tree.map(jnp.zeros_like, rest)
        _, found = loss_fn(params, zeros, batch)
        return jax.tree.map(lambda x: x / (1 - BATCH_NORM_MOMENTUM), found)

    def evaluate(params, model_state, batch):
        variables = {"params": params, **dict(model_state)}
        logits = model.apply(variables, *inputs(batch, None), train=False)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
        right = logits.argmax(-1) == batch["label"]
        weight = batch["weight"]
        return {
            "loss": losses @ weight,
            "accuracy": right.astype(weight.dtype) @ weight,
            "samples": weight.sum(),
        }

    def batches(start, stop):
        parts = []
        for number, *steps in sampler.passes(start, stop):
            chosen = [sampler.indices(rank, *steps) for rank in setting.local_ranks]
            parts.append(dataset.train.read(np.stack(chosen), (setting.seed, number)))
        read = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1), *parts)
        return read | {"key": make_keys(setting.local_ranks, start, stop)}

    return Task(
        init=lambda key: load(init_params(key)) if load else init_params(key),
        gradient_fn=make_gradient_fn(loss_fn, setting.accumulation, rows=False),
        evaluate=evaluate,
        held_out=_held_out(dataset.test),
        score="accuracy",
        higher_is_better=True,
        batches=batches,
        steps_per_epoch=sampler.steps_per_epoch,
        model_state=model_state if rest else (),
        statistics=statistics if rest else None,
        dispatch=convolutions,
        split=(dataset.train.labels, sampler.shares),
        epochs=epochs,
    )


def _held_out(source: Source) -> Callable[[], Iterable[Any]]:
    """Makes the function that returns the batches of all held-out samples.

    All batches have the same size. The last one is filled up with samples of weight 0.
    """
    count = len(source.labels)
    size = min(EVALUATION_BATCH, count)
    starts = range(0, count, size)

    def load(i):
        indices = np.arange(starts[i], starts[i] + size)
        read = source.read(np.minimum(indices, count - 1), (0,))
        return read | {"weight": (indices < count).astype(np.float32)}

    @functools.cache
    def resident():
        return [jax.tree.map(jnp.asarray, load(i)) for i in range(len(starts))]

    def streamed():
        with Prefetch(lambda i: load(i) if i < len(starts) else None) as loaded:
            yield from map(loaded, range(len(starts)))

    one = source.read(np.zeros(1, int), (0,))
    fits = count * sum(x.nbytes for x in one.values()) <= RESIDENT
    return resident if fits else streamed
