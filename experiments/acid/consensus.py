r"""Consensus distance against time, with and without the continuous momentum.

Nabli, Belilovsky and Oyallon, A²CiD², 2023, https://arxiv.org/abs/2306.08289.

    python -m experiments.acid.consensus           # ring, exponential, complete
    python -m experiments.acid.consensus --smoke   # seconds

This experiment shows averaging alone, so no gradients are computed. Workers start with
independent normal vectors and average in pairs at random times, each worker once per
unit of time on average. For each graph and number of workers, the times of averaging
are drawn 80 times, and both A²CiD² and plain averaging use them. A rate of decay is
fitted to the mean logarithm of the consensus distance in the second half of a run. The
time until the distance is a thousandth of its start is a mean over the draws.

Expect the gain in the rate to double on a ring whenever the number of workers doubles,
as the theory's sqrt(chi1/chi2) does. The gain in time to a thousandth is smaller, since
neighbours agree quickly with either method. On exponential graphs the rate gains up to
a fifth, and the time nothing. On complete graphs both methods are the same. The rates
on rings are compared with the prediction of another simulation; expect a difference of
at most 10 %. The run takes 5 minutes on 2 cores.
"""

import itertools
from collections.abc import Iterator, Sequence

import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import asynchronous, topologies

from ..lib import figures

DIM, POINTS, GOAL = 10, 60, 1e-3
GRAPHS = (topologies.ring, topologies.exponential, topologies.complete)
PREDICTED = {16: (0.078, 0.233), 32: (0.019, 0.113), 64: (0.0048, 0.0588)}
"""Predicted rates of decay on rings, without and with acceleration, by number of
workers."""
STYLES = {"plain": ("pairwise averaging", "tab:gray"), "acid": ("A²CiD²", "tab:blue")}
"""For each algorithm, its name and colour in the figure."""


def run(
    algorithm: asynchronous.EventTransformation,
    topology: djax.Topology,
    times: np.ndarray,
    schedules: int,
) -> np.ndarray:
    """Measures consensus distances at some times, relative to their start at time 0.

    The averagings are drawn anew for each row of the result, `[schedules, times]`.
    """
    curves = []
    for seed in range(schedules):
        events = asynchronous.draw_events(
            topology, duration=times[-1], speeds=0, seed=seed
        )
        start = np.random.default_rng(seed).standard_normal((topology.size, DIM))
        seen = asynchronous.simulate(algorithm, events, start, times=times.tolist())
        curves.append([float(snapshot.consensus_distance) for snapshot in seen])
    return np.array(curves) / np.array(curves)[:, :1]


def time_to_goal(times: np.ndarray, curve: np.ndarray) -> float:
    """Finds when a curve falls below the goal for good, interpolating its logarithm."""
    last = np.flatnonzero(curve > GOAL)[-1]
    pair = slice(last, last + 2)
    return float(np.interp(-np.log(GOAL), -np.log(curve[pair]), times[pair]))


def compute(sizes: Sequence[int], schedules: int) -> Iterator[figures.Record]:
    """Runs both algorithms on all graphs with these numbers of workers."""
    base = optax.identity()  # No gradients are computed.
    todo = list(itertools.product(GRAPHS, sizes))
    for make, size in tqdm(todo, desc="consensus", unit="graph"):
        topology = make(size)
        constants = djax.acid_constants(topology)
        chi1, chi2 = constants.chi1, constants.chi2
        for name, algorithm, scale in (
            ("plain", djax.adpsgd(base), chi1),
            ("acid", djax.acid(base, constants), (chi1 * chi2) ** 0.5),
        ):
            # The goal is e^-6.9, so by the theory it is reached long before 24 * scale.
            times = 24 * scale * np.linspace(0, 1, POINTS + 1) ** 2
            curves = run(algorithm, topology, times, schedules)
            logs = np.log(curves).mean(0)
            late = times >= times[-1] / 2
            yield {
                "graph": topology.name,
                "workers": size,
                "algorithm": name,
                "chi1": chi1,
                "chi2": chi2,
                "schedules": schedules,
                "decay_rate": -np.polyfit(times[late], logs[late], 1)[0],
                "time_to_goal": np.mean([time_to_goal(times, c) for c in curves]),
                "times": times.tolist(),
                "consensus_distance": np.exp(logs).tolist(),
            }


def make_tables(records: list[figures.Record]):
    """Shows rates and times beside the predicted rates."""
    rows = []
    for plain, acid in zip(records[::2], records[1::2], strict=True):
        graph = f"{plain['graph']} {plain['workers']}"
        decays = plain["decay_rate"], acid["decay_rate"]
        times = plain["time_to_goal"], acid["time_to_goal"]
        known = PREDICTED if plain["graph"] == "ring" else {}
        slow, fast = known.get(plain["workers"], (None, None))
        row = [graph, decays[0], slow, decays[1], fast, decays[1] / decays[0], *times]
        rows.append([*row, times[0] / times[1], (plain["chi1"] / plain["chi2"]) ** 0.5])
    columns = ["graph", "decay, plain", "predicted", "A²CiD²", "predicted", "gain"]
    columns += ["time to 1e-3, plain", "A²CiD²", "gain", "√(χ1/χ2)"]
    title = f"Consensus, {records[0]['schedules']} schedules"
    return [figures.table(title, columns, rows)]


def draw(records: list[figures.Record]):
    """Draws a panel for each graph, with a line for each size and algorithm."""
    figure, (panels,) = figures.panels((12, 3.8), 1, len(GRAPHS))
    sizes = figures.distinct(records, "workers")
    lines = dict(zip(sizes, ("-", "--", ":"), strict=False))
    for axes, graph in zip(panels, figures.distinct(records, "graph"), strict=True):
        here = figures.select(records, graph=graph)
        for r in here:
            name, color = STYLES[r["algorithm"]]
            style = {"ls": lines[r["workers"]], "label": f"{name}, {r['workers']}"}
            axes.semilogy(r["times"], r["consensus_distance"], color=color, **style)
        horizon = 1.05 * max(figures.column(here, "time_to_goal"))
        axes.set(title=graph, xlabel="time", xlim=(0, horizon), ylim=(GOAL, 3))
    panels[0].set_ylabel("consensus distance, relative to the start")
    panels[0].legend(fontsize=7)
    return figure


main = figures.script(__name__, full=((16, 32, 64), 80), smoke=((8,), 2), x64=True)

if __name__ == "__main__":
    main()
