"""What figures 7, 8 and 10 share: tune methods, run them, draw errors against steps.

Learning rates are tuned by the paper's search, without noise, for an error of 1e-6. Its
code writes down half of the rate that reached it fastest, and then runs with what it
wrote down; so do the curves here.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tqdm import tqdm

from ..lib import figures, sweep, tuning
from ..lib.quadratics import random_quadratics
from .methods import COLORS

DIM, SMALLEST, GOAL = 10, 0.5, 1e-6
FLOOR = 1e-12
"""Curves end below this error."""
POINTS = 500
"""About how many points a recorded curve has."""


class Published(NamedTuple):
    """What the paper has for a method on a problem.

    Attributes:
      error: the last one of its curve.
      steps: until the tuned run reached the goal, or settled below it.
      rate: that it wrote down.
    """

    error: float | None = None
    steps: int | None = None
    rate: float | None = None


class Method(NamedTuple):
    """A colour of the figure; sequences have an element for each heterogeneity.

    Attributes:
      name: who.
      topology: on which graph.
      make: what is tuned.
      paper: the paper's values.
      every: between two evaluations in the paper.
      plateau: tuned for the rate whose error settles at the goal, not for the fastest.
      max_steps: when a run is given up.
      cap: on the learning rate of the curve.
      curve: what runs for the curve, if it is not what is tuned.
      seed: of the problem.
    """

    name: str
    topology: str
    make: sweep.MakeOptimizer
    paper: Sequence[Published]
    every: Sequence[int] = (1, 1, 1)
    plateau: bool = False
    max_steps: int = 10_000
    cap: float = np.inf
    curve: sweep.MakeOptimizer | None = None
    seed: int = 0


class Study(NamedTuple):
    """A figure.

    Attributes:
      number: the paper's.
      methods: from a number of workers to what it compares.
      zetas: the heterogeneities, a panel each.
      steps: of the curves in each panel.
      bottom: of the panels.
      noise: of the gradients, for the curves only.
      workers: how many.
      max_steps: when a run is given up at the latest.
      caption: below the table, what there is to say besides.
    """

    number: int
    methods: Callable[[int], Sequence[Method]]
    zetas: Sequence[float]
    steps: Sequence[int]
    bottom: float
    noise: float = 0.0
    workers: int = 32
    max_steps: int = 70_000
    caption: str = ""

    def smoke(self) -> "Study":
        """The same in seconds."""
        few = {"zetas": self.zetas[1:2], "steps": (40,), "max_steps": 500}
        return self._replace(workers=4, **few)


def main(
    study: Study, script: str, doc: str | None, arguments: Sequence[str] | None
) -> list[dict[str, Any]]:
    """The command line of a figure.

    Args:
      study: the figure.
      script: its `__file__`.
      doc: its docstring.
      arguments: by default those of the process.

    Returns:
      The records.
    """
    config = figures.configure(script, doc, arguments)
    study = study.smoke() if config.smoke else study
    with jax.enable_x64(True):
        records = compute(study)
    table = make_table(study, records)
    figures.publish(script, config, records, [table], draw(study, records))
    return records


def compute(study: Study) -> list[dict[str, Any]]:
    """Tunes every method on every problem, and runs it.

    Args:
      study: the figure.

    Returns:
      A record for each method and heterogeneity. Without a `learning_rate` there is no
      curve either.
    """
    records = []
    methods = study.methods(study.workers)
    for method in tqdm(methods, desc=f"figure {study.number}", unit="method"):
        problems = [
            random_quadratics(
                study.workers, DIM, zeta2, smallest=SMALLEST, seed=method.seed
            )
            for zeta2 in study.zetas
        ]
        tune = tuning.tune_as_published
        if method.plateau:
            tune = tuning.tune_plateau
        max_steps = min(method.max_steps, study.max_steps)
        tuned = tune(method.make, problems, goal=GOAL, max_steps=max_steps)
        for i, zeta2 in enumerate(study.zetas):
            record: dict[str, Any] = {
                "method": method.name,
                "topology": method.topology,
                "n": study.workers,
                "zeta2": zeta2,
                "seed": method.seed,
            }
            records.append(record)
            if np.isnan(tuned.steps[i]):
                record |= {"steps": None, "learning_rate": None}
                continue
            rate = float(tuned.learning_rates[i])
            recorded = rate if method.plateau else rate / 2
            run_with = min(recorded, method.cap)
            errors = sweep.curves(
                method.curve or method.make,
                problems[i],
                run_with,
                study.steps[i],
                noise=study.noise,
            )
            end = _end(errors, method.every[i])
            stride = max(1, study.steps[i] // POINTS)
            late = errors[len(errors) // 2 :]
            record |= {
                "steps": int(tuned.steps[i]),
                "learning_rate": rate,
                "learning_rate_as_recorded": recorded,
                "curve_learning_rate": run_with,
                "end": end,
                "error": float(errors[end]),
                "late_errors": [float(x) for x in np.quantile(late, (0.05, 0.95))],
                "stride": stride,
                "errors": [float(f"{e:.4g}") for e in errors[: end + 1 : stride]],
            }
    return records


def _end(errors: np.ndarray, every: int) -> int:
    """The step of the paper's last evaluation.

    The last step is one only where every step is. A curve ends below the floor.
    """
    steps = np.arange(0, len(errors) - (every > 1), every)
    low = errors[steps] < FLOOR
    return int(steps[low.argmax() if low.any() else -1])


def _papers(study: Study, record: dict) -> Published | None:
    """The paper's values beside a record, None with other numbers of workers."""
    if study.workers != Study._field_defaults["workers"]:
        return None
    (method,) = (m for m in study.methods(study.workers) if m.name == record["method"])
    return method.paper[study.zetas.index(record["zeta2"])]


def make_table(study: Study, records: list[dict]):
    """The paper's values, ours and deviations.

    Args:
      study: the figure.
      records: from :func:`compute`.

    Returns:
      What :func:`experiments.lib.figures.publish` shows.
    """
    rows = []
    for record in records:
        paper = _papers(study, record) or Published()
        who = f"{record['method']}, {record['topology']}"
        row: list[Any] = [who, f"{record['zeta2']:g}"]
        if record["learning_rate"] is None:
            rows.append([*row, *[None] * 10])
            continue
        steps, recorded = record["steps"], record["learning_rate_as_recorded"]
        error = record["error"]
        off = figures.deviation(error, paper.error)
        if study.noise:
            off = "{:.1e} – {:.1e}".format(*record["late_errors"])
        row += [paper.steps, steps, paper.rate, recorded]
        row += [figures.deviation(recorded, paper.rate), record["learning_rate"]]
        rows.append([*row, record["end"], paper.error, error, off])
    columns = ["method", "ζ²", "steps paper", "ours", "rate paper", "ours", ""]
    columns += ["(true)", "at step", "error paper", "ours"]
    return figures.table(
        f"Figure {study.number}: tuned steps and learning rates, error of the curves",
        [*columns, "5 – 95 %" if study.noise else ""],
        rows,
        "steps: until the tuned, noise-free run has f(x̄) − f* ≤ 1e-6 (D-PSGD, "
        "RelaySum/Grad: has settled there).\nrate: as the paper's code writes it down, "
        "which is half of the (true) rate of that run, but for D-PSGD and\n"
        "RelaySum/Grad; the curves run with what is written down. error: at the last "
        "evaluation of the paper, whose\ncurves end below 1e-12.\n" + study.caption,
    )


def draw(study: Study, records: list[dict]) -> Figure:
    """Errors against steps, a panel for each heterogeneity.

    Args:
      study: the figure.
      records: from :func:`compute`.

    Returns:
      The picture.
    """
    figure = Figure(figsize=(10, 3), layout="constrained")
    panels = figure.subplots(1, len(study.zetas), sharey=True, squeeze=False)[0]
    for axes, zeta2, steps in zip(panels, study.zetas, study.steps, strict=True):
        axes.axhline(GOAL, ls="--", color="gray", lw=0.8)
        for record in records:
            if record["zeta2"] != zeta2 or record["learning_rate"] is None:
                continue
            color = COLORS[record["method"]]
            at = record["stride"] * np.arange(len(record["errors"]))
            label = f"{record['method']}, {record['topology']}"
            axes.plot(at, record["errors"], color=color, lw=1.2, label=label)
            if paper := _papers(study, record):
                axes.plot(record["end"], paper.error, "o", color=color, mfc="none")
        axes.set(yscale="log", ylim=(study.bottom, 1), xlabel="steps $t$")
        axes.set_xlim(0, 1.03 * steps)
        axes.set_title(f"$\\zeta^2 = {zeta2:g}$")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("suboptimality $f(\\bar x) - f^\\star$")
    handles, _ = panels[0].get_legend_handles_labels()
    circle = Line2D([], [], marker="o", ls="", mfc="none", color="gray")
    circle.set_label("the paper's last value")
    figure.legend(handles=[*handles, circle], loc="outside right center", fontsize=8)
    return figure
