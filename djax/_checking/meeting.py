"""Finds out whether workers that start apart hear of each other, and come together.

A worker has heard of another worker if its model depends on where that worker started.
To find out, two runs that differ in the start of one worker are compared bit for bit.
A difference shows within a few steps, however slowly the models come together.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax
import numpy as np

from djax._interfaces import PyTree
from djax._mechanism.refusals import Part

from .trial import STEPS, Trial, measured

CALLS = 64
"""Largest number of calls of the compiled program. They are 4096 steps, which is enough
for corrections such as `every` that average rarely."""

_SPREAD = 8.0  # Models start so far apart that clipping at 1 is noticed.


class Meeting(NamedTuple):
    """What has become of workers that started apart, for each leaf of their models.

    Attributes:
      steps: number of steps that the workers have made.
      finite: whether the models of workers that started at zero are finite.
      together: `bool[leaves]`, whether the models ought to come together, since workers
        have heard of the models of others.
      shrunk: `float[leaves]`, the factor by which the squared distance of the models to
        their mean has changed.
      mean_moved: `float[leaves]`, how far the mean of the models has moved, in units of
        their distance at the start.
      heard: `bool[3, workers, leaves]`, the workers whose models differ, bit for bit,
        after a change: if the first worker starts from another model, if the last
        worker does, and if the last worker has another gradient. The worker that was
        changed counts as well.
    """

    steps: int
    finite: bool
    together: np.ndarray
    shrunk: np.ndarray
    mean_moved: np.ndarray
    heard: np.ndarray

    @property
    def never(self) -> bool:
        """Whether no worker has heard of another one."""
        return bool((self.heard.sum(1) <= 1).all())

    @property
    def is_over(self) -> bool:
        """Whether more steps would show nothing new."""
        if not (self.finite and (self.shrunk < 1e6).all()):
            return True
        met = self.heard[:2].all((0, 1)) & (self.shrunk < 0.5)
        return not self.never and bool((met | ~self.together).all())


def meet(trial: Trial, parts: Sequence[Part]) -> Meeting:
    """Lets workers start apart and make steps, until it is known how they meet.

    The gradients are zero. Some optimizers divide by the norm of the gradient, so that
    the models do not stay finite. Then the run is repeated with one gradient for all
    workers that is not zero.

    Args:
      trial: the trial of the optimizer.
      parts: the mechanisms in the optimizer.
    """
    zeros = trial.models(0)
    meeting = _meet(trial, parts, zeros)
    return meeting if meeting.finite else _meet(trial, parts, trial.gradients())


def _meet(trial: Trial, parts: Sequence[Part], gradient: PyTree) -> Meeting:
    """Compares workers that start equal or apart with copies that have one change."""
    models, others, zeros = *_two_starts(trial, parts), trial.models(0)
    another = jax.tree.map(lambda g: 0.5 - g, gradient)
    last = np.arange(trial.size)[:, None] == trial.size - 1
    equal, apart = trial.group(zeros, gradient), trial.group(models, gradient)
    changed = [
        trial.group(trial.replaced(models, others, last[::-1]), gradient),
        trial.group(trial.replaced(models, others, last), gradient),
        trial.group(zeros, trial.replaced(gradient, another, last)),
    ]
    promised = draw_together(parts)
    lengths = [abs(x).astype(np.float64) for x in measured(models)]
    distance = np.array([np.square(x).mean() for x in lengths])
    heard = np.zeros((3, trial.size, len(distance)), bool)
    for call in range(1, CALLS + 1):
        equal, alone = trial.advance(equal, equal.params)
        apart, seen = trial.advance(apart, apart.params)
        for i, unchanged in enumerate((apart, apart, equal)):
            changed[i], found = trial.advance(changed[i], unchanged.params)
            heard[i] |= found.changed
        moved = [abs(x - y).mean() for x, y in zip(seen.mean, alone.mean, strict=True)]
        meeting = Meeting(
            steps=STEPS * call,
            finite=all(np.isfinite(x).all() for x in alone.mean),
            together=promised & (heard[:2].sum(1) > 1).any(0),
            shrunk=seen.distance / distance,
            mean_moved=np.array(moved) / np.sqrt(distance),
            heard=heard,
        )
        if meeting.is_over or (not parts and meeting.never):
            break
    return meeting


def cut_off(trial: Trial, parts: Sequence[Part], meeting: Meeting) -> np.ndarray:
    """Finds workers that never hear of the first worker, or of the last one.

    On large graphs, a change of one worker's model may become too small for half
    precision on its way. Therefore all workers that the change has reached are changed
    as well, until no further worker is reached.

    Args:
      trial: the trial of the optimizer.
      parts: the mechanisms in the optimizer.
      meeting: what :func:`meet` has found.

    Returns:
      `bool[workers, leaves]`.
    """
    models, others = _two_starts(trial, parts)
    silent = np.zeros_like(meeting.heard[0])
    for heard in meeting.heard[:2]:
        known = heard | ~meeting.together
        while not known.all() and (more := _hear(trial, models, others, known)).any():
            known = known | more
        silent |= ~known
    return silent


def _hear(
    trial: Trial, models: PyTree, others: PyTree, known: np.ndarray
) -> np.ndarray:
    """Finds workers that change if all known ones start from other models."""
    zeros = trial.models(0)
    unchanged = trial.group(models, zeros)
    changed = trial.group(trial.replaced(models, others, known), zeros)
    more = np.zeros_like(known)
    for _ in range(CALLS):
        unchanged, _ = trial.advance(unchanged, unchanged.params)
        changed, found = trial.advance(changed, unchanged.params)
        more = found.changed & ~known
        if more.any():
            break
    return more


def _two_starts(trial: Trial, parts: Sequence[Part]) -> tuple[PyTree, PyTree]:
    """Draws models as far apart as the mechanisms allow, twice."""
    found = [part.conditions.get("distance") for part in parts]
    limits = [0.4 * float(x) for x in found if not (x is None or _is_traced(x))]
    spread = min([_SPREAD, *limits])
    return trial.models(spread), trial.models(spread, seed=1)


def draw_together(parts: Sequence[Part]) -> bool:
    """Whether all mechanisms promise to draw the parameters together.

    The parameters of push-sum are models times weights. Both grow without bounds where
    the weights differ and messages are lost. Moniqua needs a bound on the distance
    between neighbours, which is not known if it is a traced value.
    """
    return not any(
        part.facts.get("averages_updates")
        or (part.facts.get("rounded_sums") and loses(part))
        or _is_traced(part.conditions.get("distance"))
        for part in parts
    )


def loses(part: Part) -> bool:
    """Whether messages of a mechanism may get lost."""
    return part.communicator is not None and part.communicator.drop_probability > 0


def _is_traced(x: object) -> bool:
    return isinstance(x, jax.core.Tracer)
