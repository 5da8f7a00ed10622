"""What a message costs."""

import jax

from djax._interfaces import (
    Compressor,
    PyTree,
)
from djax.transport import _packing as _wire

from ._checks import check_compressor


def message_bytes(compressor: Compressor, params: PyTree) -> int:
    """Bytes of one compressed message, read from shapes alone.

    What a whole algorithm sends tells :func:`djax.communication_cost`.

    Args:
      compressor: the code.
      params: a tree of arrays, or of their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      An exact integer.

    Raises:
      TypeError: if `compressor` is none, for example a function that was not called.

    Examples:
      >>> import djax, jax
      >>> weights = jax.ShapeDtypeStruct((100, 10), "float32")
      >>> djax.compressors.message_bytes(djax.compressors.sign(), weights)
      129
    """
    check_compressor("message_bytes", compressor)
    state = jax.eval_shape(compressor.init, params)
    message, _ = jax.eval_shape(compressor.compress, params, state)
    return _wire.count_bytes(jax.tree.leaves(message))
