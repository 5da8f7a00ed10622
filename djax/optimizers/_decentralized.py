r"""An optimizer and a mechanism in one, so that the optimizer's state is averaged, too.

Momentum and Adam's moments are sums over the worker's own gradients. In
`optax.chain(optax.adam(1e-3), djax.gossip(...))` they are never averaged, since a
mechanism at the end of a chain sees the models alone. Where the workers' data differ,
the moments then differ although the models are averaged. Some algorithms for local
steps, such as SlowMo, average the state of the optimizer along with the models.

With the moments :math:`m_i` of an optimizer and its updates :math:`u_i`, a step is

.. math::
   (u_i, m_i) &\leftarrow \operatorname{optimizer}(g_i, m_i, x_i), \\
   m_i &\leftarrow \operatorname{average}_i(m_1, \dots, m_n), \\
   x_i &\leftarrow \operatorname{average}_i(x_1 + u_1, \dots, x_n + u_n).
"""

from collections.abc import Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.in_place import in_place_on_cpu
from djax._calls import by_its_call
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.apply import apply_gradients
from djax._mechanism.order import observing
from djax._mechanism.refusals import Part
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation

from ._moments import moments_of, with_moments

_REMEDY = (
    "Give it a plain average, such as "
    "average_state=djax.every(period, djax.all_reduce(communicator))."
)
_UNFIT = {
    "opaque": "cannot be asked how it averages (djax.only stands in for optax.masked)",
    "optimizer": "is an optimizer, which takes gradients",
    "correction": "corrects updates, which a state does not have",
    "averages_updates": "averages updates, which a state does not have",
    "weighted": "multiplies what it averages by weights on this graph",
    "compresses": "compresses messages, after which second moments such as Adam's may "
    "be negative, or too small to be divided by",
    "overlap": "averages models without the updates of the present step, while a state "
    "is averaged with them (use overlap=False)",
}
"""For facts about a mechanism, why it cannot average the state of an optimizer."""


class DecentralizedState(NamedTuple):
    """State of :func:`decentralized`.

    Attributes:
      optimizer_state: the state of the optimizer, with averaged moments if these are
        averaged.
      mechanism_state: the state of the mechanism that averages the models.
      average_states: for each tree of the optimizer's state that is averaged, the state
        of the mechanism that averages it; `()` if none is averaged.
    """

    optimizer_state: optax.OptState
    mechanism_state: optax.OptState
    average_states: tuple[optax.OptState, ...]


@by_its_call
def decentralized(
    optimizer: optax.GradientTransformation,
    mechanism: optax.GradientTransformation,
    *,
    average_state: optax.GradientTransformation | bool | None = None,
) -> Mechanism:
    r"""An optimizer and a mechanism in one, which can average the optimizer's state.

    Without `average_state`, it is `optax.chain(optimizer, mechanism)`, but takes less
    time between CPUs: :func:`djax.training.make_steps` and
    :func:`djax.training.apply_gradients` then make the optimizer's step in the memory
    of the parameters, and apply the mechanism to the result. (Parameters have to be in
    float32 or wider, and the mechanism must not overlap. With `optax.apply_updates`
    nothing is gained.) With `average_state`,

    .. math::
       (u_i, m_i) &\leftarrow \operatorname{optimizer}(g_i, m_i, x_i), \\
       m_i &\leftarrow \operatorname{average\_state}_i(m_1, \dots, m_n), \\
       x_i &\leftarrow \operatorname{mechanism}_i(x_1 + u_1, \dots, x_n + u_n).

    The moments :math:`m_i` are all trees in the state of the optimizer that are made
    like the parameters, as `optax.tree.map_params` finds them: the trace of momentum,
    or both moments of Adam. Counters, hyperparameters, integers, and the states of
    mechanisms within the optimizer are each worker's own. Each tree is averaged like a
    model, by a call of its own with a state of its own, so that masks of
    :func:`djax.only` for the parameters fit.

    Second moments must not become negative or much too small, since the optimizer
    divides by their roots. Averages with weights that are not negative keep them as
    they should be, but codes and negative weights do not. Clipping at zero would not
    help: where Adam's second moment is wrongly zero, the next step is too large by
    several orders of magnitude. Therefore `average_state` refuses mechanisms that
    compress messages, that have negative weights, or that round messages to floats with
    a smaller range than bfloat16, whatever the optimizer is. These mechanisms can still
    average the models. What is made by :func:`djax.mechanism`, and consensus rates that
    `optax.inject_hyperparams` traces, cannot be checked.

    Args:
      optimizer: the optimizer of each worker, such as `optax.adam(1e-3)`. Its state is
        looked through by a call of its `init` without arrays.
      mechanism: what averages the models, as the last link of a chain would.
      average_state: a mechanism without `overlap` that averages the state, such as
        `djax.gossip(ring, communicator)` or `djax.every(50,
        djax.all_reduce(communicator))`. True stands for `mechanism` once more. None or
        False averages no state.

    Returns:
      A :class:`djax.Mechanism` that takes gradients and needs `params`, with a
      :class:`DecentralizedState`. It has to be the last link of a chain. The moments
      keep their dtypes; sums are in float32 or wider.

    Raises:
      ValueError: if `average_state` is an optimizer, a correction such as
        :func:`djax.d2`, or :func:`djax.on_updates`; if it overlaps, or is one of the
        mechanisms that second moments do not bear; in `init`, if the optimizer has no
        state like the parameters, or if `optax.tree.map_params` does not find it, as in
        that of `optax.flatten`.

    Examples:
      >>> import djax, optax
      >>> ring, workers = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> optimizer = djax.decentralized(
      ...     optax.adam(1e-3),
      ...     djax.gossip(ring, workers),
      ...     average_state=djax.every(50, djax.all_reduce(workers)),
      ... )

    References:
      Wang et al., `SlowMo: Improving Communication-Efficient Distributed SGD with Slow
      Momentum <https://arxiv.org/abs/1910.00643>`_, 2020, which compares keeping,
      resetting and averaging the base optimizer's buffers
    """
    optimizer = as_transformation("decentralized: optimizer", optimizer)
    mechanism = as_transformation("decentralized: mechanism", mechanism)
    averaging = _averaging(mechanism if average_state is True else average_state)

    def init(params):
        optimizer_state = optimizer.init(params)
        with around("decentralized(optimizer, {})"):
            mechanism_state = mechanism.init(params)
        average_states = ()
        if averaging is not None and jax.tree.leaves(params):
            with around("decentralized(..., average_state={})"):
                trees = moments_of(optimizer, optimizer_state)
                average_states = tuple(map(averaging.init, trees))
        return DecentralizedState(optimizer_state, mechanism_state, average_states)

    def average_moments(optimizer_state, average_states, params, **extra_args):
        if averaging is None or not jax.tree.leaves(params):
            return optimizer_state, ()
        return _averaged(
            averaging, optimizer, optimizer_state, average_states, **extra_args
        )

    def update(updates, state, params=None, **extra_args):
        check_state("decentralized", state, DecentralizedState, params)
        updates, optimizer_state = optimizer.update(
            updates, state.optimizer_state, params, **extra_args
        )
        optimizer_state, average_states = average_moments(
            optimizer_state, state.average_states, updates, **extra_args
        )
        with observing() as observer:
            updates, mechanism_state = mechanism.update(
                updates, state.mechanism_state, params, **extra_args
            )
            observer.compare_returned(updates)
        state = DecentralizedState(optimizer_state, mechanism_state, average_states)
        return updates, state

    def advance(updates, state, params, **extra_args):
        check_state("decentralized", state, DecentralizedState, params)

        def local_step(old, updates):
            params, optimizer_state = old
            updates, optimizer_state = optimizer.update(
                updates, optimizer_state, params, **extra_args
            )
            return optax.apply_updates(params, updates), optimizer_state

        model, optimizer_state = in_place_on_cpu(
            local_step, (params, state.optimizer_state), updates
        )
        optimizer_state, average_states = average_moments(
            optimizer_state, state.average_states, params, **extra_args
        )
        nothing = optax.tree.zeros_like(model)
        model, mechanism_state = apply_gradients(
            mechanism, nothing, state.mechanism_state, model, **extra_args
        )
        return model, DecentralizedState(
            optimizer_state, mechanism_state, average_states
        )

    parts = [Part("decentralized", None, {"optimizer": True}), *parts_of(mechanism)]
    if averaging is not None:
        parts += averaging.parts
    separable = (
        isinstance(mechanism, Mechanism)
        and mechanism.adds_displacement
        and mechanism.communicator is not None
        and not mechanism.communicator.shares_device
    )
    return wrap(
        *("decentralized", mechanism, init, update),
        parts=parts,
        advance=advance if separable else None,
    )


def _averaging(average_state: Any) -> Mechanism | None:
    """Returns the mechanism that averages the state, or None if there is none.

    Raises:
      TypeError: if it is no transformation.
      ValueError: if it may not average the state of an optimizer.
    """
    if average_state is None or average_state is False:
        return None
    name = "decentralized: average_state"
    averaging = as_transformation(name, average_state)
    for part in parts_of(averaging):
        if (reason := _why_unfit(part)) is not None:
            raise ValueError(f"{name} cannot be {part.name}, which {reason}. {_REMEDY}")
    return cast(Mechanism, averaging)  # All others are opaque.


def _why_unfit(part: Part) -> str | None:
    """Returns the reason for which a mechanism cannot average a state, if there is one.

    A worker adds to its own number the weighted differences between its neighbours'
    numbers and its own, as they were sent. The sum of numbers that are not negative is
    not negative if the worker's weight for itself is larger than the relative error of
    rounding.
    """
    for fact, reason in _UNFIT.items():
        if part.facts.get(fact):
            return reason
    sent = jnp.finfo(getattr(part.communicator, "message_dtype", None) or "float32")
    if sent.tiny > jnp.finfo("float32").tiny:
        return (
            f"rounds messages to {sent.dtype}, in which small second moments such as "
            "Adam's are lost (in bfloat16 they are not)"
        )
    if part.matrices is None:
        return None
    matrices = part.matrices()
    own = np.diagonal(matrices, axis1=1, axis2=2)
    if (matrices < 0).any() or own.min() < float(sent.eps):
        return (
            "has negative weights, or gives a worker no weight for itself, so that "
            "second moments such as Adam's may become negative"
        )
    return None


def _averaged(
    averaging: Mechanism,
    optimizer: optax.GradientTransformation,
    optimizer_state: optax.OptState,
    average_states: Sequence[optax.OptState],
    **extra_args: Any,
) -> tuple[optax.OptState, tuple[optax.OptState, ...]]:
    """Averages the moments in the state of an optimizer.

    Returns:
      The states of the optimizer and of the mechanism after the averaging.
    """
    moments = moments_of(optimizer, optimizer_state)
    if len(moments) != len(average_states):
        raise ValueError(
            f"decentralized averages {len(moments)} trees of the optimizer's state, "
            f"but the state belongs to {len(average_states)}: make a new state by its "
            "init."
        )
    # As updates of zeros, moments are replaced by their averages themselves, which an
    # exact average makes equal on all workers, and stay as they are in local steps.
    found = [
        averaging.update(tree, state, optax.tree.zeros_like(tree), **extra_args)
        for tree, state in zip(moments, average_states, strict=True)
    ]
    averages, states = zip(*found, strict=True)
    return with_moments(optimizer, optimizer_state, averages), states
