"""Reads the folders of runs, and tells which of them show the same training.

A training that was stopped and resumed has two folders. They are no two seeds: the
first shows a part of what the second shows. The same holds for a training that was
started again with the same options and the same seed.
"""

import dataclasses
import datetime
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from . import asynchronous
from .config import BUDGET, UNESSENTIAL, Config, flatten
from .errors import UsageError


class Run(NamedTuple):
    """A run that is compared.

    Attributes:
      folder: the folder of the run.
      options: all options by name, also those that have their default.
      history: a record for each evaluation.
      ended: whether it was trained to the end, or diverged. False for a run that was
        stopped, and for one that is still running.
      began: the time at which it began, in seconds.
    """

    folder: pathlib.Path
    options: dict[str, Any]
    history: list[dict[str, Any]]
    ended: bool
    began: float

    @property
    def epoch(self) -> float:
        """The epoch of the last evaluation; -1 if there is none."""
        return self.history[-1]["epoch"] if self.history else -1.0

    def values(self, column: str) -> np.ndarray:
        """Returns the numbers of a column, with nan where a record lacks it."""
        found = [record.get(column, np.nan) for record in self.history]
        return np.asarray(found, np.float64)


def load(folder: pathlib.Path) -> Run:
    """Reads a run; raises UsageError if the folder is not that of a run."""
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is not a folder; pass the folders of runs, such as "
            "runs/<time>-<name>."
        )
    config, metrics = folder / "config.json", folder / "metrics.jsonl"
    if not config.exists():
        raise UsageError(
            f"{folder} is not the folder of a run: it has no config.json; pass folders "
            "such as runs/<time>-<name>."
        )
    lines = metrics.read_text().splitlines() if metrics.exists() else []
    try:
        history = [json.loads(line) for line in lines]
        options = _read_options(json.loads(config.read_text())["config"])
        ended = _has_ended(folder, options, history)
    except (ValueError, KeyError) as error:
        if not lines:
            raise _no_metrics(folder) from error
        raise UsageError(f"{folder} has a file that cannot be read: {error}") from error
    sizes = [len(record["scores"]) for record in history if "scores" in record]
    if options["workers"] is None and sizes:
        # Under mpirun the number of workers is that of the processes.
        options["workers"] = sizes[0]
    return Run(folder, options, history, ended, _began(folder))


def _no_metrics(folder: pathlib.Path) -> UsageError:
    """The error about a run that has not been evaluated."""
    missing = "is empty" if (folder / "metrics.jsonl").exists() else "is missing"
    return UsageError(
        f"{folder} has no metrics yet: its metrics.jsonl {missing}; wait for the first "
        "evaluation, or leave this run away."
    )


def _read_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the options of a configuration and of its parts, as the command line.

    Options that are younger than the run have their defaults.
    """
    parts = {
        field.name
        for field in dataclasses.fields(Config)
        if dataclasses.is_dataclass(field.type)
    }
    found = flatten(Config())
    for name, value in config.items():
        for key, item in value.items() if name in parts else [(name, value)]:
            found[key] = tuple(item) if isinstance(item, list) else item
    return found


def _has_ended(
    folder: pathlib.Path,
    options: Mapping[str, Any],
    history: Sequence[Mapping[str, Any]],
) -> bool:
    """Whether a run has metrics up to its end, or up to its divergence."""
    if not history:
        return False
    summary, epochs = folder / "summary.json", options["epochs"]
    if summary.exists():
        rows = json.loads(summary.read_text())["rows"]
        if "epochs" not in rows:
            return True
        # A signal came, perhaps when the training had ended: "3 of 40".
        epochs = float(rows["epochs"].split()[-1])
    return epochs is not None and history[-1]["epoch"] >= epochs


def _began(folder: pathlib.Path) -> float:
    """Returns when a run began: by its folder's name, which copies keep."""
    try:
        named = folder.resolve().name[:15]
        return datetime.datetime.strptime(named, "%Y%m%d-%H%M%S").timestamp()
    except ValueError:
        return (folder / "config.json").stat().st_mtime


def leave_out(runs: Sequence[Run]) -> tuple[list[Run], list[str]]:
    """Leaves out runs whose training another run shows as well.

    Of runs that agree in all options which a resumption needs, the seed included, one
    is kept: the newest that has ended or, if none has, the one that went furthest.

    Returns:
      The runs that are kept, and for each of them that stands for others a line which
      says which these are, and why.

    Raises:
      UsageError: if a run that is kept has no metrics.
    """
    kept: list[Run] = []
    replaced: dict[pathlib.Path, list[str]] = {}
    alike: dict[str, list[Run]] = {}
    for run in runs:
        alike.setdefault(_identify(run, resumed=True), []).append(run)
    for run in runs:
        others = alike[_identify(run, resumed=True)]
        better = [other for other in others if _replaces(other, run)]
        if not better:
            kept.append(run)
            continue
        why = "no evaluation yet"
        if run.history:
            why = "older" if run.ended else f"ends at epoch {run.epoch:.4g}"
        shown = max(better, key=_rank).folder
        replaced.setdefault(shown, []).append(f"{run.folder} ({why})")
    for run in kept:
        if not run.history:
            raise _no_metrics(run.folder)
    return kept, [
        f"left out: {', '.join(folders)}: {shown} continues or repeats the same "
        "training with the same seed"
        for shown, folders in replaced.items()
    ]


def _rank(run: Run) -> tuple:
    """Of runs with the same options, the one of the highest rank is shown."""
    further = 0.0 if run.ended else run.epoch
    return run.ended, further, run.began, str(run.folder)


def _replaces(other: Run, run: Run) -> bool:
    """Whether this other run, which may continue the run, is shown in its place."""
    if _rank(other) <= _rank(run):
        return False
    if not run.history or _identify(other) == _identify(run):
        return True
    saved = None not in (other.options["checkpoints"], run.options["checkpoints"])
    equal = other.options["workers"] == run.options["workers"]
    return saved and equal and not run.ended and other.epoch >= run.epoch


def _identify(run: Run, *, resumed: bool = False) -> str:
    """Returns the options in which two runs agree if they are the same training.

    If asynchronous workers are `resumed`, their duration may differ. Whether one run
    may continue another then depends on the number of workers, too, which is not always
    known.
    """
    ignored = UNESSENTIAL
    if resumed:
        ignored = ignored | {"workers"}
        if run.options["algorithm"] in asynchronous.ALGORITHMS:
            ignored = ignored | BUDGET
    return repr(
        [
            (name, sorted(value.items()) if isinstance(value, dict) else value)
            for name, value in sorted(run.options.items())
            if name not in ignored
        ]
    )
