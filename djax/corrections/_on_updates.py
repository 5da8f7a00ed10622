"""Averaging of the updates, so that each counts with the full learning rate."""

import jax
import jax.numpy as jnp
import optax

from djax._calls import by_its_call
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.refusals import refuse
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation


@by_its_call
def on_updates(mechanism: optax.GradientTransformation) -> Mechanism:
    r"""Averages the updates instead of the models.

    .. math:: x_i \leftarrow x_i + \operatorname{average}_i(u_1, \dots, u_n)

    The mechanism is applied to parameters that are zero. The models themselves are not
    averaged, so that differences between them remain: workers that start equal stay
    equal only if the averages are exact. As the first link of a chain, the result
    averages the gradients.

    Args:
      mechanism: any mechanism that is no correction, such as :func:`djax.d2`.

    Returns:
      A :class:`djax.Mechanism` with the state of `mechanism`.

    Raises:
      ValueError: if the mechanism is an optimizer such as
        :func:`djax.quasi_global_momentum`, or a correction such as :func:`djax.d2`.

    Examples:
      >>> import djax, optax
      >>> tree, communicator = djax.topologies.chain(8), djax.communicators.simulated(8)
      >>> averaging = djax.on_updates(djax.relay(tree, communicator))
      >>> relay_sum_grad = optax.chain(optax.sgd(0.1), averaging)

    References:
      Vogels et al., `RelaySum for Decentralized Deep Learning on Heterogeneous Data
      <https://arxiv.org/abs/2110.04175>`_, 2021, RelaySum/Grad
    """
    mechanism = as_transformation("on_updates", mechanism)
    refuse("on_updates", parts_of(mechanism), "optimizer", "corrects_models")

    def init(params):
        with around("on_updates({})"):
            return mechanism.init(jax.tree.map(jnp.zeros_like, params))

    def update(updates, state, params=None, **extra_args):
        del params
        zeros = jax.tree.map(jnp.zeros_like, updates)
        return mechanism.update(updates, state, zeros, **extra_args)

    return wrap("on_updates", mechanism, init, update, {"averages_updates": True})
