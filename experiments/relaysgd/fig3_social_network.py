r"""Figure 3: RelaySGD on trees of a social network, D-PSGD and D² on all its edges.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig3_social_network           # all 32 trees
    python -m experiments.relaysgd.fig3_social_network --smoke   # seconds

The problem is the paper's random quadratic in 10 dimensions, with heterogeneity 0.1 and
gradient noise 0.1. D-PSGD and D² (as exact diffusion) use all 89 edges of the network,
Davis' Southern Women. RelaySGD runs once for each of the 32 workers, on the tree of
shortest paths from that worker.

Expect the same errors from all trees, and after each step errors as small as those of
D² on the whole graph. A step on a tree sends only a third as many vectors, so that
RelaySGD needs the fewest vectors for any error. The run takes about 80 seconds on 2
cores, most of them to compile a program for each tree.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from tqdm import tqdm

import djax
from djax import Topology, topologies

from ..lib import figures, tuning
from ..lib.quadratics import random_quadratics
from .methods import COLORS, over

DIM, ZETA2, NOISE = 10, 0.1, 0.1
D2_RATE, RELAY_RATE = 0.1, 0.3
STEPS, VECTORS = 500, 80_000
WINDOW = 100
"""Number of steps over which errors under noise are averaged."""
EVERY = 5
"""Number of steps between two errors in a record."""
GOAL = 1e-4

LABELS = {
    "D-PSGD": "D-PSGD, all edges",
    "D²": "D², all edges",
    "RelaySGD": "RelaySGD, spanning trees",
}


def compute(
    graph: Topology, roots: Sequence[int], steps: int, goal: float
) -> Iterator[figures.Record]:
    """Runs every method; RelaySGD runs on each tree, for three times as many steps.

    The learning rate of D-PSGD is tuned so that its error settles below `goal`.
    """
    problem = random_quadratics(graph.size, DIM, ZETA2)
    dpsgd = over(djax.dpsgd, graph)
    tuned = tuning.tune_plateau(dpsgd, [problem], goal=goal, start=1.0)
    dpsgd_rate = float(tuned.learning_rates[0]) / 1.1
    jobs: list[tuple[str, int | None, Topology, Any, float]] = [
        ("D-PSGD", None, graph, djax.dpsgd, dpsgd_rate),
        ("D²", None, graph, djax.exact_diffusion, D2_RATE),
    ]
    for root in roots:
        tree = topologies.spanning_tree(graph, root)
        jobs.append(("RelaySGD", root, tree, djax.relay_sgd, RELAY_RATE))
    for method, root, topology, alias, rate in tqdm(jobs, "figure 3", unit="run"):
        vectors = 2 * len(topology.edges)  # Both ends of each edge send a vector.
        length = 3 * steps if method == "RelaySGD" else steps
        make = over(alias, topology)
        errors = tuning.curves(make, problem, rate, length, noise=NOISE)
        degrees = [len(topology.neighbors(i)) for i in range(topology.size)]
        below = errors < GOAL
        yield {
            "method": method,
            "root": root,
            "edges": len(topology.edges),
            "diameter": topology.diameter,
            "min_degree": min(degrees),
            "max_degree": max(degrees),
            "learning_rate": rate,
            "vectors_per_step": vectors,
            "error": _mean_before(errors, steps),
            "error_by_vectors": _mean_before(errors, VECTORS // vectors),
            "steps_to_goal": int(below.argmax()) if below.any() else None,
            "errors": figures.rounded(errors[::EVERY]),
        }


def _mean_before(errors: np.ndarray, step: int) -> float | None:
    """Averages the window that ends with `step`; None if the run has fewer steps."""
    window = errors[max(1, step - WINDOW + 1) : step + 1]
    return float(window.mean()) if step < len(errors) else None


def make_tables(records: list[figures.Record]) -> list:
    """Shows the shape of graph and trees beside the paper's, and the errors."""
    graph, trees = records[0], figures.select(records, method="RelaySGD")

    def span(key):
        values = figures.column(trees, key)
        return "–".join(str(v) for v in sorted({min(values), max(values)}))

    shape = [
        ["edges", "89", str(graph["edges"])],
        ["diameter", "4", str(graph["diameter"])],
        ["degrees", "2–14", f"{graph['min_degree']}–{graph['max_degree']}"],
        ["vectors a step", "178", str(graph["vectors_per_step"])],
        ["trees", "32", str(len(trees))],
        ["their diameters", "5–7", span("diameter")],
        ["their largest degrees", "6–14", span("max_degree")],
        ["their vectors a step", "62", span("vectors_per_step")],
    ]
    rows = [[LABELS[r["method"]], *_row([r])] for r in records if r["root"] is None]
    for name, q in (("best", 0), ("median", 0.5), ("worst", 1)):
        rows.append([f"RelaySGD, {name} of trees", *_row(trees, q)])
    caption = (
        "The paper shows curves, no numbers. Errors are means of the 100 steps before; "
        "best, median and\nworst are those of each column. The noise is the same in "
        "all runs."
    )
    steps = EVERY * (len(graph["errors"]) - 1)
    columns = ["method", "rate", f"error at {steps} steps", f"at {VECTORS} vectors"]
    columns += ["steps to 1e-4", "vectors to 1e-4"]
    title = "Figure 3: graph and spanning trees"
    return [
        figures.table(title, ["", "paper", "ours"], shape),
        figures.table("Figure 3: f(x̄) − f* under noise", columns, rows, caption),
    ]


def _row(runs: list[figures.Record], q: float = 0.5) -> list[Any]:
    """Makes the cells of a row: rate, and the quantile `q` of each other column."""
    row = [runs[0]["learning_rate"]]
    for key in ("error", "error_by_vectors", "steps_to_goal"):
        values = figures.column(runs, key)
        row.append(None if None in values else float(np.quantile(values, q)))
    if (steps := row.pop()) is None:
        return [*row, None, None]
    return [*row, f"{steps:.0f}", f"{steps * runs[0]['vectors_per_step']:.0f}"]


def draw(records: list[figures.Record]):
    """Draws errors against steps, and against vectors."""
    figure, (panels,) = figures.panels((8, 3.4), 1, 2, sharey=True)
    for record in records:
        style: dict[str, Any] = {"lw": 1.5, "ls": "--", "zorder": 3}
        if record["root"] is not None:
            style = {"lw": 0.6, "alpha": 0.3}
        style["color"] = COLORS[record["method"]]
        steps = EVERY * np.arange(len(record["errors"]))
        thousands = record["vectors_per_step"] / 1000
        panels[0].plot(steps, record["errors"], **style)
        panels[1].plot(thousands * steps, record["errors"], **style)
    panels[0].set(xlim=(0, STEPS), xlabel="steps")
    panels[1].set(xlim=(0, VECTORS / 1000))
    panels[1].set_xlabel("vectors sent and received, in thousands")
    panels[0].set_ylabel("suboptimality $f(\\bar x) - f^\\star$")
    for axes in panels:
        axes.set(yscale="log", ylim=(1e-6, 1))
    handles = [
        figures.handle(text, color=COLORS[m], ls="-" if m == "RelaySGD" else "--")
        for m, text in LABELS.items()
    ]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=8)
    return figure


GRAPH = topologies.social_network()
main = figures.script(
    __name__,
    full=(GRAPH, range(GRAPH.size), STEPS, 1e-5),
    smoke=(topologies.ring(4), (0,), 20, 1e-2),
    x64=True,
)

if __name__ == "__main__":
    main()
