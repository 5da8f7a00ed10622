"""The code that leaves out nothing."""

import optax

from djax._calls import by_its_call
from djax._interfaces import Compressor


@by_its_call
def identity() -> Compressor:
    r"""Sends everything, for comparisons of compressed mechanisms with exact ones.

    It is a contraction with :math:`\delta = 1`, and unbiased with :math:`\omega = 0`.

    Returns:
      A stateless :class:`djax.Compressor`.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> djax.compressors.message_bytes(djax.compressors.identity(), jnp.zeros(100))
      400
    """
    return Compressor(
        init=lambda params: optax.EmptyState(),
        compress=lambda tree, state: (tree, state),
        decompress=lambda message, like: message,
        contraction=True,
        unbiased=True,
    )
