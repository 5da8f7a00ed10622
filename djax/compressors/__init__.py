r"""Lossy codes, which make the messages of compressed mechanisms smaller.

With the model seen as a vector x of d numbers, a code C is of one of two classes:

* a *contraction* has :math:`E\|C(x) - x\|^2 \le (1 - \delta) \|x\|^2` with a
  :math:`\delta \in (0, 1]`. :func:`djax.choco_gossip` and :func:`djax.deep_squeeze`
  need a contraction only, since they send later what was left out;
* an *unbiased* code has :math:`E[C(x)] = x` and :math:`E\|C(x) - x\|^2 \le \omega
  \|x\|^2`. :func:`djax.dcd` and :func:`djax.ecd` need an unbiased code, since they
  never send what was left out.

=====================================  ===========================  ===================
code                                   class                        sent for a leaf
=====================================  ===========================  ===================
:func:`identity`                       both, delta 1, omega 0       itself
:func:`top_k`                          contraction, k/d             8 k bytes
:func:`random_k`                       contraction, k/d             4 k bytes
:func:`random_k`, `unbiased=True`      unbiased, d/k - 1            4 k bytes
:func:`sign`                           contraction, 1/d or more     d/8 + 4 bytes
:func:`low_rank`                       contraction, r/min(m, k)     4 r (m + k) bytes
:func:`dct` with blocks of h × w       contraction, k/(h w)         6 k bytes a block
:func:`quantize` to b bits             unbiased, see there          b d/8 bytes, scales
:func:`quantize`, `unbiased=False`     contraction                  b d/8 bytes, scales
=====================================  ===========================  ===================

A code declares its class (`contraction` and `unbiased` of :class:`djax.Compressor`),
and mechanisms refuse codes that declare themselves to be of the wrong class.
Unless `unbiased=False`, :func:`quantize` declares its codes to be unbiased and not to
be contractions, even with so many bits that they are both.

The numbers of bytes are for leaves of float32. All codes treat each leaf by itself.
Codes that pack bits put the bits of all leaves of a tree into one array.
"""

from ._dct import DctMessage, dct
from ._identity import identity
from ._low_rank import LowRankMessage, low_rank
from ._message_bytes import message_bytes
from ._quantize import QuantizedMessage, QuantizeState, quantize
from ._sign import SignMessage, sign
from ._sparse import RandomKMessage, RandomKState, TopKMessage, random_k, top_k

__all__ = [
    "DctMessage",
    "LowRankMessage",
    "QuantizeState",
    "QuantizedMessage",
    "RandomKMessage",
    "RandomKState",
    "SignMessage",
    "TopKMessage",
    "dct",
    "identity",
    "low_rank",
    "message_bytes",
    "quantize",
    "random_k",
    "sign",
    "top_k",
]
__dir__ = __all__.copy  # For dir() and completion.
