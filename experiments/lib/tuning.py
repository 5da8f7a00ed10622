"""Tunes learning rates for many random quadratics at once.

A search treats all problems together, and each of its iterations is one program of
:mod:`experiments.lib.sweep`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from .quadratics import Quadratics
from .sweep import NEVER, MakeOptimizer, Sweep

GRID = 16
"""Number of learning rates of a problem that are run at once."""


class Tuned(NamedTuple):
    """The best learning rate for each problem, and the step at which it got there.

    Both are `float[problems]`, and NaN if no rate reaches the goal.
    """

    steps: np.ndarray
    learning_rates: np.ndarray


def tune_fastest(
    make_optimizer: MakeOptimizer,
    problems: Sequence[Quadratics],
    *,
    goal: float = 1e-6,
    start: float = 10.0,
    max_steps: int = 20_000,
) -> Tuned:
    """Finds the learning rates that reach a suboptimality, `goal`, in the fewest steps.

    A run fails if its error grows from one test to the next while it is above the goal.
    The search first halves the rate from `2 * start` on. Then it tries two grids around
    the best rate; the rates of the second one differ by about 1 %.
    """
    sweep = Sweep(make_optimizer, problems, goal, max_steps)
    best = _halve(sweep, start)
    lower, upper = best.learning_rates / 2, best.learning_rates * 2
    for _ in range(2):
        inner = np.linspace(lower, upper, GRID + 2)[1:-1]
        spacing = (upper - lower) / (GRID + 1)
        best = _better(best, _best_of(sweep, inner[::-1]))
        lower, upper = best.learning_rates - spacing, best.learning_rates + spacing
    return best


def tune_as_published(
    make_optimizer: MakeOptimizer,
    problems: Sequence[Quadratics],
    *,
    goal: float = 1e-6,
    start: float = 10.0,
    max_steps: int = 20_000,
) -> Tuned:
    """Finds learning rates by the search of the RelaySGD paper's code.

    The search halves the rate until halving no longer helps. Then it bisects upwards
    for the largest rate that does not fail. The result is the fastest run on the way.
    (The paper's code records half of that run's rate; this function returns the rate
    itself.) Arguments and result are those of :func:`tune_fastest`.
    """
    sweep = Sweep(make_optimizer, problems, goal, max_steps)
    rate = upper = np.full(sweep.problems, 2 * start)
    lower, best_rate = np.full((2, sweep.problems), np.nan)
    best = np.full(sweep.problems, np.inf)
    for _ in range(30):
        searching = ~(upper - lower <= 1e-4)  # True while `lower` is NaN.
        if not searching.any():
            break
        rate = np.where(np.isnan(lower), rate, (lower + upper) / 2)
        steps, failed, _ = sweep.run(rate[None], limits=10 * best)
        steps = np.where(steps[0] < NEVER, steps[0], np.inf)
        failed = failed[0] & searching
        improved = searching & (steps < best)
        slower = searching & ~failed & ~improved
        best = np.where(improved, steps, best)
        best_rate = np.where(improved, rate, best_rate)
        upper = np.where(failed, np.fmax(lower, rate), upper)
        lower = np.where(slower, np.fmin(rate, upper), lower)
        upper = np.where(slower & np.isfinite(steps), np.fmin(4 * rate, upper), upper)
        rate = np.where(failed | improved, rate / 2, rate)
    return Tuned(np.where(np.isfinite(best), best, np.nan), best_rate)


def tune_plateau(
    make_optimizer: MakeOptimizer,
    problems: Sequence[Quadratics],
    *,
    goal: float = 1e-6,
    start: float = 10.0,
    max_steps: int = 20_000,
) -> Tuned:
    """Finds learning rates whose error settles just below a goal.

    An error has settled if at three consecutive tests it is within `goal / 100` of
    their mean. This is the search of the RelaySGD paper's code: it bisects for a rate
    whose error settles between `goal / 1.1` and `goal`. The result is the run that
    settled first, which need not have the largest rate. Arguments and result are those
    of :func:`tune_fastest`, but the error must settle below `goal`.
    """
    sweep = Sweep(make_optimizer, problems, goal, max_steps, plateau=True)
    lower, upper = np.zeros(sweep.problems), np.full(sweep.problems, 2 * start)
    best, best_rate = np.full(sweep.problems, np.inf), np.full(sweep.problems, np.nan)
    searching = np.full(sweep.problems, True)
    for _ in range(30):
        searching &= upper - lower > 1e-6
        if not searching.any():
            break
        rate = (lower + upper) / 2
        limits = np.where(searching, 10 * best, 0)
        steps, failed, level = (x[0] for x in sweep.run(rate[None], limits))
        steps = np.where(steps < NEVER, steps, np.inf)
        improved = searching & (steps < best)
        best = np.where(improved, steps, best)
        best_rate = np.where(improved, rate, best_rate)
        upper = np.where(searching & failed, rate, upper)
        lower = np.where(searching & ~failed, rate, lower)
        searching &= ~(np.isfinite(steps) & (level > goal / 1.1))
    return Tuned(np.where(np.isfinite(best), best, np.nan), best_rate)


def _halve(sweep: Sweep, start: float) -> Tuned:
    """Halves the learning rate until each problem has a success."""
    rates = 2 * start * 0.5 ** np.arange(GRID)
    best = _best_of(sweep, np.tile(rates[:, None], sweep.problems))
    if np.isnan(best.steps).any() and start > 1e-6:
        best = _better(best, _halve(sweep, rates[-1] / 4))
    return best


def _better(one: Tuned, other: Tuned) -> Tuned:
    """Returns the faster rate for each problem; the first one if both are equal."""
    faster = (other.steps < one.steps) | np.isnan(one.steps)
    return Tuned(*(np.where(faster, b, a) for a, b in zip(one, other, strict=True)))


def _best_of(sweep: Sweep, rates: np.ndarray) -> Tuned:
    """Runs `rates`, `[rates, problems]`, and returns the fastest for each problem."""
    steps, *_ = sweep.run(np.where(np.isnan(rates), 1.0, rates))
    fastest, everyone = steps.argmin(0), np.arange(sweep.problems)
    steps, rates = steps[fastest, everyone], rates[fastest, everyone]
    success = steps < NEVER
    return Tuned(np.where(success, steps, np.nan), np.where(success, rates, np.nan))
