"""The size of a compressed message."""

import jax

from djax._interfaces import Compressor, PyTree
from djax.transport import count_bytes

from .checks import check_compressor


def message_bytes(compressor: Compressor, params: PyTree) -> int:
    """Counts the bytes of one compressed message, from the shapes of arrays alone.

    :func:`djax.communication_cost` counts all bytes that a whole algorithm sends.

    Args:
      compressor: the code.
      params: a tree of arrays, or of their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      The exact number of bytes, as an `int`.

    Raises:
      TypeError: if `compressor` is not a code, but for example a function that was not
        called.

    Examples:
      >>> import djax, jax
      >>> weights = jax.ShapeDtypeStruct((100, 10), "float32")
      >>> djax.compressors.message_bytes(djax.compressors.sign(), weights)
      129
    """
    check_compressor("message_bytes", compressor)
    state = jax.eval_shape(compressor.init, params)
    message, _ = jax.eval_shape(compressor.compress, params, state)
    return count_bytes(jax.tree.leaves(message))
