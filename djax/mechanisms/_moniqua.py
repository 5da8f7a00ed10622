r"""Moniqua: averaging of models that travel modulo a constant, in few bits.

The models of neighbours are alike. If they differ by less than :math:`\theta` in every
coordinate, it is enough to know a neighbour's model modulo a constant :math:`B`, which
takes few bits. With b bits, the distance :math:`\delta = 1 / (2^b - 1)` between two
levels, and a mod that returns numbers in :math:`[-B/2, B/2]`,

.. math::
   B &= 2 \theta / (1 - 2 \delta), \\
   q_i &= \delta \bigl\lfloor \tfrac1\delta ((x_i / B \bmod 1) + \tfrac12) + \xi
      \bigr\rfloor - \tfrac12, \\
   x_i &\leftarrow x_i + \gamma \textstyle\sum_j w_{ij} \bigl(
      ((q_j B - x_i) \bmod B) - ((q_i B - x_i) \bmod B) \bigr).

The noise :math:`\xi \sim U[0, 1)` of the rounding is the same on all workers, so that
models that are alike are rounded alike. A worker remembers nothing from step to step.

Lu and De Sa, `Moniqua: Modulo Quantized Communication in Decentralized SGD
<https://arxiv.org/abs/2002.11787>`_, 2020, Algorithm 1.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax import mixing
from djax._arguments import (
    check_consensus_rate,
    check_flags,
    check_mixing,
    check_rate,
    check_reliable,
    check_static,
)
from djax._arrays import bits as _bits
from djax._arrays.checks import check_real
from djax._arrays.divided import check_not_divided
from djax._arrays.keys import shared_key
from djax._arrays.precision import promote, scale
from djax._arrays.split import join
from djax._calls import by_its_call
from djax._interfaces import Communicator
from djax._mechanism.adapter import build
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism
from djax.topologies import Graph


class MoniquaState(NamedTuple):
    """State of :func:`moniqua`.

    Attributes:
      step: `int32[]`, the number of updates so far. It decides which matrix of a
        schedule is used, and which noise the rounding uses.
    """

    step: ArrayLike


@by_its_call
def moniqua(
    topology: Graph,
    communicator: Communicator,
    theta: float,
    consensus_rate: float,
    *,
    bits: int = 2,
    overlap: bool = False,
    key: jax.Array | None = None,
) -> Mechanism:
    r"""Averages the parameters with the neighbours', sending a few bits of each.

    The models travel modulo a constant :math:`B = 2 \theta / (1 - 2 \delta)`, rounded
    to :math:`2^b` levels at the distance :math:`\delta = 1 / (2^b - 1)`. With the
    updates :math:`u_i` of the links before it and the levels :math:`q_j` of the models,

    .. math::
       y_i &= x_i + u_i \qquad\text{(with overlap: } y_i = x_i\text{)} \\
       x_i &\leftarrow x_i + u_i + \gamma \textstyle\sum_j w_{ij} \bigl(
          ((q_j B - y_i) \bmod B) - ((q_i B - y_i) \bmod B) \bigr)

    In each step one message of b bits an entry travels to each neighbour.

    Args:
      topology: the graph and its weights: a Topology, or a Schedule with doubly
        stochastic matrices, one for each step.
      communicator: how messages travel; it must not lose any.
      theta: :math:`\theta`, an upper bound of the difference between two neighbours'
        models in any coordinate; a float or a scalar array. If a difference is larger,
        the receiver mistakes it for a smaller one. It also mistakes numbers that are
        not finite for finite ones. `optax.inject_hyperparams` needs
        `static_args="bits"`.
      consensus_rate: :math:`\gamma`, a float or a scalar array. The paper uses
        :math:`\theta = 1/4` and :math:`\gamma = 0.005` for ResNet-20.
      bits: b, from 2 to 8.
      overlap: average the parameters before this step's updates.
      key: PRNG key of the rounding, the same on all workers; `jax.random.key(0)` by
        default.

    Returns:
      A :class:`djax.Mechanism` that needs `params`, with a
      :class:`MoniquaState`. Updates keep their dtypes.

    Raises:
      TypeError: if `topology` is not a graph; in `init`, if a parameter is complex.
      ValueError: if a matrix is not doubly stochastic, the sizes differ, a number is
        out of range, or messages get lost.

    Examples:
      >>> import djax, optax
      >>> ring = djax.topologies.ring(8)
      >>> communicator = djax.communicators.simulated(8)
      >>> averaging = djax.moniqua(ring, communicator, 0.25, 0.005)
      >>> optimizer = optax.chain(optax.sgd(0.1), averaging)

    References:
      Lu and De Sa, `Moniqua: Modulo Quantized Communication in Decentralized SGD
      <https://arxiv.org/abs/2002.11787>`_, 2020, Algorithm 1
    """
    check_mixing("moniqua", topology, communicator)
    check_reliable("moniqua", communicator)
    check_rate("moniqua: theta", theta)
    check_consensus_rate("moniqua: consensus_rate", consensus_rate, topology)
    check_flags("moniqua", overlap=overlap)
    check_static("moniqua", bits=bits)
    bits = _bits.check_bits("moniqua", bits)
    seed = shared_key("moniqua", key)

    def init(params):
        check_real("moniqua", params)
        return MoniquaState(jnp.zeros((), jnp.int32))

    def mix(model, state, /):
        check_state("moniqua", state, MoniquaState, model)
        check_not_divided("moniqua")
        leaves, treedef = jax.tree.flatten(jax.tree.map(promote, model))
        leaves, cut = join(leaves)
        now = jax.random.fold_in(seed, communicator.agreed(state.step))
        levels = [
            encode(x, noise, theta, bits)
            for x, noise in zip(leaves, _bits.noise(now, leaves), strict=True)
        ]
        mine = distances(levels, leaves)

        def read(theirs, own):
            del own  # Decoded, it would be `mine`.
            found = distances(_bits.unpack_leaves(theirs, bits, leaves), leaves)
            return [x - y for x, y in zip(found, mine, strict=True)]

        message = _bits.pack_leaves(levels, bits)
        heard = mixing.weighted_sum(
            message, read, topology, communicator, step=state.step
        )
        displacement = treedef.unflatten(cut(heard.total))
        state = MoniquaState(optax.safe_increment(state.step))
        return scale(consensus_rate, displacement), state

    def distances(levels, leaves):
        """Returns, for each leaf, the model that was sent minus this worker's."""
        return [
            decode(level, x, theta, bits)
            for level, x in zip(levels, leaves, strict=True)
        ]

    return build(
        "moniqua",
        init,
        communicator,
        topology,
        mix=mix,
        overlap=overlap,
        skips_silent_steps=True,
        facts={"needs_every_message": True, "compresses": True},
        conditions={"distance": theta},
    )


def encode(x: jax.Array, noise: jax.Array, theta: ArrayLike, bits: int) -> jax.Array:
    r"""Returns the level of :math:`x / B \bmod 1`, rounded up where noise is large.

    Args:
      x: `float[...]`, the model.
      noise: `float[...]` in [0, 1), the noise :math:`\xi` of the rounding.
      theta: the upper bound of the differences between neighbours' models.
      bits: the number b of bits.

    Returns:
      `uint8[...]` below :math:`2^b`; the level l means :math:`q = \delta l - 1/2`.
    """
    last = 2**bits - 1
    phase = _mod(x / _modulus(x, theta, bits), 1.0) + 0.5
    # For the largest phase and noise, rounding errors may lead to one level more.
    return jnp.clip(jnp.floor(phase * last + noise), 0, last).astype(jnp.uint8)


def decode(level: jax.Array, x: jax.Array, theta: ArrayLike, bits: int) -> jax.Array:
    r"""Returns the model that was sent minus `x`: :math:`(q B - x) \bmod B`."""
    modulus = _modulus(x, theta, bits)
    q = level.astype(x.dtype) / (2**bits - 1) - 0.5
    return _mod(q * modulus - x, modulus)


def _modulus(x: jax.Array, theta: ArrayLike, bits: int) -> jax.Array:
    return 2 * jnp.asarray(theta, x.dtype) / (1 - 2 / (2**bits - 1))


def _mod(x: jax.Array, modulus: ArrayLike) -> jax.Array:
    """Returns the remainder between minus and plus half of the modulus.

    It is computed by rounding, since processors round many numbers at once, and
    compute `fmod` of one number after another.
    """
    modulus = jnp.asarray(modulus, x.dtype)
    return x - modulus * jnp.round(x / modulus)
