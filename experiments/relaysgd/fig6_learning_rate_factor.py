r"""Figure 6 (appendix): by how much larger a step RelaySGD takes, measured.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig6_learning_rate_factor           # n up to 80
    python -m experiments.relaysgd.fig6_learning_rate_factor --smoke   # seconds

All workers start at 0 and make one update of 1. All-reduce would leave them at 1;
:func:`djax.relay`, whose averages still hold older models, lets them agree on less. The
factor is by how much less, once their standard deviation is below 1e-4.

Expect the reference to all its digits, and the theory,
:func:`djax.relay_learning_rate_factor`, within 0.1 %, since the workers still differ a
little. The paper's rule of thumb, tau_max / 2, is half as much again for long chains
and too little for large binary trees. 10 seconds on 2 cores.
"""

import itertools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

import djax
from djax import (
    Topology,
    topologies,
)

from ..lib import figures
from .methods import COLORS

SIZES = (2, 5, 10, 20, 30, 40, 50, 60, 70, 80)
AGREEMENT = 1e-4
MAX_STEPS = 10_000


class Line(NamedTuple):
    """A line of the figure.

    Attributes:
      topology: its name.
      make: from a number of workers to the tree.
      style: of the line.
      reference: measured with the published code, by number of workers.
    """

    topology: str
    make: Callable[[int], Topology]
    style: str
    reference: dict[int, float]


def _reference(*factors: float) -> dict[int, float]:
    return dict(zip(SIZES, factors, strict=False))


LINES = (
    Line(
        "chain",
        topologies.chain,
        "-",
        _reference(1.0, 1.79994, 3.39944, 6.70242, 10.02279, 13.34148),
    ),
    Line(
        "binary tree",
        topologies.binary_tree,
        "--",
        _reference(1.0, 1.63996, 2.52021, 3.77514, 4.66607, 5.30639),
    ),
)


def measure(tree: Topology) -> tuple[float, int]:
    """Lets all workers make one update of 1, and averages until they agree.

    Args:
      tree: who relays to whom.

    Returns:
      The factor, and after how many steps they agreed.
    """
    communicator = djax.communicators.simulated(tree.size)
    relay = djax.relay(tree, communicator)

    def worker(x, state, update):
        update, state = relay.update(update, state, x)
        return optax.apply_updates(x, update), state

    def apart(carry):
        x, _, step = carry
        return (step == 0) | ((jnp.std(x, ddof=1) >= AGREEMENT) & (step < MAX_STEPS))

    def advance(carry):
        x, state, step = carry
        impulse = jnp.broadcast_to((step == 0).astype(x.dtype), x.shape)
        return *communicator.spmd(worker)(x, state, impulse), step + 1

    @jax.jit
    def run():
        x = jnp.zeros(tree.size)
        carry = x, communicator.spmd(relay.init)(x), 0
        x, _, step = jax.lax.while_loop(apart, advance, carry)
        return 1 / x.mean(), step

    factor, step = run()
    return float(factor), int(step)


def compute(sizes: Sequence[int]) -> list[dict[str, Any]]:
    """Measures the factors.

    Args:
      sizes: numbers of workers.

    Returns:
      A record for each tree and size.
    """
    records = []
    jobs = list(itertools.product(LINES, sizes))
    for line, n in tqdm(jobs, desc="figure 6", unit="tree"):
        tree = line.make(n)
        factor, steps = measure(tree)
        records.append(
            {
                "topology": line.topology,
                "n": n,
                "factor": factor,
                "steps": steps,
                "theory": djax.relay_learning_rate_factor(tree),
                "half_diameter": tree.diameter / 2,
            }
        )
    return records


def _of(records: list[dict], line: Line) -> list[dict]:
    return [r for r in records if r["topology"] == line.topology]


def make_table(records: list[dict]):
    """Reference, measured, theory and rule of thumb, for every tree."""
    rows = []
    for line in LINES:
        for r in _of(records, line):
            reference, factor = line.reference.get(r["n"]), r["factor"]
            row = [f"{line.topology}, {r['n']}", _digits(reference), _digits(factor)]
            row += [figures.deviation(factor, reference), _digits(r["theory"])]
            error = f"{factor / r['theory'] - 1:+.1e}"
            rows.append([*row, error, r["half_diameter"], str(r["steps"])])
    return figures.table(
        "Figure 6: factor of the learning rate",
        ["tree", "reference", "ours", "", "theory", "ours to it", "τ_max/2", "steps"],
        rows,
        "reference: the published code, run up to n = 40.",
    )


def _digits(value: float | None) -> str | None:
    return None if value is None else f"{value:.5f}"


def draw(records: list[dict]) -> Figure:
    """The factors against the number of workers."""
    figure = Figure(figsize=(6.4, 3.4), layout="constrained")
    axes, color = figure.subplots(), COLORS["RelaySGD"]
    for line in LINES:
        points = _of(records, line)
        n = [r["n"] for r in points]
        rule, theory, factor = (
            [r[key] for r in points] for key in ("half_diameter", "theory", "factor")
        )
        style = {"ls": line.style, "lw": 1}
        axes.plot(n, rule, color="gray", **style)
        axes.plot(n, theory, color=color, **style)
        axes.plot(n, factor, ".", color=color, ms=6)
        circles = np.transpose(list(line.reference.items()))
        axes.plot(*circles, "o", color=color, mfc="none", ms=7)
    axes.set(xlim=(0, 82), ylim=(0, 40), xlabel="number of workers $n$")
    axes.set_ylabel("factor of the learning rate")
    axes.grid(alpha=0.3)
    handles = [
        Line2D([], [], ls=x.style, color=c, lw=1, label=f"{label}, {x.topology}")
        for c, label in (("gray", r"$\tau_{\max} / 2$"), (color, "theory"))
        for x in LINES
    ]
    handles += [
        Line2D([], [], marker=m, ls="", mfc=fill, color=color, ms=size, label=label)
        for m, fill, size, label in (
            (".", color, 6, "measured"),
            ("o", "none", 7, "measured, reference"),
        )
    ]
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.

    Returns:
      The records.
    """
    config = figures.configure(__file__, __doc__, arguments)
    with jax.enable_x64(True):
        records = compute(SIZES[:3] if config.smoke else SIZES)
    figures.publish(__file__, config, records, [make_table(records)], draw(records))
    return records


if __name__ == "__main__":
    main()
