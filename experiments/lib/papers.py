"""Tables of papers: every row is a configuration of :mod:`experiments.train`.

A table is a value of :mod:`experiments.configs`. Its script lists the rows with the
paper's results, and runs those that are chosen: in a simulation or, under mpirun or
srun, with one process a worker.
"""

import dataclasses
import pathlib
import shlex
import statistics
import sys
import tempfile
import types
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any

import jax
import rich.console
import rich.table
import tyro

from djax import communicators

from .. import train
from . import errors, figures, processes, trainer
from .config import Config, command_line
from .errors import UsageError
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


_INSTRUCTIONS = r"""
    python -m {script}            # lists the rows
    python -m {script} --smoke    # minutes, random data
    python -m experiments.prepare {prepare}    # once
    mpirun -n {workers} python -m {script} \
        {rows}{more}

Without mpirun the workers of a row are simulated on one device. With Slurm, on nodes of
4 GPUs, and with a checkpoint two minutes before the time is over:

    #!/bin/bash
    #SBATCH --nodes={nodes} --ntasks-per-node=4 --gres=gpu:4 --cpus-per-task=8
    #SBATCH --time={hours:02}:00:00 --signal=TERM@120 --requeue
    srun python -m {script} \
        {rows} --seeds {seed}{more} \
        --data-dir $DJAX_DATA --checkpoints $SCRATCH/saved --resume
"""


def describe(script: str, table: Table) -> str:
    """How the script of a table is started, on one machine and on a cluster."""
    example = table.example
    (row, *_) = select(table, example)
    chosen = {"method": example.method, "setting": example.setting}
    return _INSTRUCTIONS.format(
        script=script,
        prepare=table.prepare,
        workers=row.config.workers,
        nodes=(row.config.workers or 1) // 4,
        rows=shlex.join(write_flags({k: v for k, v in chosen.items() if v})),
        more=f" -- {shlex.join(example.more)}" if example.more else " --",
        hours=table.hours,
        seed=row.seeds[0],
    )


def script(described: types.ModuleType) -> Callable[..., list[dict[str, Any]]]:
    """Makes the command line of a table.

    Args:
      described: has the `TABLE`, and a docstring that is the help text.

    Returns:
      A function that reads its arguments or, by default, those of the process, and
      returns a record for each run.
    """
    name = described.__name__.replace(".configs", "")

    def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
        with errors.heard_once():
            choice = tyro.cli(
                Choice,
                prog=f"python -m {name}",
                description=f"{described.__doc__}{describe(name, described.TABLE)}",
                args=arguments,
            )
        return run(described.TABLE, choice)

    return main


def run(table: Table, choice: Choice) -> list[dict[str, Any]]:
    """Runs what is chosen of a table, or lists all, and returns a record for each run.

    Raises:
      SystemExit: if there is no such row.
    """
    with errors.one_line_errors(UsageError):
        rows = select(table, choice)
    speaks = communicators.launcher_rank() == 0
    if not choice.smoke and choice.method is None and choice.setting is None:
        if speaks:
            with errors.readers_may_leave():
                show(table)
        return []
    records = []
    for row in rows:
        for options in plan(row, choice):
            config = configure(table, row, smoke=choice.smoke, **options)
            if speaks:
                print(f"{row.method} {row.setting}: {command_line(config)}", flush=True)
            config = train.parse(choice.more, config)
            found = run_row(table, config, smoke=choice.smoke)
            what = {"method": row.method, "setting": row.setting, **options}
            records.append({**what, "score": found})
            jax.clear_caches()
    if speaks:
        shown = figures.mark_table(results(table, records), choice.smoke)
        rich.console.Console(width=150, highlight=False).print(shown)
    return records


def configure(table: Table, row: Row, *, smoke: bool = False, **options: Any) -> Config:
    """The configuration of a row, with other options, and tiny if that is asked."""
    if smoke:
        workers = communicators.launcher_size() or 2
        options = {**options, **SMOKE, **table.smoke, "workers": workers}
    return row.config.replace(**options)


def run_row(table: Table, config: Config, *, smoke: bool) -> float | None:
    """Trains, and returns the score; None if the training diverges.

    A learning rate of a grid that is too large must not end the search.

    Args:
      table: says what the score is.
      config: of the training.
      smoke: whether it is tiny.
    """
    start = try_out if smoke else train.run_once
    try:
        return score(table, start(config).history)
    except trainer.Diverged as error:
        if communicators.launcher_rank() == 0:
            print(error, file=sys.stderr, flush=True)
        return None


def try_out(config: Config) -> trainer.Outcome:
    """Trains, and neither times the steps nor draws.

    Programs that differ in nothing are compiled once, and not for each row.

    Args:
      config: of the training.
    """
    with tempfile.TemporaryDirectory() as folder, processes.compiled_once():
        with errors.one_line_errors(Exception):
            run = train.Run(config.replace(runs=pathlib.Path(folder)))
        return run.train()


def select(table: Table, choice: Choice) -> list[Row]:
    """The rows that are chosen.

    Raises:
      UsageError: if there is none.
    """
    for kind in ("method", "setting"):
        if (chosen := getattr(choice, kind)) is not None:
            known = {getattr(row, kind) for row in table.rows}
            errors.lookup(f"--{kind}", chosen, known)
    rows = [
        row
        for row in table.rows
        if choice.method in (None, row.method) and choice.setting in (None, row.setting)
    ]
    if not rows:
        raise UsageError(f"{choice.method} has no setting {choice.setting}.")
    if choice.smoke and choice.setting is None:
        rows = list({row.algorithm: row for row in reversed(rows)}.values())[::-1]
    return rows


def plan(row: Row, choice: Choice) -> list[dict[str, Any]]:
    """Learning rates and seeds with which a row is run, as options by their names."""
    rates, seeds = (row.learning_rate,), choice.seeds or row.seeds
    if choice.smoke or choice.tune:
        seeds = seeds[:1]
    if choice.tune and not choice.smoke:
        rates = row.tried or rates
    return [{"learning_rate": rate, "seed": seed} for rate in rates for seed in seeds]


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


def show(table: Table) -> None:
    """Lists the rows and their command lines, without time spent."""
    columns = ("method", "setting", "paper", "learning rate", "of", "seeds")
    rows = [
        (
            row.method,
            row.setting,
            row.expected,
            row.learning_rate,
            " ".join(f"{rate:g}" for rate in row.tried) or None,
            " ".join(map(str, row.seeds)),
        )
        for row in table.rows
    ]
    console = rich.console.Console(width=150, highlight=False)
    console.print(figures.table(table.title, columns, rows))
    for row in table.rows:
        line = command_line(row.config.replace(seed=row.seeds[0]))
        print(f"{row.method} {row.setting}: experiments.train {line}")


def results(table: Table, records: Sequence[dict[str, Any]]) -> rich.table.Table:
    """Scores beside those of the paper, seeds together."""
    rows = []
    for row in table.rows:
        own = [
            record
            for record in records
            if (record["method"], record["setting"]) == (row.method, row.setting)
        ]
        for rate in sorted({record["learning_rate"] for record in own}):
            found = [r["score"] for r in own if r["learning_rate"] == rate]
            scores = [score for score in found if score is not None]
            told = [f"{statistics.fmean(scores):.4g}"] if scores else []
            if len(scores) > 1:
                told[0] += f" ± {statistics.stdev(scores):.2g}"
            if len(scores) < len(found):
                told.append(f"{len(found) - len(scores)} diverged")
            rows.append((row.method, row.setting, rate, ", ".join(told), row.expected))
    columns = ("method", "setting", "learning rate", table.score, "paper")
    return figures.table(table.title, columns, rows)
