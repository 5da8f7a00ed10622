"""Makes tasks in which the next word or character of a text is predicted."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..data import Corpus, TextSampler
from ._base import Setting, Task, make_gradient_fn, make_keys, random_key

SPLIT = "contiguous"
"""The default split of the text among workers."""
STREAMS = 8
"""Number of parts of the held-out text that are evaluated side by side."""


def language(
    setting: Setting, corpus: Corpus, model, length: int, *, epochs: int
) -> Task:
    """Makes the task of predicting each next token of a text.

    The network's state is carried from each batch to the next one through a worker's
    part of the text, while gradients go back only through the `length` tokens of a
    batch.
    """
    sampler = TextSampler(
        corpus,
        setting.workers,
        setting.split or SPLIT,
        setting.batch_size,
        length,
        setting.seed,
    )
    start = jax.jit(model.initial_carry, static_argnums=0)
    carry = jax.tree.map(np.asarray, start(setting.batch_size))
    model_state = jax.tree.map(
        lambda x: np.stack([x] * len(setting.local_ranks)), carry
    )

    def init(key):
        tokens = jnp.zeros((1, 1), jnp.int32)
        return model.init(key, tokens, model.initial_carry(1), train=False)["params"]

    def predict(params, tokens, carry, **options):
        """Returns the losses of all tokens but the first, and the next carry."""
        known, following = tokens[:, :-1], tokens[:, 1:]
        logits, carry = model.apply({"params": params}, known, carry, **options)
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, following)
        return losses, carry

    def loss_fn(params, carry, batch):
        carry = jax.tree.map(lambda x: jnp.where(batch["first"], 0, x), carry)
        carry = jax.lax.stop_gradient(carry)
        rngs = {"dropout": random_key(setting.seed, batch["key"])}
        losses, carry = predict(params, batch["tokens"], carry, train=True, rngs=rngs)
        return losses.mean(), carry

    def evaluate(params, model_state, batch):
        del model_state  # The held-out text is read from its own beginning.

        def chunk(carry, tokens):
            losses, carry = predict(params, tokens, carry, train=False)
            return carry, losses.sum()

        rows = batch["tokens"].shape[1]
        _, losses = jax.lax.scan(chunk, model.initial_carry(rows), batch["tokens"])
        count = jnp.asarray(batch["tokens"][..., 1:].size, losses.dtype)
        return {"loss": losses.sum(), "samples": count}

    def batches(first, stop):
        parts = [sampler.read(rank, first, stop) for rank in setting.local_ranks]
        read = jax.tree.map(lambda *xs: np.stack(xs), *parts)
        return read | {"key": make_keys(setting.local_ranks, first, stop)}

    held_out = [{"tokens": jnp.asarray(_cut(corpus.valid, length))}]
    return Task(
        init=jax.jit(init),
        gradient_fn=make_gradient_fn(loss_fn, setting.accumulation, rows=True),
        evaluate=evaluate,
        held_out=lambda: held_out,
        score="perplexity",
        higher_is_better=False,
        batches=batches,
        steps_per_epoch=sampler.steps_per_epoch,
        model_state=model_state,
        derive=lambda means: means | {"perplexity": np.exp(means["loss"])},
        epochs=epochs,
    )


def _cut(text: np.ndarray, length: int) -> np.ndarray:
    """Cuts a text into `int32[chunks, STREAMS, length + 1]`.

    The last token of each row is again the first token of that row in the next chunk.
    """
    chunks = (len(text) // STREAMS - 1) // length
    rows = text[: len(text) // STREAMS * STREAMS].reshape(STREAMS, -1)
    starts = np.arange(chunks)[:, None] * length
    return np.moveaxis(rows[:, starts + np.arange(length + 1)], 0, 1)
