r"""Heat map of how often each pair of workers averages.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289, show such
a map for 32 workers of a real run.

    python -m experiments.acid.pairings           # 200 gradients a worker
    python -m experiments.acid.pairings --smoke   # 10

The averagings are drawn by :func:`djax.asynchronous.draw_events`, for each worker one
per gradient in expectation. Nothing is trained.

Expect only pairs that are edges of the graph, with even colours along the edges. On the
exponential graph, opposite workers meet twice as often, because their edge counts
twice. The rates of workers scatter around 1 by 1 / sqrt(200) = 0.07. The counts differ
from their expectations by one standard deviation in the root mean square, and at most
by 2 to 4. The run takes 5 seconds.
"""

import functools
from collections.abc import Iterator

import numpy as np
from matplotlib.figure import Figure

from djax import topologies
from djax.asynchronous import Events, draw_events, edge_rates

from ..lib import figures

WORKERS = 32
GRAPHS = (topologies.ring, topologies.exponential, topologies.complete)


@functools.cache
def draw_averagings(gradients: int) -> list[Events]:
    """Draws for each graph the events of `gradients` gradients of all workers."""
    return [draw_events(make(WORKERS), gradients=gradients) for make in GRAPHS]


def compute(gradients: int) -> Iterator[figures.Record]:
    """Compares the numbers of averagings with their expectations, for each graph."""
    for make, events in zip(GRAPHS, draw_averagings(gradients), strict=True):
        graph = make(WORKERS)
        expected = np.triu(edge_rates(graph)) * events.duration
        edges = expected > 0
        apart = (events.pair_counts - expected)[edges] / np.sqrt(expected[edges])
        rates = events.averaging_counts / events.duration
        yield {
            "topology": graph.name,
            "n": events.size,
            "duration": events.duration,
            "gradients": int(events.gradient_counts.sum()),
            "averagings": int(events.averaging_counts.sum()) // 2,
            "edges": int(edges.sum()),
            "rate_mean": float(rates.mean()),
            "rate_min": float(rates.min()),
            "rate_max": float(rates.max()),
            "deviation_rms": float(np.sqrt(np.mean(apart**2))),
            "deviation_max": float(np.abs(apart).max()),
            "pair_counts": events.pair_counts.tolist(),
        }


def make_tables(records: list[figures.Record]):
    """Shows realised rates, and deviations from the expected counts."""
    rows = []
    for r in records:
        row = [r["topology"], str(r["gradients"]), str(r["averagings"])]
        rates = [f"{r[f'rate_{key}']:.3f}" for key in ("mean", "min", "max")]
        deviations = [f"{r[f'deviation_{key}']:.2f}" for key in ("rms", "max")]
        rows.append([*row, *rates, str(r["edges"]), *deviations])
    columns = ["graph", "gradients", "averagings", "mean rate", "min", "max", "edges"]
    columns += ["deviation, rms", "largest"]
    title = f"Averagings of {WORKERS} workers at rate 1"
    caption = (
        "rate: averagings of a worker per unit of time, over the workers.\n"
        "deviation: of an edge's count from λT, in standard deviations √(λT)."
    )
    return [figures.table(title, columns, rows, caption)]


def draw(records: list[figures.Record]) -> Figure:
    """Draws a heat map for each graph."""
    runs = draw_averagings(records[0]["gradients"])
    figure = Figure(figsize=(11.5, 3), layout="constrained")
    for axes, graph, events in zip(figure.subplots(1, 3), GRAPHS, runs, strict=True):
        events.plot_pairs(axes).set_title(graph.__name__)
        axes.set(xticks=range(0, WORKERS, 8), yticks=range(0, WORKERS, 8))
    return figure


main = figures.script(__name__, full=(200 * WORKERS,), smoke=(10 * WORKERS,))

if __name__ == "__main__":
    main()
