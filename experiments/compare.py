"""Compares runs of :mod:`experiments.train` in a picture and a table.

    python -m experiments.compare runs/*digits*
    python -m experiments.compare runs/*dpsgd* runs/*power_gossip* --x megabytes
    python -m experiments.compare runs/*ring* --y consensus_distance --out distance.png

Each RUN is the folder of a run. A run is called by the options in which it differs from
the other runs. Runs that differ in the seed alone are shown together, by the mean and
the standard deviation over the seeds. A run that was stopped is left out if the run
that continues it is shown. Of runs with the same options and the same seed, which would
be counted twice, the newest is shown. Values that a run does not know, such as the
worst worker's after workers were lost, are left out.
"""

import dataclasses
import pathlib
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import rich.table
import tyro

from .lib import config as configs
from .lib import errors, figures, report
from .lib.errors import UsageError
from .lib.options import write_flags
from .lib.stored import Run, leave_out, load

if TYPE_CHECKING:
    from matplotlib.figure import Figure

X = {
    "megabytes": ("megabytes", "megabytes that a worker has sent"),
    "seconds": ("seconds", "seconds"),
    "steps": ("step", "gradients of a worker"),
    "epochs": ("epoch", "epochs"),
    "time": ("time", "time"),
}
"""The column of each choice of the horizontal axis, and the label of the axis."""
SCORES = {
    "worst": "score of the worst worker",
    "mean": "mean score of the workers",
    "averaged": "score of the averaged model",
}
"""Columns that the vertical axis shows, and the label of the axis."""
LOSSES = {
    "loss": "training loss, mean of the workers",
    "mean_loss": "held-out loss, mean of the workers",
    "averaged_loss": "held-out loss of the averaged model",
    "consensus_distance": "consensus distance",
}
"""Further ones, which are drawn on a logarithmic axis."""
SHOWN = (*SCORES, "loss", "consensus_distance", "megabytes", "seconds")
"""The columns of the table, whose last values it shows."""
WIDE = 20.0
"""If the last values on the horizontal axis differ by this factor, the axis is
logarithmic: the curve of the shortest run would be too short to be seen."""
NAMING = {"task", "algorithm", "topology"}
"""Options that say what a run is. If they differ, it is called by them even where they
have their defaults."""


@dataclasses.dataclass(frozen=True)
class Config:
    """Which runs are compared, and how they are drawn."""

    runs: tyro.conf.Positional[tuple[pathlib.Path, ...]]
    """Folders of runs, as in runs/*digits*."""
    x: Literal["megabytes", "seconds", "steps", "epochs", "time"] = "epochs"
    """What the horizontal axis shows. Only runs on virtual clocks or in real time have
    a time."""
    y: Literal[
        "worst",
        "mean",
        "averaged",
        "loss",
        "mean_loss",
        "averaged_loss",
        "consensus_distance",
    ] = "worst"
    """What the vertical axis shows: the score of the worst worker, the mean score of
    the workers or the score of the averaged model; a loss; or the consensus distance.
    """
    out: pathlib.Path = pathlib.Path("compare.png")
    """File of the picture."""


def group(runs: Sequence[Run]) -> dict[str, list[Run]]:
    """Returns the runs by their labels; those of one label differ in the seed alone."""
    ignored = configs.UNESSENTIAL | {"seed"}
    names = {name: None for run in runs for name in run.options if name not in ignored}
    differing = [
        name for name in names if len({repr(run.options.get(name)) for run in runs}) > 1
    ]
    groups: dict[str, list[Run]] = {}
    for run in runs:
        options = _naming({name: run.options.get(name) for name in differing})
        label = " ".join(write_flags(options)) or runs[0].folder.name
        groups.setdefault(label, []).append(run)
    return groups


def _naming(differing: Mapping[str, Any]) -> dict[str, Any]:
    """Returns those of the options that differ between runs by which a run is called.

    They are the options that the run has set. A run that has set none is called by
    their defaults.
    """
    defaults = configs.flatten(configs.Config())
    has_value = {k: v for k, v in differing.items() if v is not None}
    chosen = {
        name: value
        for name, value in has_value.items()
        if name in NAMING or repr(value) != repr(defaults.get(name))
    }
    return chosen or has_value or dict(list(differing.items())[:1])


def check_columns(runs: Sequence[Run], config: Config) -> None:
    """Raises UsageError for a run that lacks what is to be drawn."""
    columns_of_x = {choice: column for choice, (column, _) in X.items()}
    columns_of_y = {choice: choice for choice in (*SCORES, *LOSSES)}
    axes = (("x", config.x, columns_of_x), ("y", config.y, columns_of_y))
    for run in runs:
        known = set().union(*run.history)
        for axis, choice, columns in axes:
            if columns[choice] not in known:
                has = [name for name, column in columns.items() if column in known]
                raise UsageError(
                    f"--{axis} {choice}: {run.folder} has no column "
                    f"{columns[choice]!r}; choose from {', '.join(has)}."
                )


def make_table(groups: Mapping[str, Sequence[Run]]) -> rich.table.Table:
    """Makes the table of the last values, a row for each label."""
    rows = [
        (label, str(len(runs)), *(_last(runs, column) for column in SHOWN))
        for label, runs in groups.items()
    ]
    columns = ("run", "seeds", *(name.replace("_", " ") for name in SHOWN))
    table = figures.table("last evaluation of each run", columns, rows)
    table.columns[0].no_wrap = False
    table.columns[0].overflow = "fold"
    return table


def _last(runs: Sequence[Run], column: str) -> str | None:
    """Returns the last values of a column as text, with the deviation over the runs."""
    values = [float(run.values(column)[-1]) for run in runs]
    if not np.isfinite(values).all():
        return None if np.isnan(values).all() else ", ".join(f"{x:.4g}" for x in values)
    told = f"{statistics.fmean(values):.4g}"
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{told} ± {deviation:.2g}" if deviation else told


def _uneven(label: str, runs: Sequence[Run]) -> str | None:
    """Says if the runs of a label, which are averaged, are not of one length."""
    counts = {len(run.history) for run in runs}
    if len(counts) == 1:
        return None
    ends = ", ".join(f"{run.folder} ({run.epoch:.4g})" for run in runs)
    return (
        f"the runs of {label} end at different epochs: {ends}; the curve ends with the "
        "shortest, and the table averages the last values of each"
    )


def draw(groups: Mapping[str, Sequence[Run]], config: Config) -> "Figure":
    """Draws a curve for each label, with a band of the standard deviation."""
    column, label = X[config.x]
    figure, ((axes,),) = report.panels((7, 4.5))
    heights, ends = [], []
    for name, runs in groups.items():
        count = min(len(run.history) for run in runs)
        x = np.mean([run.values(column)[:count] for run in runs], axis=0)
        y = np.asarray([run.values(config.y)[:count] for run in runs])
        # Matplotlib cannot scale an axis to numbers close to the largest float.
        y = np.where(np.abs(y) < 1e100, y, np.nan)
        mean, deviation = y.mean(0), y.std(0, ddof=1) if len(runs) > 1 else None
        (line,) = axes.plot(x, mean, label=name, marker="." if count < 3 else None)
        if deviation is not None:
            band = mean - deviation, mean + deviation
            axes.fill_between(x, *band, color=line.get_color(), alpha=0.2, lw=0)
        heights.append(mean)
        ends.append(x[-1])
    axes.set(xlabel=label, ylabel=(SCORES | LOSSES)[config.y])
    if _fits_logarithm(np.concatenate(heights), config.y):
        axes.set_yscale("log")
    if min(ends) > 0 and max(ends) > WIDE * min(ends):
        axes.set_xscale("log")
    axes.legend(fontsize=8)
    return figure


def _fits_logarithm(values: np.ndarray, column: str) -> bool:
    """Whether a logarithmic axis shows more: not of accuracies, which are below 1."""
    values = values[np.isfinite(values)]
    if not len(values) or not (values > 0).all():
        return False
    return column in LOSSES or values.max() > 1


def compare(config: Config) -> dict[str, list[Run]]:
    """Prints the table and writes the picture; returns the runs by their labels."""
    if not config.runs:
        raise UsageError("no runs are given; pass their folders, as in runs/*digits*.")
    folders = {folder.resolve(): folder for folder in config.runs}
    runs, notes = leave_out([load(folder) for folder in folders.values()])
    check_columns(runs, config)
    groups = group(runs)
    notes += filter(None, map(_uneven, groups, groups.values()))
    draw(groups, config).savefig(config.out, dpi=150)
    figures.print_tables([make_table(groups)], smoke=False)
    print(*notes, f"written: {config.out}", sep="\n")
    return groups


def main(arguments: Sequence[str] | None = None) -> dict[str, list[Run]]:
    """Runs the command line."""
    prog = "python -m experiments.compare"
    config = tyro.cli(Config, prog=prog, args=arguments, description=__doc__)
    with errors.one_line_errors(UsageError, OSError, ValueError):
        return compare(config)


if __name__ == "__main__":
    main()
