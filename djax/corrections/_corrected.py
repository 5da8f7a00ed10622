"""What D² and gradient tracking share: a correction that is added to every update."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._arrays.checks import check_params
from djax._arrays.precision import add
from djax._arrays.split import computed_once
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation


def corrected(
    name: str,
    mechanism: optax.GradientTransformation,
    kind: Any,
    refused: Sequence[str],
    track: Callable[[Any], optax.GradientTransformationExtraArgs] | None = None,
) -> Mechanism:
    """Makes a mechanism that averages models with their updates and corrections.

    With the updates u and the corrections c, the models x + u + c are averaged. The
    next correction of a worker is a tracked update minus its update u.

    Args:
      name: the name of the function that makes the correction.
      mechanism: the mechanism that averages the models.
      kind: the class of the correction's states. The fields are the correction, the
        state of `mechanism`, and the state of the mechanism that `track` makes, if any.
      refused: names of :data:`djax._mechanism.refusals.REASONS`.
      track: makes out of `mechanism` a mechanism that averages u + c; the average is
        the tracked update. Without `track`, the tracked update is the change of the
        model.

    Raises:
      ValueError: if one of the refused facts is true of the mechanism.
    """
    average = as_transformation(name, mechanism)
    always = "opaque", "overlap", "averages_updates"
    refuse(name, parts_of(mechanism), *always, *refused)
    tracker = None if track is None else track(mechanism)
    used = (average,) if tracker is None else (average, tracker)
    communicator = getattr(mechanism, "communicator", None)
    shares_device = getattr(communicator, "shares_device", False)

    def init(params):
        check_params(name, params)
        with around(f"{name}({{}})"):
            states = [each.init(params) for each in used]
        return kind(jax.tree.map(jnp.zeros_like, params), *states)

    def update(updates, state, params=None, **extra_args):
        params = check_params(name, params)
        check_state(name, state, kind, params, "correction")
        both = add(updates, state.correction, like=updates)
        averaged, *states = average.update(both, state[1], params, **extra_args)
        if tracker is None and shares_device:
            # XLA would compute what the workers receive in passes of their own, since
            # both the model and the correction need it.
            averaged = jax.tree.map(computed_once, averaged)
        tracked = averaged
        if tracker is not None:
            tracked, after = tracker.update(both, state[2], **extra_args)
            states.append(after)
        correction = add(tracked, updates, like=state.correction, sign=-1)
        return averaged, kind(correction, *states)

    facts = {
        "needs_every_message": True,
        "correction": True,
        "every_step": f"use {name}(every(k, ...))",
    }
    return wrap(name, mechanism, init, update, facts)
