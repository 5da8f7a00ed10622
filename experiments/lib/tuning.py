"""Tunes learning rates for many random quadratics at once, in one compiled program.

Random quadratics are so small that a single run leaves most of a machine idle.
Therefore all runs of a grid of learning rates on several problems are computed
together, with all their workers. A search consists of a few such grids.

The rules by which a run counts as failed, successful or settled, and the steps at
which this is tested, are those of the RelaySGD paper's figures: Vogels et al.,
`RelaySum for Decentralized Deep Learning on Heterogeneous Data
<https://arxiv.org/abs/2110.04175>`_, 2021.

This file is longer than 300 lines since each search relies on how runs are judged here.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

import djax

from .quadratics import Quadratics

MakeOptimizer = Callable[[jax.Array, djax.Communicator], optax.GradientTransformation]
"""Makes the optimizer of every worker from a learning rate, which is traced by JAX, and
a communicator."""

TEST_POINTS = 1000
"""Approximate number of tests of a run, at steps that grow geometrically."""
NEVER = np.iinfo(np.int32).max
GRID = 16
"""Number of learning rates of a problem that are run at once."""


class _Problems(NamedTuple):
    """Several problems, whose gradients are :math:`H_i x - c_i`, as arrays.

    Errors are :math:`(x - x^*)^T H (x - x^*)`, where H is the mean of the :math:`H_i`.

    Attributes:
      hessians: :math:`H_i = A_i^T A_i`, `[problems, n, d, d]`.
      linear: :math:`c_i = A_i^T b_i`, `[problems, n, d]`.
      optima: :math:`x^*`, `[problems, d]`.
    """

    hessians: jax.Array
    linear: jax.Array
    optima: jax.Array


class _Progress(NamedTuple):
    """What the tests have found of the runs; arrays are `[rates, problems]`.

    Attributes:
      test: number of tests so far, which is the same for all runs.
      last: errors at the last two tests, `[2, rates, problems]`.
      reached: step of the first test at which the goal was reached, or `NEVER`.
      level: mean error of the three tests that end with that one.
    """

    test: jax.Array
    first: jax.Array
    last: jax.Array
    failed: jax.Array
    reached: jax.Array
    level: jax.Array


def curves(
    make_optimizer: MakeOptimizer,
    problem: Quadratics,
    learning_rate: float,
    steps: int,
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """Computes the error of one run before the first step and after each step.

    The error is the suboptimality of the workers' mean, `float[steps + 1]`. All workers
    start at zero. The noise is the standard deviation of a gradient's noise: the root
    of its expected squared norm.
    """
    stacked = _stack([problem])
    size, dim = stacked.linear.shape[1:]
    communicator = djax.communicators.simulated(size)
    optimizer = make_optimizer(jnp.asarray(learning_rate), communicator)

    def worker(hessian, linear):
        def step(carry, key):
            x, state = carry
            gradient = hessian @ x - linear
            if noise:  # Random numbers take longer to compile than everything else.
                key = jax.random.fold_in(key, communicator.rank())
                gradient += jax.random.normal(key, (dim,)) * (noise / np.sqrt(dim))
            updates, state = optimizer.update(gradient, state, x)
            x = optax.apply_updates(x, updates)
            return (x, state), x

        x = jnp.zeros(dim)
        keys = jax.random.split(jax.random.key(seed), steps)
        _, xs = jax.lax.scan(step, (x, optimizer.init(x)), keys)
        return jnp.concatenate([x[None], xs])

    xs = jax.jit(communicator.spmd(worker))(stacked.hessians[0], stacked.linear[0])
    offsets = xs.mean(0) - stacked.optima[0]
    hessian = stacked.hessians[0].mean(0)
    return np.asarray(jnp.einsum("ti,ij,tj->t", offsets, hessian, offsets))


class Sweep:
    """Runs grids of learning rates on the same problems in one program.

    A run succeeds if its error falls below the goal; with `plateau`, if it also settles
    there. A run fails if its error is NaN, or grows or settles above the goal.
    """

    def __init__(
        self,
        make_optimizer: MakeOptimizer,
        problems: Sequence[Quadratics],
        goal: float,
        max_steps: int,
        plateau: bool = False,
    ):
        """Keeps the arguments; :meth:`run` compiles the program."""
        self.problems, self._stacked = len(problems), _stack(problems)
        self._goal, self._plateau = goal, plateau
        size = self._stacked.linear.shape[1]
        self._communicator = djax.communicators.simulated(size)
        self._make_optimizer = make_optimizer
        points = np.geomspace(1, max_steps, TEST_POINTS).round().astype(np.int32)
        self._tests = np.unique(points)
        self._program = jax.jit(self._run)

    def run(self, rates, limits=np.inf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs until each problem has a success, or all its runs have failed.

        The runs of a problem are given up after `limits` steps. The result is three
        arrays `[rates, problems]`: the steps to success, or `NEVER`; whether the run
        failed; and the mean error of the last three tests until either.
        """
        limits = np.broadcast_to(np.minimum(limits, NEVER - 1), self.problems)
        rates, limits = jnp.asarray(rates), jnp.asarray(limits, jnp.int32)
        found = self._program(rates, limits, self._stacked)
        return (
            np.asarray(found.reached),
            np.asarray(found.failed),
            np.asarray(found.level),
        )

    def _run(self, rates, limits, problems):
        size, dim = problems.linear.shape[1:]
        tests = jnp.asarray(self._tests)
        params = jnp.zeros((*rates.shape, size, dim))
        state = jax.vmap(jax.vmap(self._init))(rates, params)
        step = jax.vmap(jax.vmap(self._step), (0, None, 0, 0))
        progress = _Progress(
            test=jnp.zeros((), jnp.int32),
            first=jnp.full(rates.shape, jnp.inf),
            last=jnp.full((2, *rates.shape), jnp.inf),
            failed=jnp.zeros(rates.shape, bool),
            reached=jnp.full(rates.shape, NEVER, jnp.int32),
            level=jnp.full(rates.shape, jnp.inf),
        )

        def undecided(carry):
            progress, *_ = carry
            next_step = tests[jnp.minimum(progress.test, len(tests) - 1)]
            # Once a run has arrived, all other runs of the problem are slower.
            arrived = (progress.reached < NEVER).any(0) | progress.failed.all(0)
            open_ = ~arrived & (next_step <= limits)
            return (progress.test < len(tests)) & open_.any()

        def advance(carry):
            progress, params, state = carry
            now = tests[progress.test]
            before = jnp.where(progress.test > 0, tests[progress.test - 1], 0)
            params, state = jax.lax.fori_loop(
                before, now, lambda _, c: step(rates, problems, *c), (params, state)
            )
            progress = self._judge(progress, _errors(problems, params), now)
            return progress, params, state

        progress, *_ = jax.lax.while_loop(undecided, advance, (progress, params, state))
        return progress

    def _init(self, rate, params):
        optimizer = self._make_optimizer(rate, self._communicator)
        return self._communicator.spmd(optimizer.init)(params)

    def _step(self, rate, problem, params, state):
        optimizer = self._make_optimizer(rate, self._communicator)

        def worker(x, state, hessian, linear):
            # A sum is used because XLA's batched products of tiny matrices are slow.
            gradient = jnp.sum(hessian * x, axis=-1) - linear
            updates, state = optimizer.update(gradient, state, x)
            return optax.apply_updates(x, updates), state

        return self._communicator.spmd(worker)(
            params, state, problem.hessians, problem.linear
        )

    def _judge(self, progress, errors, step):
        """Updates what is known of the runs by a test at `step`."""
        goal, open_ = self._goal, ~progress.failed & (progress.reached == NEVER)
        first = jnp.where(progress.test > 0, progress.first, errors)
        recent = jnp.concatenate([progress.last, errors[None]])
        tolerance = goal / 100 if self._plateau else goal / 10
        level = recent.mean(0)
        settled = (jnp.abs(recent - level) < tolerance).all(0)
        growing = errors > progress.last[1]
        low = errors < goal
        lost = jnp.isnan(errors) | (errors > first) | (~low & (growing | settled))
        success = low & settled if self._plateau else low
        return _Progress(
            test=progress.test + 1,
            first=first,
            last=recent[1:],
            failed=progress.failed | (open_ & lost),
            reached=jnp.where(open_ & ~lost & success, step, progress.reached),
            level=jnp.where(open_, level, progress.level),
        )


def _stack(problems: Sequence[Quadratics]) -> _Problems:
    matrices = np.stack([p.matrices for p in problems])
    offsets = np.stack([p.offsets for p in problems])
    transposed = matrices.swapaxes(-1, -2)
    return _Problems(
        jnp.asarray(transposed @ matrices),
        jnp.asarray((transposed @ offsets[..., None])[..., 0]),
        jnp.asarray(np.stack([p.optimum for p in problems])),
    )


def _errors(problems: _Problems, params: jax.Array) -> jax.Array:
    """Returns :math:`f(mean x) - f(x^*)`, `[rates, problems]`, without cancellation."""
    offsets = params.mean(2) - problems.optima
    hessian = problems.hessians.mean(1)
    return jnp.einsum("rpi,pij,rpj->rp", offsets, hessian, offsets)


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
