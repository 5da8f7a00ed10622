"""What a table of a paper is made of: rows, their configurations, and how they compare.

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
"""Options of the configuration that make any row tiny."""


@dataclasses.dataclass(frozen=True)
class Row:
    """A result of the paper, and how it is made.

    Attributes:
      method: who averages.
      config: how, with the learning rate of the paper's result, as far as is known.
      setting: of the data or the workers, if the table has several.
      expected: the paper's result; a dash if none is known.
      tried: the learning rates among which the paper's was chosen.
      seeds: of the paper's runs.
    """

    method: str
    config: Config
    setting: str = ""
    expected: str = "–"
    tried: tuple[float, ...] = ()
    seeds: tuple[int, ...] = (1, 2, 3)

    @property
    def algorithm(self) -> str:
        """Its name on the command line."""
        return self.config.averaging.algorithm

    @property
    def learning_rate(self) -> float:
        """The peak of the paper's run."""
        return self.config.base.learning_rate


@dataclasses.dataclass(frozen=True)
class Choice:
    """Which rows are run; without a choice all are listed, and none is run."""

    method: str | None = None
    """Only rows of this method, as it is listed."""
    setting: str | None = None
    """Only rows of this setting, as it is listed."""
    seeds: tuple[int, ...] = ()
    """The paper's by default."""
    tune: bool = False
    """Run once with each of the paper's learning rates, with the first seed."""
    smoke: bool = False
    """Run a row of each algorithm on random data with a narrow model for three steps:
    shows that it runs, not what the paper shows."""
    more: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    """After --: further arguments for experiments.train, such as --data-dir."""


@dataclasses.dataclass(frozen=True)
class Table:
    """A table of a paper.

    Attributes:
      title: what it shows.
      rows: its rows.
      smoke: what it needs besides `SMOKE` to be tiny.
      score: of the last record of the history by which rows are compared.
      last: how many of the last evaluations it is averaged over.
      accuracy: whether the score is an accuracy, which is told in %, and good if high.
      prepare: arguments of :mod:`experiments.prepare`, for the instructions.
      example: rows that the instructions run, and further arguments.
      hours: that these take on a cluster, at most.
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
    """A table, and how its rows are tuned.

    Attributes:
      table: whose rows are run.
      rates: learning rates that every method is tried with.
      seeds: of the runs; learning rates are chosen with the first.
      variants: further options that a method is tried with, together with each of the
        rates; by method.
      borrowed: methods that take the learning rate of another one, and are not tuned.
    """

    table: Table
    rates: tuple[float, ...]
    seeds: tuple[int, ...] = (1, 2, 3)
    variants: Mapping[str, tuple[Mapping[str, Any], ...]] = dataclasses.field(
        default_factory=dict
    )
    borrowed: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def variants_of(self, row: Row) -> dict[str, Mapping[str, Any]]:
        """What a row is tried with, by the names that the ledger has for it."""
        tried = self.variants.get(row.method, ({},))
        return {" ".join(write_flags(options)): options for options in tried}


def configure(table: Table, row: Row, *, smoke: bool = False, **options: Any) -> Config:
    """The configuration of a row, with other options, and tiny if that is asked."""
    if smoke:
        workers = communicators.launcher_size() or 2
        options = {**options, **SMOKE, **table.smoke, "workers": workers}
    return row.config.replace(**options)


def select(table: Table, choice: Choice) -> list[Row]:
    """The rows that are chosen.

    Raises:
      UsageError: if there is none.
    """
    for kind in ("method", "setting"):
        if (chosen := getattr(choice, kind)) is not None:
            known = {getattr(row, kind) for row in table.rows}
            lookup(f"--{kind}", chosen, known)
    rows = [
        row
        for row in table.rows
        if choice.method in (None, row.method) and choice.setting in (None, row.setting)
    ]
    if not rows:
        raise UsageError(f"{choice.method} has no setting {choice.setting}.")
    return one_of_each_algorithm(rows) if choice.smoke and not choice.setting else rows


def one_of_each_algorithm(rows: Sequence[Row]) -> list[Row]:
    """The first row of each algorithm."""
    return list({row.algorithm: row for row in reversed(rows)}.values())[::-1]


def score(table: Table, history: Sequence[Mapping[str, Any]]) -> float:
    """By what a run is compared.

    Args:
      table: says how.
      history: of the run.
    """
    last = history[-table.last :]
    if table.score == "worst":  # Each worker's mean first, then the worst of them.
        everyone = zip(*(record["scores"] for record in last), strict=True)
        means = [statistics.fmean(scores) for scores in everyone]
        found = min(means) if table.accuracy else max(means)
    else:
        found = statistics.fmean(record[table.score] for record in last)
    return 100 * found if table.accuracy else found
