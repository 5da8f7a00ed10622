"""The recurrent language model that the PowerGossip paper trains on WikiText-2.

It is the LSTM of PyTorch's word-level example, whose decoder shares its weights with
the embedding. Hochreiter and Schmidhuber, Long Short-Term Memory, 1997.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from ._layers import scale, uniform

Carry = tuple[jax.Array, jax.Array]
"""Outputs and cells of all layers, each of them `float32[batch, layers, hidden]`."""


class LSTM(nn.Module):
    r"""LSTM layers between an embedding and a decoder, which is its transpose.

    .. math::
        i, f, g, o &= W_{ih} x_t + b_{ih} + W_{hh} h_{t-1} + b_{hh} \\
        c_t &= \sigma(f) c_{t-1} + \sigma(i) \tanh(g), \quad h_t = \sigma(o) \tanh(c_t)

    Attributes:
      dropout: dropout probability of embeddings and of the output of each layer.
      bound: weights are initialized uniformly between -bound and bound.
      dtype: dtype of the matrix products; cells and parameters are float32.
    """

    vocabulary: int
    hidden: int
    layers: int
    dropout: float
    bound: float = 0.1
    dtype: Any = jnp.float32

    def initial_carry(self, batch: int) -> Carry:
        """Returns the zeros with which the first step of a text starts."""
        zeros = jnp.zeros((batch, self.layers, self.hidden), jnp.float32)
        return zeros, zeros

    @nn.compact
    def __call__(
        self, tokens: jax.Array, carry: Carry, *, train: bool
    ) -> tuple[jax.Array, Carry]:
        """Predicts for each token, `int32[batch, time]`, the token that follows it.

        Returns logits, `float32[batch, time, vocabulary]`, and the state of the layers
        after the last token.
        """
        init = uniform(self.bound)
        embedding = self.param(
            "encoder", init, (self.vocabulary, self.hidden), jnp.float32
        )
        x = self._drop(embedding[tokens].astype(self.dtype), train)
        states = []
        for layer in range(self.layers):
            before = carry[0][:, layer], carry[1][:, layer]
            x, state = self._layer(layer, x, before)
            x = self._drop(x, train)
            states.append(state)
        bias = self.param(
            "decoder_bias", nn.initializers.zeros, (self.vocabulary,), jnp.float32
        )
        logits = x @ embedding.T.astype(self.dtype)
        outputs, cells = (
            jnp.stack(parts, axis=1) for parts in zip(*states, strict=True)
        )
        return logits.astype(jnp.float32) + bias, (outputs, cells)

    def _drop(self, x, train):
        return nn.Dropout(self.dropout, deterministic=not train)(x)

    def _layer(self, layer, x, carry):
        """Computes a layer's `[batch, time, hidden]` outputs, and its last state."""
        shape, init = (self.hidden, 4 * self.hidden), uniform(self.bound)
        weight_ih = self.param(f"weight_ih_{layer}", init, shape, jnp.float32)
        weight_hh = self.param(f"weight_hh_{layer}", init, shape, jnp.float32)
        bias_ih = self.param(f"bias_ih_{layer}", init, shape[1:], jnp.float32)
        bias_hh = self.param(f"bias_hh_{layer}", init, shape[1:], jnp.float32)
        # The inputs of all steps are known, so one matrix product serves them all.
        inputs = x @ weight_ih.astype(self.dtype)
        inputs = inputs.astype(jnp.float32) + (bias_ih + bias_hh)
        recurrent = weight_hh.astype(self.dtype)

        def step(carry, at):
            h, c = carry
            gates = at + (h.astype(self.dtype) @ recurrent).astype(jnp.float32)
            i, f, g, o = jnp.split(gates, 4, axis=-1)
            c = nn.sigmoid(f) * c + nn.sigmoid(i) * jnp.tanh(g)
            h = nn.sigmoid(o) * jnp.tanh(c)
            return (h, c), h

        carry, hs = jax.lax.scan(step, carry, jnp.moveaxis(inputs, 1, 0))
        return jnp.moveaxis(hs, 0, 1).astype(self.dtype), carry


def lstm(
    vocabulary: int,
    *,
    hidden: int = 650,
    layers: int = 3,
    dropout: float = 0.4,
    width: float = 1.0,
    dtype: Any = jnp.float32,
) -> LSTM:
    """Makes the LSTM language model of the PowerGossip paper."""
    return LSTM(vocabulary, scale(hidden, width), layers, dropout, dtype=dtype)
