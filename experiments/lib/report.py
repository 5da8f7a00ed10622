"""Shows the results of a run, and writes them into a folder of its own."""

import contextlib
import datetime
import importlib.metadata
import json
import pathlib
import platform
import subprocess
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
import rich.console
import rich.table

import djax

from .errors import UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class RunFolder:
    """Writes the files of one run; only the process of rank 0 does, and is `active`."""

    def __init__(
        self,
        parent: pathlib.Path,
        name: str,
        communicator: djax.Communicator,
        tensorboard: bool,
    ):
        """Makes the folder `parent/<time>-<name>/`, with a number if that exists."""
        make_writer = _find_writer() if tensorboard else None
        local = communicator.local_ranks
        self.active = 0 in local
        made = str(_make_folder(parent, name)) if self.active else ""
        self.path = pathlib.Path(communicator.gather([made] * len(local))[0])
        self._writer: Any = None
        if make_writer and self.active:
            self._writer = make_writer(str(self.path), flush_secs=10)

    def write(self, name: str, content: Mapping[str, Any]) -> None:
        """Writes a file in JSON."""
        if self.active:
            text = json.dumps(content, indent=2, ensure_ascii=False, default=str)
            (self.path / name).write_text(text + "\n")

    def append(self, record: Mapping[str, Any]) -> None:
        """Appends a line to `metrics.jsonl`."""
        if self.active:
            with (self.path / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(record) + "\n")
            if self._writer is not None:
                _write_scalars(self._writer, record)

    def close(self) -> None:
        """Writes what TensorBoard's writer still has in memory."""
        if self._writer is not None:
            self._writer.close()

    def save(self, name: str, figure: "Figure") -> None:
        """Saves a matplotlib figure."""
        if self.active:
            figure.savefig(self.path / name, dpi=150)


def _find_writer() -> Callable[..., Any]:
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        raise UsageError(
            '--tensorboard needs its writer: pip install "djax-gossip[tensorboard]".'
        ) from None
    return SummaryWriter


def _write_scalars(writer: Any, record: Mapping[str, Any]) -> None:
    step = round(record["step"])
    for name, value in record.items():
        values = value if isinstance(value, list) else [value]
        for i, number in enumerate(values):
            tag = f"{name}/{i}" if value is values else name
            writer.add_scalar(tag, number, step)


def _make_folder(parent: pathlib.Path, name: str) -> pathlib.Path:
    parent.mkdir(parents=True, exist_ok=True)
    stem = f"{datetime.datetime.now():%Y%m%d-%H%M%S}-{name}"
    for suffix in ("", *(f"-{i}" for i in range(2, 1000))):
        folder = parent / f"{stem}{suffix}"
        with contextlib.suppress(FileExistsError):
            folder.mkdir()
            return folder
    raise UsageError(f"--runs {parent} has a thousand runs of the name {name} already.")


def provenance() -> dict[str, Any]:
    """Returns the versions, commit and devices with which a result was made."""
    versions: dict[str, str | None] = {}
    for package in "djax-gossip jax jaxlib optax flax mpi4jax numpy".split():
        versions[package] = None
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            versions[package] = importlib.metadata.version(package)
    try:
        commit = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=40"],
            capture_output=True,
            text=True,
            cwd=pathlib.Path(__file__).parent,
        ).stdout.strip()
    except OSError:
        commit = ""
    return {
        "versions": versions,
        "commit": commit or None,
        "python": platform.python_version(),
        "devices": [d.device_kind for d in jax.local_devices()],
    }


def summarize(score: str, last: Mapping[str, float]) -> list[tuple[str, str]]:
    """Returns the rows of the final table about the last evaluation."""
    rows = {
        "worst": f"{score}, worst worker",
        "mean": f"{score}, mean of workers",
        "averaged": f"{score}, averaged model",
        "loss": "training loss of the last epoch",
        "mean_loss": "held-out loss, mean of workers",
        "consensus_distance": "consensus distance",
    }
    digits = ".3%" if score == "accuracy" else ".5g"
    return [
        (name, format(last[key], digits if score in name else ".5g"))
        for key, name in rows.items()
        if key in last
    ]


COLUMNS = {
    "epoch": "Passes over the training data so far, a mean over the workers.",
    "step": "Gradients that a worker has computed so far, a mean over the workers.",
    "loss": "Training loss, a mean over the workers and over the last epoch; in nats "
    "where classes or words are predicted.",
    "mean": "Mean of the scores of the workers' models on held-out data: {score}.",
    "worst": "Worst score of a worker's model on held-out data: {score}.",
    "averaged": "Score of the averaged model on held-out data: {score}.",
    "mean_loss": "Mean of the losses of the workers' models on held-out data, in the "
    "unit of `loss`.",
    "averaged_loss": "Loss of the averaged model on held-out data, in the unit of "
    "`loss`.",
    "scores": "Score of each worker's model on held-out data, in the order of ranks: "
    "{score}.",
    "consensus_distance": "Mean squared distance of the workers' models from the "
    "averaged model, in squared units of the parameters.",
    "megabytes": "Megabytes (10^6 bytes) that a worker has sent so far, a mean over "
    "the workers; of a resumed run in real time, since it was resumed.",
    "seconds": "Seconds since the training began; of a resumed run in real time, since "
    "it was resumed.",
    "time": "On virtual clocks, time in units of one gradient of a worker of speed 1; "
    "in real time, the same seconds as `seconds`.",
    "collapsed": "True if the run was given up here, since no worker had reached the "
    "score of --collapse.",
}
"""What the columns of `metrics.jsonl` mean; `{score}` is the score of the task."""
_SCORES = {"accuracy": "accuracy, a share of the samples from 0 to 1"}
"""Scores whose name does not tell their unit. All others have none."""


def explain_columns(score: str, history: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Returns what each column means that a history has, in one sentence each."""
    told = _SCORES.get(score, f"{score}, without a unit")
    found = set().union(*history)
    return {
        name: text.format(score=told) for name, text in COLUMNS.items() if name in found
    }


def show_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Prints a table of names and values."""
    table = rich.table.Table(title=title, show_header=False, title_justify="left")
    table.add_column()
    table.add_column(justify="right")
    for row in rows:
        table.add_row(*row)
    rich.console.Console(width=88, highlight=False).print(table)


def panels(
    size: tuple[float, float], rows: int = 1, columns: int = 1, **options: Any
) -> tuple["Figure", np.ndarray]:
    """Makes a figure of panels with faint grids."""
    import matplotlib  # Imported here, since it is slow and tables do not need it.
    from matplotlib.figure import Figure

    with matplotlib.rc_context({"axes.grid": True, "grid.alpha": 0.3}):
        figure = Figure(figsize=size, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False, **options)


def plot_history(
    history: Sequence[Mapping[str, float]], score: str, title: str
) -> "Figure":
    """Draws losses, scores and consensus distance against epochs, or time if known."""
    figure, ((left, middle, right),) = panels((12, 3.6), 1, 3)
    against = "time" if "time" in history[0] else "epoch"
    positions = [record[against] for record in history]

    def draw(axes, key, **style):
        # Matplotlib cannot scale an axis to numbers close to the largest float.
        values = np.asarray([record[key] for record in history], np.float64)
        axes.plot(positions, np.where(np.abs(values) < 1e100, values, np.nan), **style)

    draw(left, "loss", label="training, mean of workers")
    draw(left, "mean_loss", label="held out, mean of workers")
    draw(left, "averaged_loss", label="held out, averaged model", linestyle="--")
    left.set(ylabel="loss", yscale="log")
    draw(middle, "worst", label="worst worker")
    draw(middle, "mean", label="mean of workers")
    draw(middle, "averaged", label="averaged model", linestyle="--")
    middle.set(ylabel=score, yscale="linear" if score == "accuracy" else "log")
    draw(right, "consensus_distance")
    agree = all(record["consensus_distance"] == 0 for record in history)
    right.set(ylabel="consensus distance", yscale="linear" if agree else "log")
    for axes in (left, middle, right):
        axes.set_xlabel(against)
    for axes in (left, middle):
        axes.legend(fontsize=8)
    figure.suptitle(title)
    return figure
