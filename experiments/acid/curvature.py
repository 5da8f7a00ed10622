r"""For which curvature of the loss the momentum reduces the noise between workers.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.curvature           # half a minute
    python -m experiments.acid.curvature --smoke   # seconds

All workers of a ring have the same quadratic loss, so that only the noise of their
gradients keeps them apart. The loss is a sum of terms :math:`h x^2 / 2` with different
curvatures :math:`h`, and gradients are :math:`h x + \xi` with standard normal noise.
SGD has the step size :math:`\gamma` and the momentum :math:`\beta`. When it has
settled, the variance of the workers around their mean is measured. Two rates per
gradient decide about it: gradient descent forgets old noise at the rate
:math:`\gamma h / (1 - \beta)`, and the momentum of A²CiD² mixes at the rate
:math:`\eta`.

With SGD's momentum 0.9, expect the variance of A²CiD² at rate 1 to be below that of the
baseline at rate 2 for small curvatures, and above that of the baseline at rate 1 where
gradient descent forgets faster than three times :math:`\eta`. With SGD's momentum 0,
expect it at most 7 % below the baseline at rate 1, and above the baseline where
gradient descent forgets faster than a thirtieth of :math:`\eta`. A loss weights the
variance by the curvature, so the gain in flat directions matters little.
"""

import itertools
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import asynchronous, topologies

from ..lib import figures
from .training import COLORS, METHODS, set_up

CURVATURES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STEP_SIZE, MOMENTA = 0.1, (0.0, 0.9)
SIZE, STEPS_PER_EPOCH = 64, 100


def variances(
    method: str, momentum: float, size: int, gradients: int, copies: int
) -> np.ndarray:
    """Measures for each of `CURVATURES` the workers' variance when it has settled.

    A worker computes `gradients` on average. The first half is not measured, so that
    the variances can settle. Each curvature has `copies` of independent coordinates.
    """
    shape = (len(CURVATURES), copies)
    curvatures = jnp.asarray(CURVATURES)[:, None]

    def gradient_fn(x, model_state, noise):
        return curvatures * x + noise, model_state, {}

    def noise(epoch):
        return jax.random.normal(jax.random.key(epoch), (size, STEPS_PER_EPOCH, *shape))

    base = optax.sgd(STEP_SIZE, momentum=momentum)
    algorithm, events = set_up(method, base, size, gradients, seed=1)
    start = jnp.zeros((size, *shape))
    times = np.linspace(events.duration / 2, events.duration, 50).tolist()
    seen = asynchronous.simulate(
        algorithm, events, start, gradient_fn, noise, times=times
    )
    return np.mean([np.var(x.params, 0).mean(1) for x in seen], 0)


def compute(*sizes: int) -> Iterator[figures.Record]:
    """Measures the variances of all methods, with and without momentum of SGD.

    The arguments are the last ones of :func:`variances`.
    """
    todo = list(itertools.product(MOMENTA, METHODS))
    for momentum, method in tqdm(todo, desc="curvature", unit="run"):
        found = variances(method, momentum, *sizes)
        for h, variance in zip(CURVATURES, found.tolist(), strict=True):
            yield {
                "momentum": momentum,
                "method": method,
                "curvature": h,
                "forgetting": STEP_SIZE * h / (1 - momentum),
                "variance": variance,
            }


def make_tables(records: list[figures.Record]):
    """Shows the variances of all methods and curvatures."""
    rows = []
    for momentum, h in itertools.product(MOMENTA, CURVATURES):
        mine = figures.select(records, momentum=momentum, curvature=h)
        once, twice, acid = figures.column(mine, "variance")
        who = f"{momentum:g}, {h:g}"
        rows.append([who, mine[0]["forgetting"], once, twice, acid, acid / once])
    columns = ["momentum, curvature", "forgetting", *METHODS, "A²CiD² / baseline"]
    return [figures.table("Variance of the workers around their mean", columns, rows)]


def draw(records: list[figures.Record]):
    """Draws variances relative to the baseline at rate 1, by the forgetting rate."""
    eta = djax.acid_constants(topologies.ring(SIZE)).eta
    figure, (panels,) = figures.panels((9, 4), 1, len(MOMENTA), sharey=True)
    for axes, momentum in zip(panels, MOMENTA, strict=True):
        mine = figures.select(records, momentum=momentum)
        once = figures.column(mine, "variance", method="baseline, rate 1")
        for method, color in COLORS.items():
            forgetting = figures.column(mine, "forgetting", method=method)
            ratios = np.divide(figures.column(mine, "variance", method=method), once)
            axes.plot(forgetting, ratios, ".-", color=color, label=method)
        axes.axvline(eta, color="tab:blue", ls=":", label="η")
        axes.set(xscale="log", title=f"momentum {momentum:g}")
        axes.set_xlabel("rate at which gradients forget")
    panels[0].set_ylabel("variance / baseline's at rate 1")
    panels[0].legend()
    return figure


main = figures.script(__name__, full=(SIZE, 3000, 40), smoke=(4, 20, 2))

if __name__ == "__main__":
    main()
