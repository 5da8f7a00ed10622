r"""What the momentum gains against noise of gradients, by the loss's curvature.

Nabli, Belilovsky and Oyallon, A²CiD²: Accelerating Asynchronous Communication in
Decentralized Deep Learning, 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.curvature           # half a minute
    python -m experiments.acid.curvature --smoke   # seconds

All workers of a ring have the same quadratic loss, a sum of :math:`h x^2 / 2` of
different curvatures :math:`h`, and gradients :math:`h x + \xi` with standard normal
noise, so that only noise keeps them apart: where SGD of step size :math:`\gamma` and
momentum :math:`\beta` has settled, their variance around their mean is measured. A
gradient descent forgets at the rate :math:`\gamma h / (1 - \beta)`, A²CiD²'s momentum
mixes at the rate :math:`\eta`, both per gradient.

With momentum 0.9, expect A²CiD² at rate 1 below the baseline at rate 2 where the
curvature is small, and above the baseline at rate 1 where gradients forget faster than
three times :math:`\eta`. Without, expect it at most 7 % below the baseline, and above
where they forget faster than a thirtieth of :math:`\eta`. A loss weights the variance
by the curvature, so that there is little to gain from flat directions.
"""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import djax
from djax import asynchronous, communicators, topologies

from ..lib import figures
from ..lib.figures import Record
from .training import COLORS, METHODS, set_up

BASELINE = "baseline, rate 1"
CURVATURES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STEP_SIZE, MOMENTA = 0.1, (0.0, 0.9)
SIZE, STEPS_PER_EPOCH = 64, 100


def variances(
    method: str, momentum: float, size: int, gradients: int, copies: int
) -> np.ndarray:
    """The stationary variances of the workers around their mean.

    Args:
      method: a key of `METHODS`.
      momentum: of SGD.
      size: number of workers.
      gradients: of a worker, on average; the first half is to settle.
      copies: independent coordinates of each curvature.

    Returns:
      `float[len(CURVATURES)]`.
    """
    shape = (len(CURVATURES), copies)
    curvatures = jnp.asarray(CURVATURES)[:, None]

    def gradient_fn(x, model_state, noise):
        return curvatures * x + noise, model_state, {}

    def noise(epoch):
        return jax.random.normal(jax.random.key(epoch), (size, STEPS_PER_EPOCH, *shape))

    base = optax.sgd(STEP_SIZE, momentum=momentum)
    algorithm, events = set_up(method, base, size, gradients, seed=1)
    start = communicators.replicate(communicators.simulated(size), jnp.zeros(shape))
    times = np.linspace(events.duration / 2, events.duration, 50).tolist()
    seen = asynchronous.simulate(
        algorithm, events, start, gradient_fn, noise, times=times
    )
    return np.mean([np.var(x.params, 0).mean(1) for x in seen], 0)


def compute(size: int, gradients: int, copies: int) -> list[Record]:
    """Measures the variances, see :func:`variances`.

    Returns:
      A record for each momentum, method and curvature.
    """
    records = []
    todo = list(itertools.product(MOMENTA, METHODS))
    for momentum, method in tqdm(todo, desc="curvature", unit="run"):
        found = variances(method, momentum, size, gradients, copies)
        records += [
            {
                "momentum": momentum,
                "method": method,
                "curvature": h,
                "forgetting": STEP_SIZE * h / (1 - momentum),
                "variance": variance,
            }
            for h, variance in zip(CURVATURES, found.tolist(), strict=True)
        ]
    return records


def make_tables(records: list[Record]):
    """The variances."""
    rows = []
    for momentum, h in itertools.product(MOMENTA, CURVATURES):
        mine = figures.select(records, momentum=momentum, curvature=h)
        once, twice, acid = figures.column(mine, "variance")
        who = f"{momentum:g}, {h:g}"
        rows.append([who, mine[0]["forgetting"], once, twice, acid, acid / once])
    columns = ["momentum, curvature", "forgetting", *METHODS, "A²CiD² / baseline"]
    return [figures.table("Variance of the workers around their mean", columns, rows)]


def draw(records: list[Record]) -> Figure:
    """Variances in those of the baseline, against how fast gradients forget."""
    eta = djax.acid_constants(topologies.ring(SIZE)).eta
    figure, (panels,) = figures.panels((9, 4), 1, len(MOMENTA), sharey=True)
    for axes, momentum in zip(panels, MOMENTA, strict=True):
        mine = figures.select(records, momentum=momentum)
        once = figures.column(figures.select(mine, method=BASELINE), "variance")
        for method, color in COLORS.items():
            runs = figures.select(mine, method=method)
            ratios = np.divide(figures.column(runs, "variance"), once)
            forgetting = figures.column(runs, "forgetting")
            axes.plot(forgetting, ratios, ".-", color=color, label=method)
        axes.axvline(eta, color="tab:blue", ls=":", label="η")
        axes.set(xscale="log", xlabel="rate at which gradients forget")
        axes.set_title(f"momentum {momentum:g}")
    panels[0].set_ylabel("variance / baseline's at rate 1")
    panels[0].legend()
    return figure


main = figures.script(__name__, full=(SIZE, 3000, 40), smoke=(4, 20, 2))

if __name__ == "__main__":
    main()
