"""A text classifier with the architecture of DistilBERT, for fine-tuning.

Pretrained weights are read from a file of the transformers library.

Sanh et al., DistilBERT, a distilled version of BERT, 2019,
https://arxiv.org/abs/1910.01108.
"""

import functools
import pathlib
from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

_NORMAL = nn.initializers.normal(0.02)


class DistilBERT(nn.Module):
    """A transformer whose output at the first token is classified.

    Attributes:
      inner: width between the two dense parts of a layer.
    """

    vocabulary: int
    outputs: int
    hidden: int = 768
    heads: int = 12
    inner: int = 3072
    layers: int = 6
    positions: int = 512
    dropout: float = 0.1
    head_dropout: float = 0.2
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array, mask: jax.Array, *, train: bool) -> jax.Array:
        """Maps texts, `int32[batch, length]`, to logits, `float32[batch, outputs]`.

        The mask, `bool[batch, length]`, is false where a text is filled up.
        """
        length = tokens.shape[1]
        if length > self.positions:
            raise ValueError(f"texts of {length} tokens; at most {self.positions}.")
        embed = functools.partial(
            nn.Embed, features=self.hidden, embedding_init=_NORMAL
        )
        x = embed(self.vocabulary, name="words")(tokens)
        x += embed(self.positions, name="positions")(jnp.arange(length))[None]
        x = self._drop(self._norm(x, "embeddings_norm"), train)
        for layer in range(self.layers):
            name = f"layer_{layer}"
            x = self._norm(x + self._attend(name, x, mask, train), f"{name}_norm_0")
            x = self._norm(x + self._feed(name, x, train), f"{name}_norm_1")
        first = nn.relu(self._dense(x[:, 0], self.hidden, "pre_classifier"))
        first = nn.Dropout(self.head_dropout, deterministic=not train)(first)
        return self._dense(first, self.outputs, "classifier").astype(jnp.float32)

    def _dense(self, x, width, name):
        return nn.Dense(width, kernel_init=_NORMAL, dtype=self.dtype, name=name)(x)

    def _drop(self, x, train):
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _norm(self, x, name):
        norm = nn.LayerNorm(epsilon=1e-12, dtype=jnp.float32, name=name)
        return norm(x.astype(jnp.float32)).astype(self.dtype)

    def _attend(self, name, x, mask, train):
        shape = (*x.shape[:2], self.heads, self.hidden // self.heads)
        query, key, value = (
            self._dense(x, self.hidden, f"{name}_{part}").reshape(shape)
            for part in ("query", "key", "value")
        )
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key) * shape[-1] ** -0.5
        scores = jnp.where(mask[:, None, None], scores.astype(jnp.float32), -1e30)
        weights = self._drop(nn.softmax(scores).astype(self.dtype), train)
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
        return self._dense(mixed, self.hidden, f"{name}_output")

    def _feed(self, name, x, train):
        y = nn.gelu(self._dense(x, self.inner, f"{name}_inner"), approximate=False)
        return self._drop(self._dense(y, self.hidden, f"{name}_outer"), train)


def distilbert(
    vocabulary: int,
    outputs: int,
    *,
    layers: int = 6,
    heads: int = 12,
    width: float = 1.0,
    dtype: Any = jnp.float32,
) -> DistilBERT:
    """Makes DistilBERT with a classifier.

    DistilBERT has 66,362,880 parameters for 30,522 tokens, the classifier not counted.
    Its width of 768 is scaled by `width`, and rounded to a multiple of `heads`.
    """
    hidden = heads * max(1, round(768 * width / heads))
    return DistilBERT(
        vocabulary, outputs, hidden, heads, 4 * hidden, layers, dtype=dtype
    )


_PARTS = {
    "query": "attention.q_lin",
    "key": "attention.k_lin",
    "value": "attention.v_lin",
    "output": "attention.out_lin",
    "inner": "ffn.lin1",
    "outer": "ffn.lin2",
    "norm_0": "sa_layer_norm",
    "norm_1": "output_layer_norm",
}
_WHOLES = {
    "words": "embeddings.word_embeddings",
    "positions": "embeddings.position_embeddings",
    "embeddings_norm": "embeddings.LayerNorm",
}
_HEAD = ("pre_classifier", "classifier")


def load_distilbert(params: Mapping[str, Any], path: str | pathlib.Path) -> dict:
    """Replaces the parameters of a :class:`DistilBERT` by pretrained ones.

    They are read from a `model.safetensors` of the transformers library. The classifier
    keeps its parameters if the file has none for it. A ValueError is raised if the file
    or a tensor is missing, or if a tensor has another shape.
    """
    from safetensors import safe_open

    if not pathlib.Path(path).is_file():
        raise ValueError(f"there is no file {path}.")
    loaded = {}
    with safe_open(path, framework="numpy") as file:
        known = {name.removeprefix("distilbert."): name for name in file.keys()}
        for module, leaves in params.items():
            theirs = _their_name(module)
            if module in _HEAD and f"{theirs}.weight" not in known:
                loaded[module] = leaves
                continue
            loaded[module] = {
                leaf: _read(file, known, f"{theirs}.{suffix}", leaf, leaves[leaf])
                for leaf, suffix in _LEAVES.items()
                if leaf in leaves
            }
    return loaded


_LEAVES = {
    "kernel": "weight",
    "embedding": "weight",
    "scale": "weight",
    "bias": "bias",
}
"""From the name of a parameter in flax to its name in the file."""


def _their_name(module: str) -> str:
    if not module.startswith("layer_"):
        return _WHOLES.get(module, module)
    _, number, part = module.split("_", 2)
    return f"transformer.layer.{number}.{_PARTS[part]}"


def _read(file, known, name: str, leaf: str, like: jax.Array) -> jax.Array:
    if name not in known:
        raise ValueError(f"the weights have no tensor {name} of shape {like.shape}.")
    tensor = file.get_tensor(known[name])
    if leaf == "kernel":  # PyTorch multiplies from the other side.
        tensor = tensor.T
    if tensor.shape != like.shape:
        raise ValueError(
            f"tensor {name} of the weights gives {tensor.shape}, not {like.shape}."
        )
    return jnp.asarray(np.ascontiguousarray(tensor), like.dtype)
