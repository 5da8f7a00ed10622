r"""Figure 2: steps to an error of 1e-6 against the number of workers, rates tuned.

Vogels et al., RelaySum for Decentralized Deep Learning on Heterogeneous Data, 2021,
https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig2_topologies           # 10 seeds, n up to 96
    python -m experiments.relaysgd.fig2_topologies --smoke   # seconds

Random quadratics in 10 dimensions, 100 away from the optimum, heterogeneity 0.01 and 1,
without noise. Each method's learning rate is tuned for each problem, so that the error
of the workers' mean gets below 1e-6 first without ever growing on the way. All rates,
seeds and heterogeneities of a method advance in one program.

The problems are the paper's, draw by draw, and "ours" is tuned by the paper's search:
then all numbers agree to rounding. "finer" is tuned by a finer one, of grids: RelaySGD
gains nothing, D² and all-reduce up to 29 %. About 10 minutes on 2 cores.
"""

import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

import djax
from djax import topologies

from ..lib import figures, tuning
from ..lib.quadratics import random_quadratics
from .methods import COLORS, over

DIM, DISTANCE, SMALLEST = 10, 100.0, 0.5
ZETAS = (0.01, 1.0)
SIZES, POWERS = (6, 12, 24, 48, 96), (4, 8, 16, 32, 64)


class Line(NamedTuple):
    """A line of the figure.

    Attributes:
      method: who.
      topology: on which graph.
      make: from a number of workers to :data:`experiments.lib.sweep.MakeOptimizer`.
      style: of the line.
      paper: the paper's mean steps, by heterogeneity and number of workers.
    """

    method: str
    topology: str
    make: Any
    style: str
    paper: dict[float, dict[int, float]]


def _paper(*rows: Sequence[float], sizes: Sequence[int] = SIZES) -> dict:
    """One row for both heterogeneities, or one for each."""
    return {
        zeta2: dict(zip(sizes, row, strict=True))
        for zeta2, row in zip(ZETAS, (rows[0], rows[-1]), strict=True)
    }


def _ring(alias):
    return lambda n: over(alias, topologies.ring(n))


def _tree(alias):
    return lambda n: over(alias, topologies.binary_tree(n))


LINES = (
    Line(
        "RelaySGD",
        "chain",
        lambda n: over(djax.relay_sgd, topologies.chain(n)),
        "-",
        _paper((20.8, 38.1, 70.1, 127.6, 242.6)),
    ),
    Line(
        "RelaySGD",
        "binary tree",
        _tree(djax.relay_sgd),
        "--",
        _paper((15.2, 21.0, 26.8, 32.8, 36.2)),
    ),
    Line(
        "D²",
        "ring",
        _ring(djax.d2_sgd),
        "-",
        _paper((19.6, 42.0, 79.2, 185.7, 218.1), (19.6, 43.1, 79.3, 179.6, 218.5)),
    ),
    Line(
        "Gradient tracking",
        "ring",
        _ring(djax.gradient_tracking_sgd),
        "-",
        _paper((49.2, 199, 699, 2534, 7757)),
    ),
    Line(
        "Gradient tracking",
        "binary tree",
        _tree(djax.gradient_tracking_sgd),
        "--",
        _paper((156, 405, 886, 1742, 3171)),
    ),
    Line(
        "All-reduce",
        "–",
        lambda n: over(djax.all_reduce_sgd),
        ":",
        _paper((8.9, 7.5, 6.8, 6.2, 5.6)),
    ),
    Line(
        "SGP",
        "one-peer exponential",
        lambda n: over(djax.sgp, topologies.one_peer_exponential(n), rounds=2),
        "-.",
        _paper(
            (107.9, 112.6, 51.3, 39.4, 21.7, 10.1, 68.7, 53.5, 39.3, 27.6),
            (1079, 1238, 617, 540, 345, 10.1, 708, 596, 462, 377),
            sizes=SIZES + POWERS,
        ),
    ),
)


def compute(sizes: Sequence[int], seeds: int, max_steps: int) -> list[dict[str, Any]]:
    """Tunes every method on every problem, both ways.

    Args:
      sizes: numbers of workers; a line leaves out those that the paper's has not.
      seeds: problems of each heterogeneity.
      max_steps: when a run is given up.

    Returns:
      A record for each line, size, heterogeneity and seed.
    """
    records = []
    jobs = [(x, n) for x, n in itertools.product(LINES, sizes) if n in x.paper[1.0]]
    settings = list(itertools.product(ZETAS, range(seeds)))
    for line, n in tqdm(jobs, desc="figure 2", unit="line point"):
        problems = [
            random_quadratics(
                n, DIM, zeta2, distance=DISTANCE, smallest=SMALLEST, seed=seed
            )
            for zeta2, seed in settings
        ]
        make = line.make(n)
        ours = tuning.tune_as_published(make, problems, max_steps=max_steps)
        finer = tuning.tune_fastest(make, problems, max_steps=max_steps)
        for i, (zeta2, seed) in enumerate(settings):
            records.append(
                {
                    "method": line.method,
                    "topology": line.topology,
                    "n": n,
                    "zeta2": zeta2,
                    "seed": seed,
                    "steps": ours.steps[i],
                    "learning_rate": ours.learning_rates[i],
                    "finer_steps": finer.steps[i],
                    "finer_learning_rate": finer.learning_rates[i],
                }
            )
    return records


def mean_steps(records: list[dict], line: Line, n: int, zeta2: float, key="steps"):
    """Over the seeds; None where the line was not computed."""
    values = [
        r[key]
        for r in records
        if (r["method"], r["topology"]) == (line.method, line.topology)
        and (r["n"], r["zeta2"]) == (n, zeta2)
    ]
    return float(np.mean(values)) if values else None


def make_table(records: list[dict]):
    """Paper, ours and deviation, for both heterogeneities."""
    rows = []
    for line in LINES:
        for n in line.paper[1.0]:
            row: list[Any] = [f"{line.method}, {line.topology}", str(n)]
            for zeta2 in ZETAS:
                ours = mean_steps(records, line, n, zeta2)
                paper = line.paper[zeta2][n]
                if ours is not None:
                    finer = mean_steps(records, line, n, zeta2, "finer_steps")
                    row += [paper, ours, figures.deviation(ours, paper), finer]
            if len(row) > 2:
                rows.append(row)
    columns = ["method", "n"]
    for zeta2 in ZETAS:
        columns += [f"ζ²={zeta2:g} paper", "ours", "", "finer"]
    return figures.table(
        "Figure 2: steps to f(x̄) − f* ≤ 1e-6, mean over the seeds",
        columns,
        rows,
        "ours: the paper's problems and search for the learning rate. finer: grids of "
        "rates in steps of 1 %.\nThe differences between the two are the search's.",
    )


def draw(records: list[dict]) -> Figure:
    """Steps against workers, a panel for each heterogeneity."""
    figure = Figure(figsize=(8, 3.4), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    for axes, zeta2 in zip(panels, ZETAS, strict=True):
        for line in LINES:
            color, paper = COLORS[line.method], line.paper[zeta2]
            means = {n: mean_steps(records, line, n, zeta2) for n in sorted(paper)}
            points = [(n, steps) for n, steps in means.items() if steps is not None]
            label = f"{line.method}, {line.topology}".removesuffix(", –")
            axes.plot(*np.transpose(points), line.style, color=color, label=label)
            circles = np.transpose(list(paper.items()))
            axes.plot(*circles, "o", color=color, mfc="none", ms=4)
        axes.set(ylim=(-10, 500), xlabel="number of workers $n$")
        axes.set_title(f"$\\zeta^2 = {zeta2:g}$")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("steps to $f(\\bar x) - f^\\star \\leq 10^{-6}$")
    handles, _ = panels[0].get_legend_handles_labels()
    circle = Line2D([], [], marker="o", ls="", mfc="none", color="gray", ms=4)
    circle.set_label("the paper's values")
    figure.legend(handles=[*handles, circle], loc="outside right center", fontsize=8)
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    config = figures.configure(__file__, __doc__, arguments)
    with jax.enable_x64(True):
        if config.smoke:
            records = compute((4, 6), seeds=2, max_steps=400)
        else:
            records = compute(sorted(SIZES + POWERS), seeds=10, max_steps=20_000)
    figures.publish(__file__, config, records, [make_table(records)], draw(records))
    return records


if __name__ == "__main__":
    main()
