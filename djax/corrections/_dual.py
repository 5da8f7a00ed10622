r"""What LED and ProxSkip share: one recursion with a sequence of averaging steps.

Both algorithms make local steps along their updates and a correction :math:`c`. In some
steps they average, and feed the correction with what the averaging has moved. In LED
these steps have equal distances; in ProxSkip a coin decides. The papers' dual variables
are :math:`-c / \beta` (LED) and :math:`-c` (ProxSkip), with the dual rate
:math:`\beta`. With the correction in their place, a change of the rate does not disturb
workers that have reached the optimum.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arguments import check_rate
from djax._arrays.checks import check_params
from djax._arrays.precision import add, difference, scale
from djax._mechanism.adapter import wrap
from djax._mechanism.agreement import around, text_of
from djax._mechanism.refusals import refuse
from djax._mechanism.states import check_state
from djax._mechanism.value import Mechanism, parts_of
from djax._transformations import as_transformation
from djax.mixing import alternate

from ._stability import growth, rounded_down, smallest_eigenvalue


def dual(
    name: str,
    when: str,
    mechanism: optax.GradientTransformation,
    kind: Any,
    schedule: Sequence[int],
    dual_rate: float | jax.Array,
    share: float | jax.Array = 1.0,
    *,
    largest_rate: Callable[[float], float] | None,
    check: bool,
) -> Mechanism:
    r"""Makes a mechanism that averages in some steps, and corrects all of them.

    .. math::
       z = x + u + c, \qquad x \leftarrow z, \qquad \text{and in averaging steps} \\
       x \leftarrow z + \sigma (\operatorname{average}(z) - z), \qquad
       c \leftarrow c + \beta \sigma (\operatorname{average}(z) - z)

    Args:
      name: the name of the function that makes the correction.
      when: text of the argument that decides when the workers average, which is
        compared between processes.
      mechanism: the mechanism that averages.
      kind: the class of the correction's states. The fields are `correction`, `step`
        and `mechanism_state`.
      schedule: for each step of a period, 1 if the workers average and 0 if not.
      dual_rate: :math:`\beta`.
      share: :math:`\sigma`, which share of the way to the average the models move.
      largest_rate: returns the largest stable dual rate for the smallest eigenvalue of
        the averages, at which :math:`\sigma` counts. Without it, and for mechanisms
        whose averages are not a fixed symmetric matrix, the growth over the steps of
        `schedule` is computed.
      check: whether to refuse rates with which the workers diverge.

    Raises:
      ValueError: if the mechanism cannot be corrected, or if the rate is no rate or too
        large.
    """
    average = as_transformation(name, mechanism)
    check_rate(f"{name}: dual_rate", dual_rate)
    refused = ("losses", "old_models", "partial", "averages_updates", "rounded_sums")
    refused = ("opaque", "overlap", *refused, "optimizer", "correction")
    refuse(name, parts_of(mechanism), *refused)
    traced = any(isinstance(x, jax.core.Tracer) for x in (dual_rate, share))
    for part in parts_of(mechanism) if check and not traced else ():
        if part.matrices is not None:
            matrices = _partly(part.matrices(), float(share))
            _check_rate(
                f"{name} diverges with this {part.name}",
                matrices,
                schedule,
                float(dual_rate),
                largest_rate,
            )
    form = f"{name}({when}, {{}}, {text_of(dual_rate)}, share={text_of(share)})"

    def init(params):
        check_params(name, params)
        with around(form):
            mechanism_state = mechanism.init(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        return kind(zeros, jnp.zeros((), jnp.int32), mechanism_state)

    def update(updates, state, params=None, **extra_args):
        params = check_params(name, params)
        check_state(name, state, kind, params, "correction")

        def communicate(both, correction, mechanism_state):
            averaged, mechanism_state = average.update(
                both, mechanism_state, params, **extra_args
            )
            away = difference(averaged, both)
            # At a share of 1, this is `averaged` to the last bit.
            found = add(averaged, scale(1 - share, away), like=both, sign=-1)
            learnt = scale(dual_rate, scale(share, away))
            correction = add(correction, learnt, like=correction)
            return found, correction, mechanism_state

        found, correction, mechanism_state = alternate(
            state.step,
            schedule,
            (lambda *same: same, communicate),
            add(updates, state.correction, like=updates),
            state.correction,
            state.mechanism_state,
        )
        step = optax.safe_increment(state.step)
        return found, kind(correction, step, mechanism_state)

    facts = {
        "needs_every_message": True,
        "correction": True,
        "every_step": f"{name} makes local steps by itself, so put it alone behind the "
        "optimizer",
    }
    return wrap(name, mechanism, init, update, facts)


def _partly(matrices: np.ndarray, share: float) -> np.ndarray:
    """The matrices of averages to which models move only a share of the way."""
    return share * matrices + (1 - share) * np.eye(matrices.shape[1])


def _check_rate(
    problem: str,
    matrices: np.ndarray,
    schedule: Sequence[int],
    dual_rate: float,
    largest_rate: Callable[[float], float] | None,
) -> None:
    """Raises ValueError if the workers diverge at this rate, whatever the gradients."""
    smallest = smallest_eigenvalue(matrices)
    if smallest is not None and smallest > 1 - 1e-9:
        return  # There is only one worker.
    if smallest is not None and largest_rate is not None:
        largest = largest_rate(smallest)
        if dual_rate <= largest * (1 + 1e-6):  # Rates may be float32.
            return
        remedy = f"the largest stable dual_rate is {rounded_down(largest):.4g}"
    else:
        # If nothing shrinks, rounding errors add up: a growth of 1 is too much.
        grown = functools.partial(growth, matrices, _intervals(schedule))
        if (factor := grown(dual_rate)) < 1 - 1e-9:
            return
        halves = (dual_rate / 2**k for k in range(1, 12))
        largest = next((rate for rate in halves if grown(rate) < 1 - 1e-9), 0.0)
        remedy = (
            "over a period the differences between the workers, which have to shrink, "
            f"are multiplied by {factor:.4g}. They shrink at "
            f"dual_rate={rounded_down(largest):.4g}"
        )
    if largest <= 0:
        remedy = "no smaller rate is stable either"
    raise ValueError(
        f"{problem} at dual_rate={dual_rate:.4g}: {remedy}. Larger rates are stable at "
        "half the consensus_rate, or on a topology with weights='lazy'."
    )


def _intervals(schedule: Sequence[int]) -> list[int]:
    """The number of steps up to each averaging, if the schedule repeats itself."""
    averaging = np.flatnonzero(schedule)
    return np.diff(averaging, prepend=averaging[-1] - len(schedule)).tolist()
