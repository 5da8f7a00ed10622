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

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import djax
from djax import (
    asynchronous,
    communicators,
    topologies,
)

from ..lib import figures
from .training import COLORS, METHODS, select

BASELINE = "baseline, rate 1"
CURVATURES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
STEP_SIZE, MOMENTA = 0.1, (0.0, 0.9)
STEPS_PER_EPOCH = 100


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
    rate, accelerated = METHODS[method]
    ring = topologies.ring(size)
    base = optax.sgd(STEP_SIZE, momentum=momentum)
    constants = djax.acid_constants(ring, rate)
    algorithm = djax.acid(base, constants) if accelerated else djax.adpsgd(base)
    events = asynchronous.draw_events(ring, rate, gradients=size * gradients, seed=1)
    shape = (len(CURVATURES), copies)
    curvatures = jnp.asarray(CURVATURES)[:, None]

    def gradient_fn(x, model_state, noise):
        return curvatures * x + noise, model_state, {}

    def noise(epoch):
        return jax.random.normal(jax.random.key(epoch), (size, STEPS_PER_EPOCH, *shape))

    communicator = communicators.simulated(size)
    moments = asynchronous.simulate(
        algorithm,
        events,
        communicators.replicate(communicator, jnp.zeros(shape)),
        gradient_fn,
        noise,
        times=np.linspace(events.duration / 2, events.duration, 50).tolist(),
    )
    return np.mean([np.var(m.params, 0).mean(1) for m in moments], 0)


def compute(size: int, gradients: int, copies: int) -> Iterator[dict[str, Any]]:
    """All runs.

    Args:
      size: number of workers.
      gradients: of a worker, on average.
      copies: independent coordinates of each curvature.

    Yields:
      A record for each momentum, method and curvature.
    """
    todo = [(momentum, method) for momentum in MOMENTA for method in METHODS]
    for momentum, method in tqdm(todo, desc="curvature", unit="run"):
        found = variances(method, momentum, size, gradients, copies)
        for h, variance in zip(CURVATURES, found.tolist(), strict=True):
            yield {
                "momentum": momentum,
                "method": method,
                "curvature": h,
                "forgetting": STEP_SIZE * h / (1 - momentum),
                "variance": variance,
            }


def show(records: Sequence[dict[str, Any]]):
    """The table of variances.

    Args:
      records: of :func:`compute`.
    """
    rows = []
    for momentum in MOMENTA:
        for h in CURVATURES:
            of = {
                r["method"]: r for r in select(records, momentum=momentum, curvature=h)
            }
            once, twice, acid = (of[method]["variance"] for method in METHODS)
            forgetting = of[BASELINE]["forgetting"]
            rows.append(
                [f"{momentum:g}, {h:g}", forgetting, once, twice, acid, acid / once]
            )
    return figures.table(
        "Variance of the workers around their mean",
        ["momentum, curvature", "forgetting", *METHODS, "A²CiD² / baseline"],
        rows,
    )


def draw(records: Sequence[dict[str, Any]], eta: float) -> Figure:
    """Variances in those of the baseline, against how fast gradients forget.

    Args:
      records: of :func:`compute`.
      eta: of A²CiD².
    """
    figure = Figure(figsize=(9, 4), layout="constrained")
    panels = figure.subplots(1, len(MOMENTA), sharey=True)
    for axes, momentum in zip(panels, MOMENTA, strict=True):
        once = select(records, momentum=momentum, method=BASELINE)
        for method, color in COLORS.items():
            runs = select(records, momentum=momentum, method=method)
            ratios = [
                run["variance"] / base["variance"]
                for run, base in zip(runs, once, strict=True)
            ]
            forgetting = [run["forgetting"] for run in runs]
            axes.plot(forgetting, ratios, ".-", color=color, label=method)
        axes.axvline(eta, color="tab:blue", ls=":", label="η")
        axes.set(xscale="log", xlabel="rate at which gradients forget")
        axes.set_title(f"momentum {momentum:g}")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("variance / baseline's at rate 1")
    panels[0].legend()
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    config = figures.configure(__file__, __doc__, arguments)
    size, gradients, copies = (4, 20, 2) if config.smoke else (64, 3000, 40)
    records = list(compute(size, gradients, copies))
    eta = djax.acid_constants(topologies.ring(size)).eta
    figures.publish(__file__, config, records, [show(records)], draw(records, eta))
    return records


if __name__ == "__main__":
    main()
