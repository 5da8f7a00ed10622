"""A step of an optimizer, without the detour over the updates."""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._arrays.checks import shortened
from djax._transformations import as_transformation

from .order import observing
from .value import Mechanism


def apply_gradients(
    optimizer: optax.GradientTransformation,
    grads: optax.Updates,
    opt_state: optax.OptState,
    params: optax.Params,
    **extra_args: Any,
) -> tuple[optax.Params, optax.OptState]:
    """Returns ONE worker's parameters and the optimizer's state after a step.

    It does what `optimizer.update` and `optax.apply_updates` do together, up to
    rounding. But if a mechanism stands at the end of a chain, it has averaged models,
    not updates, and `optax.apply_updates` would read the parameters and the updates
    once more to get the averaged model back. This function takes that model as it is.
    With :func:`djax.decentralized` in place of a chain it also makes the optimizer's
    step in place, if a worker has a CPU of its own.

    Args:
      optimizer: the optimizer, a chain that contains the mechanism.
      grads: a tree like the parameters.
      opt_state: the optimizer's state.
      params: the parameters, a tree of arrays.
      **extra_args: other arguments of `optimizer.update`.

    Returns:
      The parameters after the step, in their dtypes, and the state.

    Raises:
      TypeError: if `grads` is not a tree like the parameters.

    Examples:
      >>> import djax, jax, jax.numpy as jnp, optax
      >>> ring, workers = djax.topologies.ring(3), djax.communicators.simulated(3)
      >>> optimizer = optax.chain(optax.sgd(0.5), djax.gossip(ring, workers))
      >>> def step(x, opt_state, target):  # of ONE worker
      ...     return djax.training.apply_gradients(optimizer, x - target, opt_state, x)
      >>> x = jnp.zeros(3)
      >>> opt_state = workers.spmd(optimizer.init)(x)
      >>> x, opt_state = jax.jit(workers.spmd(step))(x, opt_state, jnp.arange(3.0))
      >>> print(x)
      [0.5 0.5 0.5]
    """
    optimizer = as_transformation("apply_gradients", optimizer)
    kinds = jax.tree.structure(grads), jax.tree.structure(params)
    if kinds[0] != kinds[1]:
        raise TypeError(
            "apply_gradients(optimizer, grads, opt_state, params) needs gradients in a "
            f"tree like the parameters, {shortened(kinds[1])}, got "
            f"{shortened(kinds[0])}."
        )
    if isinstance(optimizer, Mechanism) and optimizer.advance and _is_precise(params):
        return optimizer.advance(grads, opt_state, params, **extra_args)
    with observing() as observer:
        updates, opt_state = optimizer.update(grads, opt_state, params, **extra_args)
        observer.compare_returned(updates)
    model = observer.model_after(updates, params)
    if model is None:
        model = optax.apply_updates(params, updates)
    return model, opt_state


def _is_precise(params: optax.Params) -> bool:
    """Whether all parameters are in float32 or wider, so that sums of them may be."""
    return all(jnp.finfo(x.dtype).bits >= 32 for x in jax.tree.leaves(params))
