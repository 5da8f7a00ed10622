"""Runs and tunes the compressed averaging methods of the consensus figure."""

import functools
import itertools
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import djax
from djax import communicators, compressors, topologies

SIZE, GOAL, BEST_RATE = 8, 1e-4, 1.308
RATES = np.geomspace(1e-4, BEST_RATE, 20)[:, None]
FEWER_RATES = np.geomspace(1e-4, BEST_RATE, 10)
MONIQUA = np.array(list(itertools.product(FEWER_RATES, np.geomspace(0.1, 10, 10))))
RING, COMMUNICATOR = topologies.ring(SIZE), communicators.simulated(SIZE)


class Method(NamedTuple):
    """A way to average.

    Attributes:
      alias: makes the mechanism.
      codes: the compressor, if `alias` takes one.
      grid: settings among which the best one is chosen, `float64[settings,
        parameters]`. The parameters are the consensus rate and the bound, or the first
        or none of them.
      untuned: the setting that is used without tuning; None if there is nothing to
        tune.
      shorter: divisor of the number of steps, larger than 1 for methods that converge
        or stop early, or are slow to compute.
      screening: number of steps after which the settings of the grid are compared.
      sends_start: whether each worker first sends its start uncompressed.
    """

    color: str
    alias: Callable
    codes: tuple[djax.Compressor, ...] = ()
    grid: np.ndarray = np.array([[BEST_RATE]])
    untuned: tuple[float, ...] | None = None
    shorter: float = 1
    screening: int = 500
    sends_start: bool = False

    def make(self, setting: Iterable[Any]) -> djax.Mechanism:
        """Makes the mechanism with these parameters."""
        parameters = dict(zip(("consensus_rate", "theta"), setting, strict=False))
        return self.alias(RING, COMMUNICATOR, *self.codes, **parameters)


def _power(color: str, **options: Any) -> Method:
    return Method(color, functools.partial(djax.power_gossip, **options))


def _tuned(color: str, alias: Callable, code: djax.Compressor, **options) -> Method:
    return Method(color, alias, (code,), RATES, (BEST_RATE,), **options)


QSGD = (compressors.quantize(8),)
COPIES = {"grid": np.empty((1, 0)), "shorter": 10, "sends_start": True}
METHODS = {
    "uncompressed gossip": Method("black", djax.gossip, shorter=10),
    "PowerGossip": _power("tab:red"),
    "PowerGossip, random": _power("salmon", warm_start=False),
    "PowerGossip, signs": _power("tab:orange", sign=True),
    "PowerGossip, random signs": _power("gold", sign=True, warm_start=False),
    "CHOCO, sign": _tuned("tab:blue", djax.choco_gossip, compressors.sign()),
    "CHOCO, top-k": _tuned("tab:cyan", djax.choco_gossip, compressors.top_k(rank=1)),
    # Fewer steps, because a decomposition of each difference costs seconds.
    "CHOCO, SVD": _tuned(
        "navy", djax.choco_gossip, compressors.low_rank(1), screening=400, shorter=4
    ),
    "CHOCO, random-k": _tuned(
        "tab:green", djax.choco_gossip, compressors.random_k(rank=2), shorter=2
    ),
    "CHOCO, QSGD 4 bits": _tuned(
        "tab:olive",
        djax.choco_gossip,
        compressors.quantize(4, unbiased=False),
        shorter=5,
    ),
    "DeepSqueeze, sign": _tuned("tab:purple", djax.deep_squeeze, compressors.sign()),
    "Moniqua, 2 bits": Method(
        "tab:brown", djax.moniqua, grid=MONIQUA, untuned=(BEST_RATE, 1.0)
    ),
    "DCD, QSGD 8 bits": Method("tab:pink", djax.dcd, QSGD, **COPIES),
    "ECD, QSGD 8 bits": Method("tab:gray", djax.ecd, QSGD, **COPIES),
}


def errors(
    method: Method, start: jax.Array, settings: np.ndarray, steps: int
) -> np.ndarray:
    """Averages with all settings in one program, and measures the errors.

    The errors before the first step and after each step, relative to the first one, are
    `float64[settings, 1 + steps]`. The settings are `[settings, parameters]`.
    """
    target = start.mean(0)

    @COMMUNICATOR.spmd
    def worker(x, setting):
        mechanism = method.make(setting)

        def step(carry, _):
            x, state = carry
            updates, state = mechanism.update(jnp.zeros_like(x), state, x)
            x = x + updates
            return (x, state), jnp.sum((x - target) ** 2)

        first = jnp.sum((x - target) ** 2)
        _, later = jax.lax.scan(step, (x, mechanism.init(x)), length=steps)
        return jnp.concatenate([first[None], later])

    def run(setting):
        return worker(start, communicators.replicate(COMMUNICATOR, setting)).mean(0)

    grid = jnp.asarray(settings, jnp.float32)
    found = np.asarray(jax.jit(jax.vmap(run))(grid), np.float64)
    return found / found[:, :1]


def first_below(curve: np.ndarray) -> float:
    """Finds the first step with an error below the goal; infinite if there is none."""
    below = np.flatnonzero(curve < GOAL)
    return float(below[0]) if len(below) else np.inf


def _best(curves: np.ndarray) -> int:
    """Finds the curve that reaches the goal first, or else has the least last error."""
    last = np.nan_to_num(curves[:, -1], nan=np.inf)
    first = np.array([first_below(curve) for curve in curves])
    return int(np.lexsort((last, first))[0])


def tune(method: Method, start: jax.Array, steps: int) -> tuple[list, np.ndarray]:
    """Finds the best setting of the grid, and its curve of errors.

    All settings are compared over `method.screening` steps. The best one and its
    neighbours in the grid are then compared over all steps.
    """
    grid = method.grid
    if len(grid) > 1:
        best = _best(errors(method, start, grid, min(method.screening, steps)))
        places = np.stack(
            [np.unique(x, return_inverse=True)[1] for x in grid.T], axis=1
        )
        grid = grid[(np.abs(places - places[best]) <= 1).all(1)]
    curves = errors(method, start, grid, steps)
    best = _best(curves)
    return grid[best].tolist(), curves[best]
