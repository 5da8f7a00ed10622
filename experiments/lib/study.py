"""Tunes and runs tables of papers that are scaled down to one machine.

A study is a value of :mod:`experiments.configs` with small rows. Every run is added to
`results/<script>.jsonl` as soon as it is over. Therefore a study can be stopped at any
time, for example by Ctrl-C, and then continues where it was stopped.
"""

import concurrent.futures
import dataclasses
import itertools
import json
import math
import os
import pathlib
import sys
import tempfile
import types
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

import jax
import numpy as np
import rich.table
import tqdm

from .. import train
from . import errors, figures, processes, report, trainer
from .errors import UsageError
from .signals import INTERRUPTED
from .tables import Row, Study, Table, configure, one_of_each_algorithm, score

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config(figures.Config):
    """How a study is made."""

    jobs: int = os.cpu_count() or 1
    """Number of runs at the same time. Each is a process with one thread; a single one
    uses all threads."""
    draw: bool = False
    """Only draw and show the runs that are in the file."""


class Ledger:
    """A file with a line for each run of a study.

    The first line says which versions and which machine computed the runs. The file of
    tiny runs is always begun again.
    """

    def __init__(self, path: pathlib.Path, smoke: bool):
        """Reads the file if there is one, and else begins it."""
        self.path = path
        if smoke or not path.exists():
            head = {"smoke": smoke, **report.provenance()}
            path.write_text(json.dumps(head) + "\n")
        head, *self.records = map(json.loads, path.read_text().splitlines())
        self.smoke = bool(head.get("smoke"))

    def find(self, **values: Any) -> dict[str, Any] | None:
        """Returns the record that has these values, or None."""
        return next(iter(figures.select(self.records, **values)), None)

    def add(self, record: dict[str, Any]) -> None:
        """Adds a record to the file."""
        self.records.append(record)
        with self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")


def script(
    file: str,
    described: types.ModuleType,
    draw: Callable[[Study, Sequence[dict[str, Any]]], "Figure"],
) -> Callable[..., list[dict[str, Any]]]:
    """Makes the command line of the `STUDY` in a module.

    The module's docstring is the help text.
    """

    def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
        config = figures.configure(file, described.__doc__, arguments, Config)
        study = _small(described.STUDY) if config.smoke else described.STUDY
        path = config.path(file)
        lines = path.with_suffix(".jsonl")
        if config.draw:
            with errors.one_line_errors(UsageError):
                _check_drawable(lines, config)
        ledger = Ledger(lines, config.smoke and not config.draw)
        try:
            records = ledger.records if config.draw else run(study, config, ledger)
        except KeyboardInterrupt:
            _stop(ledger)
        figure = draw(described.STUDY, records)
        smoke = config.smoke or ledger.smoke
        figures.show(path, [results(study, records)], figure, smoke)
        return records

    return main


def _small(study: Study) -> Study:
    """Reduces a study to one row of each algorithm, one rate, seed and variant."""
    rows = tuple(one_of_each_algorithm(study.table.rows))
    return dataclasses.replace(
        study,
        table=dataclasses.replace(study.table, rows=rows),
        rates=study.rates[:1],
        seeds=study.seeds[:1],
        variants={method: tried[:1] for method, tried in study.variants.items()},
    )


def _check_drawable(path: pathlib.Path, config: Config) -> None:
    """Raises UsageError if the file has no run to draw."""
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) < 2:  # The first line is not a run: it says what made the runs.
        raise UsageError(
            f"--draw: there are no runs in {path}; run it without --draw first, or "
            f"choose another --output than {config.output}."
        )


def _stop(ledger: Ledger) -> NoReturn:
    """Ends the process after Ctrl-C, and says how to go on."""
    rest = "to go on, start the same again"
    if ledger.smoke:
        rest = "they are of --smoke, which starts anew each time"
    print(
        f"stopped by Ctrl-C; {len(ledger.records)} runs are kept in {ledger.path}: "
        f"{rest}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    processes.compiled_folder().cleanup()
    os._exit(INTERRUPTED)  # A run in a thread of this process would not end before.


def run(study: Study, config: Config, ledger: Ledger) -> list[dict[str, Any]]:
    """Makes the runs that the ledger lacks, and returns all records."""
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with scratch as folder, processes.pool(config.jobs) as pool:
        for stage in (_tuning, _borrowing, _repeating):
            todo = [job for job in stage(study, ledger) if not ledger.find(**job.key)]
            with processes.interrupts_withheld():
                started = {
                    pool.submit(
                        _execute, job.configure(study, config.smoke), folder
                    ): job
                    for job in todo
                }
            title = f"{ledger.path.stem}: {stage.__name__.removeprefix('_')}"
            done = concurrent.futures.as_completed(started)
            for future in tqdm.tqdm(done, title, len(todo), unit="run"):
                record = digest(study.table, future.result())
                ledger.add(started[future].key | record)
    return ledger.records


class _Job(NamedTuple):
    """One run."""

    row: Row
    learning_rate: float
    variant: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """Returns the values by which the record of the run is found."""
        what = {"method": self.row.method, "setting": self.row.setting}
        return what | {key: getattr(self, key) for key in self._fields[1:]}

    def configure(self, study: Study, smoke: bool) -> train.Config:
        """Makes the configuration of the run."""
        return configure(
            study.table,
            self.row,
            smoke=smoke,
            learning_rate=self.learning_rate,
            seed=self.seed,
            **study.variants_of(self.row)[self.variant],
        )


def _tuning(study: Study, ledger: Ledger) -> Iterator[_Job]:
    """Lists the runs that tune: all rates and variants, with the first seed."""
    for row in study.table.rows:
        rates = () if row.method in study.borrowed else study.rates
        for rate, variant in itertools.product(rates, study.variants_of(row)):
            yield _Job(row, rate, variant, study.seeds[0])


def _borrowing(study: Study, ledger: Ledger) -> Iterator[_Job]:
    """Lists the runs that use another method's learning rate, with the first seed."""
    for row in study.table.rows:
        if row.method in study.borrowed:
            owner = dataclasses.replace(row, method=study.borrowed[row.method])
            rate = chosen(study, ledger.records, owner)[0]["learning_rate"]
            for variant in study.variants_of(row):
                yield _Job(row, rate, variant, study.seeds[0])


def _repeating(study: Study, ledger: Ledger) -> Iterator[_Job]:
    """Lists the runs with each row's best rate and variant, and the other seeds."""
    for row in study.table.rows:
        best = chosen(study, ledger.records, row)[0]
        for seed in study.seeds[1:]:
            yield _Job(row, best["learning_rate"], best["variant"], seed)


def _execute(config: train.Config, folder: str | None = None) -> dict[str, Any]:
    """Trains without output.

    The result has the `history`; the `megabytes` that each worker sent, None if the
    training diverged; and the `error` of a training that diverged, else None.
    """
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        run = train.Run(config.replace(runs=pathlib.Path(runs)))
        megabytes, failure = None, None
        try:
            run.train()
            megabytes = run.job.traffic()["megabytes_mean"]
        except trainer.Diverged as error:
            failure = str(error)
    jax.clear_caches()
    return {"history": run.job.history, "megabytes": megabytes, "error": failure}


def digest(table: Table, result: Mapping[str, Any]) -> dict[str, Any]:
    """Makes the record of a run from the result of `_execute`: its score and curves."""
    history, error = result["history"], result["error"]
    curves = ("epoch", "time", "loss", "worst", "mean", "averaged")
    return {
        "score": None if error is not None else score(table, history),
        "megabytes": result["megabytes"],
        "error": error,
        "scores": history[-1]["scores"] if history else [],
        **{
            key: [float(f"{record[key]:.5g}") for record in history]
            for key in (*curves, "consensus_distance")
            if history and key in history[-1]
        },
    }


def chosen(study: Study, records: Sequence[dict], row: Row) -> list[dict[str, Any]]:
    """Returns a row's runs with its best learning rate and variant, for all seeds."""

    def merit(record):
        if record["score"] is None:  # The run diverged.
            return -math.inf
        return record["score"] if study.table.accuracy else -record["score"]

    own = figures.select(records, method=row.method, setting=row.setting)
    first = figures.select(own, seed=study.seeds[0])
    if not first:
        return []
    best = max(first, key=merit)
    same = {key: best[key] for key in ("learning_rate", "variant")}
    return sorted(figures.select(own, **same), key=lambda record: record["seed"])


def results(study: Study, records: Sequence[dict]) -> rich.table.Table:
    """Makes the table of each row's best score over the seeds, beside the paper's."""
    rows = []
    for row in study.table.rows:
        if not (runs := chosen(study, records, row)):
            continue
        scores = [run["score"] for run in runs if run["score"] is not None]
        found = f"{np.mean(scores):.4g} ± {np.std(scores):.2g}" if scores else ""
        if len(scores) < len(runs):
            found += f", {len(runs) - len(scores)} diverged"
        best = runs[0]
        rate, variant, sent = best["learning_rate"], best["variant"], best["megabytes"]
        made = (row.method, row.setting, rate, variant, found, sent, row.expected)
        rows.append(made)
    columns = ("method", "setting", "learning rate", "", "found", "MB sent", "paper")
    return figures.table(study.table.title, columns, rows)
