r"""Sign compression: one bit for each entry, and one magnitude for each leaf.

.. math:: C(x) = \frac{\|x\|_1}{d} \, \mathrm{sign}(x)

Bernstein et al., `signSGD: Compressed Optimisation for Non-Convex Problems
<https://arxiv.org/abs/1802.04434>`_, 2018; Karimireddy et al., `Error Feedback Fixes
SignSGD <https://arxiv.org/abs/1901.09847>`_, 2019.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arrays import bits as _bits
from djax._arrays.checks import check_real
from djax._arrays.divided import check_not_divided
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import Compressor, PyTree


class SignMessage(NamedTuple):
    """What :func:`sign` sends.

    Attributes:
      bits: `uint8[ceil(D / 8)]`, one bit for each of the D entries of the tree, which
        is 1 if the entry is negative.
      scales: for each leaf, `float[]`, the mean magnitude of its entries.
    """

    bits: jax.Array
    scales: PyTree


@by_its_call
def sign() -> Compressor:
    r"""Sends one bit for each entry, and the mean magnitude of each leaf.

    The code is a contraction. For each leaf, :math:`\delta = \|x\|_1^2 / (d \|x\|_2^2)
    \ge 1 / d`. This :math:`\delta` is about 0.64 if the entries are normally
    distributed. Zero counts as positive.

    Returns:
      A stateless :class:`djax.Compressor`. Its `init` raises TypeError for complex
      parameters.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> code = djax.compressors.sign()
      >>> x = jnp.asarray([1.0, -2.0, 3.0, 0.0])
      >>> message, _ = code.compress(x, code.init(x))
      >>> print(code.decompress(message, x))
      [ 1.5 -1.5  1.5  1.5]

    References:
      Karimireddy et al., `Error Feedback Fixes SignSGD
      <https://arxiv.org/abs/1901.09847>`_, 2019
    """

    def init(params):
        check_real("sign", params)
        return optax.EmptyState()

    def compress(tree, state):
        check_not_divided("sign")
        leaves, treedef = jax.tree.flatten(tree)
        bits = _bits.pack_leaves([(x < 0).astype(jnp.uint8) for x in leaves], 1)
        scales = [jnp.abs(promote(x)).sum() / max(1.0, float(x.size)) for x in leaves]
        return SignMessage(bits, treedef.unflatten(scales)), state

    def decompress(message, like):
        leaves, treedef = jax.tree.flatten(like)
        negative = _bits.unpack_leaves(message.bits, 1, leaves)
        return treedef.unflatten(
            jnp.where(minus != 0, -scale, scale).astype(x.dtype)
            for x, minus, scale in zip(
                leaves, negative, treedef.flatten_up_to(message.scales), strict=True
            )
        )

    return Compressor(init, compress, decompress, contraction=True, unbiased=False)
