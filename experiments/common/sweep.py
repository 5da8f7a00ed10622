"""Many runs of all workers in one program: learning rates times problems.

Random quadratics are so small that one run leaves a machine idle. Here the runs of a
grid of learning rates on several problems advance together, all workers of all of them
in one jitted program, and tuning becomes a few such grids, each closer around the best
rate of the one before.

The rules of when a run counts as failed, successful or settled, and the steps at which
that is tested, are those of the RelaySGD paper's figures: Vogels et al., `RelaySum for
Decentralized Deep Learning on Heterogeneous Data <https://arxiv.org/abs/2110.04175>`_,
2021.
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
"""From a learning rate, a tracer, and a communicator, to what every worker runs."""

GRID = 16
"""How many learning rates run at once."""
TEST_POINTS = 1000
"""About how often a run is tested, at steps that grow geometrically."""
NEVER = np.iinfo(np.int32).max


class Tuned(NamedTuple):
    """The best learning rate for each problem.

    Attributes:
      steps: `float[problems]`, the step at which the goal was reached; NaN if no rate
        reaches it.
      learning_rates: `float[problems]`; NaN likewise.
    """

    steps: np.ndarray
    learning_rates: np.ndarray


class _Problems(NamedTuple):
    """Stacked problems, as :math:`H_i x - c_i` and :math:`(x - x^*)^T H (x - x^*)`.

    Attributes:
      hessians: :math:`H_i = A_i^T A_i`, `[problems, n, d, d]`.
      linear: :math:`c_i = A_i^T b_i`, `[problems, n, d]`.
      optima: `[problems, d]`.
    """

    hessians: jax.Array
    linear: jax.Array
    optima: jax.Array


class _Progress(NamedTuple):
    """What is known of the runs, arrays `[rates, problems]`.

    Attributes:
      test: number of tests so far, the same for all.
      first: error at the first test.
      last: errors at the last two tests, `[2, rates, problems]`.
      failed: whether the error was NaN, grew, or settled, while it was above the goal.
      reached: step of the first test at which the goal was reached, or `NEVER`.
      level: mean error of the last three tests up to that one.
    """

    test: jax.Array
    first: jax.Array
    last: jax.Array
    failed: jax.Array
    reached: jax.Array
    level: jax.Array


def tune_fastest(
    make_optimizer: MakeOptimizer,
    problems: Sequence[Quadratics],
    *,
    goal: float = 1e-6,
    start: float = 10.0,
    max_steps: int = 20_000,
) -> Tuned:
    """Finds the learning rates that reach an error first.

    A run fails if its error grows from one test to the next while it is above the goal.
    Halving the rate from `2 * start`, then two grids around the best, the last with
    steps of about 1 %.

    Args:
      make_optimizer: the algorithm.
      problems: each is tuned for itself; all have the same number of workers.
      goal: the error, suboptimality of the workers' mean, to get below.
      start: half of the largest rate tried.
      max_steps: when a run is given up.

    Returns:
      Steps and rates.
    """
    sweep = _Sweep(make_optimizer, problems, goal, max_steps, plateau=False)
    best = _halve(sweep, start)
    lower, upper = best.learning_rates / 2, best.learning_rates * 2
    for _ in range(2):
        inner = np.linspace(lower, upper, GRID + 2)[1:-1]
        spacing = (upper - lower) / (GRID + 1)
        best = _better(best, sweep.best_of(inner[::-1]))
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
    """The same with the search of the RelaySGD paper's code, for comparison.

    It halves the rate until that no longer helps, then bisects upwards for the largest
    rate that does not fail, and remembers the fastest run that it met. (There it writes
    down half of that run's rate; here it is the rate itself.)

    Args:
      make_optimizer: the algorithm.
      problems: each is tuned for itself; all have the same number of workers.
      goal: the error, suboptimality of the workers' mean, to get below.
      start: half of the largest rate tried.
      max_steps: when a run is given up.

    Returns:
      Steps and rates.
    """
    sweep = _Sweep(make_optimizer, problems, goal, max_steps, plateau=False)
    rate = upper = np.full(sweep.problems, 2 * start)
    lower, best_rate = np.full((2, sweep.problems), np.nan)
    best = np.full(sweep.problems, np.inf)
    for _ in range(30):
        searching = ~(upper - lower <= 1e-4)  # Also where there is no lower bound yet.
        if not searching.any():
            break
        bisecting = ~np.isnan(lower)
        rate = np.where(bisecting, (lower + upper) / 2, rate)
        steps, failed, _ = sweep.run(rate[None], limits=10 * best)
        steps = np.where(steps[0] < NEVER, steps[0], np.inf)
        failed = failed[0] & searching
        improved = searching & (steps < best)
        slower = searching & ~failed & ~improved
        best, best_rate = (
            np.where(improved, steps, best),
            np.where(improved, rate, best_rate),
        )
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
    """Finds the largest learning rates whose error settles below a goal.

    It has settled when at three consecutive tests it is within `goal / 100` of their
    mean. Halving the rate from `2 * start`, then one grid up to twice the largest
    success, in steps of 4 %.

    Args:
      make_optimizer: the algorithm.
      problems: each is tuned for itself; all have the same number of workers.
      goal: what the error has to settle below.
      start: half of the largest rate tried.
      max_steps: when a run is given up.

    Returns:
      Steps until it has settled, and rates.
    """
    sweep = _Sweep(make_optimizer, problems, goal, max_steps, plateau=True)
    best = _halve(sweep, start)
    factors = np.geomspace(2, 1, GRID, endpoint=False)
    refined = sweep.best_of(factors[:, None] * best.learning_rates)
    missed = np.isnan(refined.steps)
    return Tuned(*(np.where(missed, *b) for b in zip(best, refined, strict=True)))


def tune_plateau_as_published(
    make_optimizer: MakeOptimizer,
    problems: Sequence[Quadratics],
    *,
    goal: float = 1e-6,
    start: float = 10.0,
    max_steps: int = 20_000,
) -> Tuned:
    """The same with the search of the RelaySGD paper's code, for comparison.

    It bisects for a rate whose error settles between `goal / 1.1` and `goal`. Of the
    runs that it met, it returns not the one with the largest rate, but the one that
    settled first.

    Args:
      make_optimizer: the algorithm.
      problems: each is tuned for itself; all have the same number of workers.
      goal: what the error has to settle below.
      start: half of the largest rate tried.
      max_steps: when a run is given up.

    Returns:
      Steps until it has settled, and rates.
    """
    sweep = _Sweep(make_optimizer, problems, goal, max_steps, plateau=True)
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
        best, best_rate = (
            np.where(improved, steps, best),
            np.where(improved, rate, best_rate),
        )
        upper = np.where(searching & failed, rate, upper)
        lower = np.where(searching & ~failed, rate, lower)
        searching &= ~(np.isfinite(steps) & (level > goal / 1.1))
    return Tuned(np.where(np.isfinite(best), best, np.nan), best_rate)


def curves(
    make_optimizer: MakeOptimizer,
    problem: Quadratics,
    learning_rate: float,
    steps: int,
    *,
    noise: float = 0.0,
    seed: int = 0,
) -> np.ndarray:
    """The error of one run after each step.

    Args:
      make_optimizer: the algorithm.
      problem: what is minimized.
      learning_rate: the step size.
      steps: how many.
      noise: standard deviation of a gradient, over all coordinates together.
      seed: of the noise.

    Returns:
      `float[steps + 1]`, suboptimality of the workers' mean, at first that of zero.
    """
    stacked = _stack([problem])
    size, dim = stacked.linear.shape[1:]
    communicator = djax.communicators.simulated(size)
    optimizer = make_optimizer(jnp.asarray(learning_rate), communicator)

    def worker(hessian, linear):
        def step(carry, key):
            x, state = carry
            gradient = hessian @ x - linear
            if noise:  # Random numbers take longer to compile than all the rest.
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


def _halve(sweep: "_Sweep", start: float) -> Tuned:
    """Halves the learning rate until each problem has a success."""
    rates = 2 * start * 0.5 ** np.arange(GRID)
    best = sweep.best_of(np.tile(rates[:, None], sweep.problems))
    if np.isnan(best.steps).any() and start > 1e-6:
        best = _better(best, _halve(sweep, rates[-1] / 4))
    return best


def _better(one: Tuned, other: Tuned) -> Tuned:
    """The faster one, problem by problem; the first where both are the same."""
    faster = (other.steps < one.steps) | np.isnan(one.steps)
    return Tuned(*(np.where(faster, b, a) for a, b in zip(one, other, strict=True)))


class _Sweep:
    """Runs grids of learning rates on the same problems in one program."""

    def __init__(self, make_optimizer, problems, goal, max_steps, plateau):
        self.problems = len(problems)
        self._stacked = _stack(problems)
        self._goal, self._plateau = goal, plateau
        size = self._stacked.linear.shape[1]
        self._communicator = djax.communicators.simulated(size)
        self._make_optimizer = make_optimizer
        points = np.geomspace(1, max_steps, TEST_POINTS).round().astype(np.int32)
        self._tests = np.unique(points)
        self._program = jax.jit(self._run)

    def run(self, rates, limits=np.inf) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Runs `rates [rates, problems]`, in descending order, until the best is known.

        Args:
          rates: learning rates.
          limits: steps after which a problem's runs are given up.

        Returns:
          Steps of success or `NEVER`, whether the run failed, and the mean error at the
          last three tests before it did either, `[rates, problems]`.
        """
        limits = np.broadcast_to(np.minimum(limits, NEVER - 1), self.problems)
        rates, limits = jnp.asarray(rates), jnp.asarray(limits, jnp.int32)
        progress = self._program(rates, limits, self._stacked)
        reached, failed = np.asarray(progress.reached), np.asarray(progress.failed)
        return reached, failed, np.asarray(progress.level)

    def best_of(self, rates: np.ndarray) -> Tuned:
        """The best of `rates [rates, problems]`, in descending order, for each problem.

        It is the fastest, or the largest whose error settles.
        """
        reached, *_ = self.run(np.where(np.isnan(rates), 1.0, rates))
        best = (reached < NEVER).argmax(0) if self._plateau else reached.argmin(0)
        everyone = np.arange(self.problems)
        success = reached[best, everyone] < NEVER
        return Tuned(
            np.where(success, reached[best, everyone], np.nan),
            np.where(success, rates[best, everyone], np.nan),
        )

    def _run(self, rates, limits, problems):
        size, dim = problems.linear.shape[1:]
        tests = jnp.asarray(self._tests)
        params = jnp.zeros((*rates.shape, size, dim))
        state = self._everywhere(self._init)(rates, problems, params)
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
            open_ = ~self._decided(progress) & (next_step <= limits)
            return (progress.test < len(tests)) & open_.any()

        def advance(carry):
            progress, params, state = carry
            now = tests[progress.test]
            before = jnp.where(progress.test > 0, tests[progress.test - 1], 0)
            params, state = jax.lax.fori_loop(
                before,
                now,
                lambda _, c: self._everywhere(self._step)(rates, problems, *c),
                (params, state),
            )
            progress = self._judge(progress, _errors(problems, params), now)
            return progress, params, state

        progress, *_ = jax.lax.while_loop(undecided, advance, (progress, params, state))
        return progress

    def _everywhere(self, run: Callable) -> Callable:
        """Lifts a function of one run to all rates and problems."""

        def all_runs(rates, problems, *rest):
            rows = (0, None, *(0 for _ in rest))
            return jax.vmap(jax.vmap(run), rows)(rates, problems, *rest)

        return all_runs

    def _init(self, rate, problem, params):
        del problem
        optimizer = self._make_optimizer(rate, self._communicator)
        return self._communicator.spmd(optimizer.init)(params)

    def _step(self, rate, problem, params, state):
        optimizer = self._make_optimizer(rate, self._communicator)

        def worker(x, state, hessian, linear):
            # Not as a matrix product: XLA's batched ones are slow where tiny.
            gradient = jnp.sum(hessian * x, axis=-1) - linear
            updates, state = optimizer.update(gradient, state, x)
            return optax.apply_updates(x, updates), state

        return self._communicator.spmd(worker)(
            params, state, problem.hessians, problem.linear
        )

    def _judge(self, progress, errors, step):
        """What a test at `step` tells."""
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

    def _decided(self, progress):
        """`bool[problems]`: whether no other run can be the best one any more."""
        success = progress.reached < NEVER
        known = success | progress.failed
        if self._plateau:
            larger_known = jnp.cumprod(known, axis=0).astype(bool)
            return (success & larger_known).any(0) | known.all(0)
        return success.any(0) | known.all(0)  # Who has not arrived yet is slower.


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
    """:math:`f(mean x) - f(x^*)`, `[rates, problems]`, without cancellation."""
    offsets = params.mean(2) - problems.optima
    hessian = problems.hessians.mean(1)
    return jnp.einsum("rpi,pij,rpj->rp", offsets, hessian, offsets)
