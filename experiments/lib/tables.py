"""Defines what a table of a paper consists of, and how its rows are compared.

:mod:`experiments.configs` has the tables. :mod:`experiments.lib.papers` runs them on a
cluster, and :mod:`experiments.lib.study` tunes and runs those that are small.
"""

import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import tyro

from djax import communicators

from .config import Config
from .errors import UsageError, lookup
from .options import write_flags

SMOKE = {
    "mock": True,
    "model_options": {"width": 0.125},
    "batch_size": 4,
    "epochs": 1,
    "steps_per_epoch": 3,
    "evaluations": 1,
}
"""Options that make the training of any row tiny, for smoke tests; a table may have
further ones that make its model shallow."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A result of the paper, and how it is made.

    Attributes:
      config: configuration, with the paper's learning rate if it is known.
      setting: setting of the data or the workers, if the table has several.
      expected: the paper's result; a dash if none is known.
      tried: learning rates among which the paper chose.
    """

    method: str
    config: Config
    setting: str = ""
    expected: str = "–"
    tried: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)

    @property
    def algorithm(self) -> str:
        """Name of the algorithm on the command line."""
        return self.config.averaging.algorithm

    @property
    def learning_rate(self) -> float:
        """Peak learning rate of the paper's run."""
        return self.config.base.learning_rate


@dataclasses.dataclass(frozen=True)
class Choice:
    """Chooses the rows that are run. Without a choice all rows are listed, and none is
    run."""

    method: str | None = None
    """Run only rows of this method, written as in the list."""
    setting: str | None = None
    """Run only rows of this setting, written as in the list."""
    seeds: tuple[int, ...] = ()
    """Seeds of the runs; by default those of the paper."""
    tune: bool = False
    """Run once with each learning rate of the paper's grid, with the first seed."""
    smoke: bool = False
    """Run a row of each algorithm on random data with a narrow model for three steps,
    to see that it runs; results mean nothing."""
    more: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """After --: further arguments for experiments.train, such as --data-dir."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
      smoke: options that make rows tiny besides `SMOKE`.
      score: key of the records by which rows are compared.
      last: number of last evaluations over which the score is averaged.
      accuracy: whether the score is an accuracy, in %, which should be high.
      prepare: arguments of :mod:`experiments.prepare` for the instructions.
      example: rows that the instructions run, with further arguments.
      hours: upper bound of the hours that the example takes on a cluster.
    """

    title: str
    rows: tuple[Row, ...]
    smoke: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    score: str = "worst"
    last: int = 1
    accuracy: bool = True
    prepare: str = ""
    example: Choice = Choice()
    hours: int = 4


@dataclasses.dataclass(frozen=True)
class Study:
    """A table whose rows are tuned and run on one machine.

    Attributes:
      rates: learning rates that are tried with every method.
      seeds: seeds of the runs; the first one is used for tuning.
      variants: for some methods, further options; each is tried with each of the rates.
      borrowed: for methods that are not tuned, the method whose learning rate they use.
    """

    table: Table
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    variants: Mapping[str, tuple[Mapping[str, Any], ...]] = dataclasses.field(
        default_factory=dict
    )
    borrowed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def variants_of(self, row: Row) -> dict[str, Mapping[str, Any]]:
        """Returns the options that are tried with a row, by name in the ledger."""
        tried = self.variants.get(row.method, ({},))
        return {" ".join(write_flags(options)): options for options in tried}


def configure(table: Table, row: Row, *, smoke: bool = False, **options: Any) -> Config:
    """Makes the configuration of a row."""
    if smoke:
        workers = communicators.launcher_size() or 2
        options = {**options, **SMOKE, **table.smoke, "workers": workers}
    return row.config.replace(**options)


def select(table: Table, choice: Choice) -> list[Row]:
    """Returns the chosen rows of a table; raises UsageError if no row fits."""
    for kind in ("method", "setting"):
        if (chosen := getattr(choice, kind)) is not None:
            lookup(f"--{kind}", chosen, {getattr(row, kind) for row in table.rows})
    rows = [
        row
        for row in table.rows
        if choice.method in (None, row.method) and choice.setting in (None, row.setting)
    ]
    if not rows:
        raise UsageError(f"{choice.method} has no setting {choice.setting}.")
    return one_of_each_algorithm(rows) if choice.smoke and not choice.setting else rows


def one_of_each_algorithm(rows: Sequence[Row]) -> list[Row]:
    """Returns the first row of each algorithm."""
    return list({row.algorithm: row for row in reversed(rows)}.values())[::-1]


def score(table: Table, history: Sequence[Mapping[str, Any]]) -> float:
    """Computes the score of a run, by which rows are compared."""
    last = history[-table.last :]
    if table.score == "worst":  # Each worker's mean first, then the worst of them.
        everyone = zip(*(record["scores"] for record in last), strict=True)
        means = [statistics.fmean(scores) for scores in everyone]
        found = min(means) if table.accuracy else max(means)
    else:
        found = statistics.fmean(record[table.score] for record in last)
    return 100 * found if table.accuracy else found
