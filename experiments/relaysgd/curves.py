"""Figures 7, 8 and 10 share this module, which tunes methods, runs and draws them.

Learning rates are tuned by the paper's search, without noise, for an error of 1e-6. The
search finds the rate that reaches this error in the fewest steps, but the paper's code
records half of that rate, and makes its curves with the recorded rate. The curves here
use the recorded rate too.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
from tqdm import tqdm

from ..lib import figures, tuning
from ..lib.quadratics import Quadratics, random_quadratics
from .methods import ALIASES, COLORS, graph, over

WORKERS, DIM, SMALLEST, GOAL = 32, 10, 0.5, 1e-6
FLOOR = 1e-12
"""A curve ends where its error first falls below this value."""
POINTS = 500
"""Approximate number of points of a recorded curve."""
NONE = (None, None, None)


class Method(NamedTuple):
    """A method of a figure, with the paper's results.

    Tuples have one element for each heterogeneity.

    Attributes:
      name: a key of :data:`methods.ALIASES`.
      errors: the last error of each of the paper's curves.
      steps: number of steps in which the paper's tuned run reached the goal, or settled
        below it.
      rates: learning rates that the paper's code recorded.
      every: number of steps between two evaluations in the paper.
      plateau: whether the learning rate is tuned so that the error settles at the goal;
        otherwise it is tuned to reach the goal in the fewest steps.
      max_steps: number of steps after which a run of the search is given up.
      cap: upper bound of the learning rate of the curve.
      weights: weights of the graph for the curve. The search always uses the default.
      seed: seed of the random problem.
    """

    name: str
    topology: str
    errors: tuple[float, ...]
    steps: tuple[int | None, ...] = NONE
    rates: tuple[float | None, ...] = NONE
    every: tuple[int, ...] = (1, 1, 1)
    plateau: bool = False
    max_steps: int = 10_000
    cap: float = np.inf
    weights: float | str = "metropolis"
    seed: int = 0

    def make(self, n: int, **options: Any) -> tuning.MakeOptimizer:
        """Makes the optimizer of n workers; `options` are those of the graph."""
        return over(ALIASES[self.name], graph(self.topology, n, **options))


class Study(NamedTuple):
    """What a figure compares; `number` is its number in the paper.

    Attributes:
      zetas: heterogeneities; each has a panel.
      steps: number of steps of the curves in each panel.
      bottom: smallest error that the panels show.
      noise: standard deviation of the gradients' noise in the curves; the search has no
        noise.
      caption: text that is added to the caption of the table.
    """

    number: int
    methods: Sequence[Method]
    zetas: Sequence[float]
    steps: Sequence[int]
    bottom: float
    noise: float = 0.0
    caption: str = ""

    def script(self, name: str) -> Callable[..., list[figures.Record]]:
        """Makes the command line of the figure, see :func:`figures.script`.

        With `--smoke` there are 4 workers, the second heterogeneity, and few steps.
        """
        full = self.zetas, self.steps, WORKERS, 70_000
        smoke = self.zetas[1:2], (40,), 4, 500
        return figures.script(name, self, full=full, smoke=smoke, x64=True)

    def compute(
        self, zetas: Sequence[float], steps: Sequence[int], workers: int, max_steps: int
    ) -> Iterator[figures.Record]:
        """Tunes every method on every problem, and runs it with the recorded rate.

        If no `learning_rate` reaches the goal, it is None and there is no curve.
        """
        for method in tqdm(self.methods, desc=f"figure {self.number}", unit="method"):
            options = {"smallest": SMALLEST, "seed": method.seed}
            problems = [random_quadratics(workers, DIM, z, **options) for z in zetas]
            tune = tuning.tune_plateau if method.plateau else tuning.tune_as_published
            limit = min(method.max_steps, max_steps)
            tuned = tune(method.make(workers), problems, goal=GOAL, max_steps=limit)
            for zeta2, problem, length, every, best, rate in zip(
                zetas, problems, steps, method.every[: len(zetas)], *tuned, strict=True
            ):
                record: figures.Record = {
                    "method": method.name,
                    "topology": method.topology,
                    "n": workers,
                    "zeta2": zeta2,
                    "seed": method.seed,
                    "steps": None,
                    "learning_rate": None,
                }
                if not np.isnan(best):
                    record |= {"steps": int(best), "learning_rate": float(rate)}
                    record |= self._run(method, problem, float(rate), length, every)
                yield record

    def _run(
        self, method: Method, problem: Quadratics, rate: float, steps: int, every: int
    ) -> figures.Record:
        """Computes the curve of a method; `rate` is the tuned rate."""
        recorded = rate if method.plateau else rate / 2
        run_with = min(recorded, method.cap)
        make = method.make(len(problem.matrices), weights=method.weights)
        errors = tuning.curves(make, problem, run_with, steps, noise=self.noise)
        end, stride = _end(errors, every), max(1, steps // POINTS)
        late = errors[len(errors) // 2 :]
        return {
            "learning_rate_as_recorded": recorded,
            "curve_learning_rate": run_with,
            "end": end,
            "error": float(errors[end]),
            "late_errors": np.quantile(late, (0.05, 0.95)).tolist(),
            "stride": stride,
            "errors": figures.rounded(errors[: end + 1 : stride]),
        }

    def _published(self, record: figures.Record) -> tuple[Any, Any, Any]:
        """Returns the paper's error, steps and rate, or None where it gives none."""
        if record["n"] != WORKERS:
            return NONE
        (method,) = (m for m in self.methods if m.name == record["method"])
        i = self.zetas.index(record["zeta2"])
        return method.errors[i], method.steps[i], method.rates[i]

    def make_tables(self, records: list[figures.Record]):
        """Shows the paper's values, ours, and the deviations."""
        rows = []
        for record in records:
            paper_error, paper_steps, paper_rate = self._published(record)
            row: list[Any] = [_label(record), f"{record['zeta2']:g}"]
            if record["learning_rate"] is None:
                rows.append([*row, *[None] * 10])
                continue
            recorded, error = record["learning_rate_as_recorded"], record["error"]
            off = figures.deviation(error, paper_error)
            if self.noise:
                off = "{:.1e} – {:.1e}".format(*record["late_errors"])
            row += [paper_steps, record["steps"], paper_rate, recorded]
            row += [figures.deviation(recorded, paper_rate), record["learning_rate"]]
            rows.append([*row, record["end"], paper_error, error, off])
        columns = ["method", "ζ²", "steps paper", "ours", "rate paper", "ours", ""]
        columns += ["(true)", "at step", "error paper", "ours"]
        columns.append("5 – 95 %" if self.noise else "")
        title = "tuned steps and learning rates, error of the curves"
        caption = (
            "steps: until the tuned, noise-free run has f(x̄) − f* ≤ 1e-6 (D-PSGD, "
            "RelaySum/Grad: has settled there).\nrate: as the paper's code writes it "
            "down, which is half of the (true) rate of that run, but for D-PSGD and\n"
            "RelaySum/Grad; the curves run with what is written down. error: at the "
            "last evaluation of the paper, whose\ncurves end below 1e-12.\n"
        )
        title = f"Figure {self.number}: {title}"
        return [figures.table(title, columns, rows, caption + self.caption)]

    def draw(self, records: list[figures.Record]):
        """Draws errors against steps, in a panel for each heterogeneity."""
        limits = dict(zip(self.zetas, self.steps, strict=True))
        zetas = figures.distinct(records, "zeta2")
        figure, (panels,) = figures.panels((10, 3), 1, len(zetas), sharey=True)
        for axes, zeta2 in zip(panels, zetas, strict=True):
            axes.axhline(GOAL, ls="--", color="gray", lw=0.8)
            for record in figures.select(records, zeta2=zeta2):
                if record["learning_rate"] is None:
                    continue
                color = COLORS[record["method"]]
                at = record["stride"] * np.arange(len(record["errors"]))
                style = {"color": color, "lw": 1.2, "label": _label(record)}
                axes.plot(at, record["errors"], **style)
                error, *_ = self._published(record)
                if error is not None:
                    axes.plot(record["end"], error, "o", color=color, mfc="none")
            axes.set(yscale="log", ylim=(self.bottom, 1), xlabel="steps $t$")
            axes.set(xlim=(0, 1.03 * limits[zeta2]), title=f"$\\zeta^2 = {zeta2:g}$")
        panels[0].set_ylabel("suboptimality $f(\\bar x) - f^\\star$")
        handles, _ = panels[0].get_legend_handles_labels()
        handles.append(figures.circle("the paper's last value", size=6))
        figure.legend(handles=handles, loc="outside right center", fontsize=8)
        return figure


def _label(record: figures.Record) -> str:
    return f"{record['method']}, {record['topology']}"


def _end(errors: np.ndarray, every: int) -> int:
    """Finds the step of the paper's last evaluation.

    The paper evaluates every `every` steps, and ends a curve when its error is below
    the floor. The last step of a run is evaluated only if every step is.
    """
    steps = np.arange(0, len(errors) - (every > 1), every)
    low = errors[steps] < FLOOR
    return int(steps[low.argmax() if low.any() else -1])
