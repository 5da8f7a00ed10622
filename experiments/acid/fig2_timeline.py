r"""Figure 2: timelines of synchronous and of asynchronous workers.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.fig2_timeline           # 8 units of time
    python -m experiments.acid.fig2_timeline --smoke   # 3

Four workers form a ring. The last one has half the speed of the others, and the time of
a gradient varies by 30 %. In the upper timeline, all workers wait for each other after
every gradient. In the lower one no worker waits, and neighbours average at random
times, each worker once per unit of time in expectation. A worker's gradients take the
same times in both timelines. Nothing is trained, and messages take no time.

Expect the fast workers to wait about half of the time in the upper timeline, and to
compute about twice as many gradients in the lower one, where the slow worker computes
as many as before. The seed is one whose number of averagings is near the expected 16.
The run takes 5 seconds.
"""

import math
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from djax import topologies
from djax.asynchronous import Events, Rounds, draw_events, draw_rounds

from ..lib import figures

RING = topologies.ring(4)
SPEEDS = (1.0, 1.0, 1.0, 0.5)
CLOCKS = {"speeds": SPEEDS, "variation": 0.3, "seed": 1}


def draw_clocks(until: float) -> tuple[Rounds, Events]:
    """Draws at least `until` units of time of synchronous and asynchronous workers."""
    # One round per unit of time is enough: the slow worker needs two units for each.
    rounds = draw_rounds(RING.size, math.ceil(until), **CLOCKS)
    return rounds, draw_events(RING, duration=until, **CLOCKS)


def compute(until: float) -> list[figures.Record]:
    """Counts for each worker what it has done until that time."""
    rounds, events = draw_clocks(until)
    finished = (rounds.finish <= until).sum(0)
    busy = np.minimum(rounds.finish, until) - np.minimum(rounds.start, until)[:, None]
    return [
        {
            "worker": i,
            "speed": speed,
            "until": until,
            "synchronous_gradients": int(finished[i]),
            "synchronous_idle": float(1 - busy[:, i].sum() / until),
            "asynchronous_gradients": int(events.gradient_counts[i]),
            "asynchronous_idle": 0.0,  # By construction: gradients are back to back.
            "averagings": int(events.averaging_counts[i]),
        }
        for i, speed in enumerate(SPEEDS)
    ]


def make_tables(records: list[figures.Record]):
    """Shows gradients and idle shares, for each worker and for all workers."""
    counts = [key for key in records[0] if key.endswith(("gradients", "averagings"))]
    total: figures.Record = {key: sum(figures.column(records, key)) for key in counts}
    total["averagings"] //= 2  # Each averaging is counted by two workers.
    for key in ("synchronous_idle", "asynchronous_idle"):
        total[key] = np.mean(figures.column(records, key))
    rows = []
    for r in (*records, {"worker": "all", "speed": None, **total}):
        row: list[Any] = [str(r["worker"]), r["speed"]]
        for mode in ("synchronous", "asynchronous"):
            row += [str(r[f"{mode}_gradients"]), f"{r[f'{mode}_idle']:.0%}"]
        rows.append([*row, str(r["averagings"])])
    columns = ["worker", "speed", "synchronous", "idle", "asynchronous", "idle"]
    title = f"Figure 2: gradients finished in {records[0]['until']:g} units of time"
    caption = "Asynchronous workers are never idle, by construction."
    return [figures.table(title, [*columns, "averagings"], rows, caption)]


def draw(records: list[figures.Record]) -> Figure:
    """Draws the two timelines, one above the other."""
    rounds, events = draw_clocks(records[0]["until"])
    figure = Figure(figsize=(8, 4.2), layout="constrained")
    labels = [f"{i}, slow" if s < 1 else str(i) for i, s in enumerate(SPEEDS)]
    above, below = figure.subplots(2, 1, sharex=True)
    rounds.plot_timeline(above, until=events.duration)
    above.set(title="synchronous: all wait for the slowest", xlabel="")
    events.plot_timeline(below)
    for axes in (above, below):
        axes.set_yticks(range(RING.size), labels)
    below.set_title("asynchronous: neighbours average in pairs, nobody waits")
    return figure


main = figures.script(__name__, full=(8,), smoke=(3,))

if __name__ == "__main__":
    main()
