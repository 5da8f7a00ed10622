"""Tables of papers at the size of one machine: tuned, really run, and kept.

A study is a value of :mod:`experiments.configs` whose rows are small enough. Every run
is added to `results/<script>.jsonl` as soon as it is over, so that a study can be
stopped at any time, as by Ctrl-C, and goes on where it was.
"""

import concurrent.futures
import dataclasses
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
import rich.console
import rich.table
import tqdm

from .. import train
from . import errors, figures, processes, trainer
from .errors import UsageError
from .ledger import Ledger, digest, select
from .signals import INTERRUPTED
from .tables import Row, Study, Table, configure, one_of_each_algorithm

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclasses.dataclass(frozen=True)
class Config(figures.Config):
    """How a study is made."""

    jobs: int = os.cpu_count() or 1
    """Runs at the same time, each a process of one thread; a single one has all."""
    draw: bool = False
    """Only draw and show what has been run."""


_CHOICES = ("learning_rate", "variant")


def _merit(table: Table, record: Mapping[str, Any]) -> float:
    """The more the better; nothing is worse than to diverge."""
    if record["score"] is None:
        return -math.inf
    return record["score"] if table.accuracy else -record["score"]


def chosen(study: Study, records: Sequence[dict], row: Row) -> list[dict[str, Any]]:
    """The runs of a row with its best learning rate and variant, one for each seed.

    Args:
      study: what was run.
      records: of it.
      row: of its table.
    """
    own = select(records, method=row.method, setting=row.setting)
    first = select(own, seed=study.seeds[0])
    if not first:
        return []
    best = max(first, key=lambda record: _merit(study.table, record))
    same = {key: best[key] for key in _CHOICES}
    return sorted(select(own, **same), key=lambda r: r["seed"])


def run(study: Study, config: Config, ledger: Ledger) -> list[dict[str, Any]]:
    """Runs what is not in the ledger yet: first all learning rates, then all seeds.

    Args:
      study: what is run.
      config: from the command line.
      ledger: where the records are.

    Returns:
      All records.
    """
    scratch = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
    with scratch as folder, processes.pool(config.jobs) as pool:
        for stage in (_tuning, _borrowing, _repeating):
            todo = [job for job in stage(study, ledger) if not ledger.find(**job.key)]
            with processes.interrupts_withheld():
                lines = {
                    pool.submit(
                        _execute, job.configure(study, config.smoke), folder
                    ): job
                    for job in todo
                }
            title = f"{ledger.name}: {stage.__name__.removeprefix('_')}"
            done = concurrent.futures.as_completed(lines)
            for future in tqdm.tqdm(done, title, len(todo), unit="run"):
                ledger.add(
                    {**lines[future].key, **digest(study.table, future.result())}
                )
    return ledger.records


def script(
    file: str,
    described: types.ModuleType,
    draw: Callable[[Study, Sequence[dict[str, Any]]], "Figure"],
) -> Callable[..., list[dict[str, Any]]]:
    """Makes the command line of a study.

    Args:
      file: the script's `__file__`.
      described: has the `STUDY`, and a docstring that is the help text.
      draw: makes the figure of all records.

    Returns:
      A function that reads its arguments or, by default, those of the process, and
      returns the records: what was run, the score, and how it came about.
    """

    def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
        study = described.STUDY
        config = figures.configure(file, described.__doc__, arguments, Config)
        assert config.output is not None
        path = config.output / pathlib.Path(file).stem
        if config.smoke:
            study = _small(study)
        with errors.one_line_errors(UsageError):
            if config.draw:
                _check_drawable(path.with_suffix(".jsonl"), config)
        ledger = Ledger(path.with_suffix(".jsonl"), config.smoke and not config.draw)
        try:
            records = ledger.records if config.draw else run(study, config, ledger)
        except KeyboardInterrupt:
            _stop(ledger)
        smoke = config.smoke or ledger.smoke
        figure = draw(described.STUDY, records)
        figures.mark_figure(figure, smoke)
        figure.savefig(path.with_suffix(".png"), dpi=200)
        console = rich.console.Console(width=150, highlight=False)
        console.print(figures.mark_table(results(study, records), smoke))
        console.print(f"written: {path}.jsonl and .png")
        return records

    return main


def _stop(ledger: Ledger) -> NoReturn:
    """Ends the process after Ctrl-C, and says how to go on."""
    rest = (
        "they are of --smoke, which starts anew each time"
        if ledger.smoke
        else "to go on, start the same again"
    )
    print(
        f"stopped by Ctrl-C; {len(ledger.records)} runs are kept in {ledger.path}: "
        f"{rest}",
        file=sys.stderr,
        flush=True,
    )
    sys.stdout.flush()
    processes.discard_compiled()
    os._exit(INTERRUPTED)  # A run in a thread of this process would not end before.


def _check_drawable(path: pathlib.Path, config: Config) -> None:
    """Raises UsageError where there is nothing to draw."""
    lines = path.read_text().splitlines() if path.exists() else []
    if len(lines) < 2:  # The first says by what the others were made.
        raise UsageError(
            f"--draw: there are no runs in {path}; run it without --draw first, or "
            f"choose another --output than {config.output}."
        )


def _small(study: Study) -> Study:
    """A row of each algorithm, one learning rate, one seed and one variant."""
    rows = tuple(one_of_each_algorithm(study.table.rows))
    return dataclasses.replace(
        study,
        table=dataclasses.replace(study.table, rows=rows),
        rates=study.rates[:1],
        seeds=study.seeds[:1],
        variants={method: tried[:1] for method, tried in study.variants.items()},
    )


def results(study: Study, records: Sequence[dict]) -> rich.table.Table:
    """The best of each row, mean and deviation of the seeds, beside the paper's."""
    rows = []
    for row in study.table.rows:
        runs = chosen(study, records, row)
        scores = [r["score"] for r in runs if r["score"] is not None]
        if not runs:
            continue
        failed = (
            f", {len(runs) - len(scores)} diverged" if len(scores) < len(runs) else ""
        )
        found = f"{np.mean(scores):.4g} ± {np.std(scores):.2g}" if scores else ""
        rows.append(
            (
                row.method,
                row.setting,
                runs[0]["learning_rate"],
                runs[0]["variant"],
                f"{found}{failed}",
                runs[0]["megabytes"],
                row.expected,
            )
        )
    columns = ("method", "setting", "learning rate", "", "found", "MB sent", "paper")
    return figures.table(study.table.title, columns, rows)


class _Job(NamedTuple):
    """One run."""

    row: Row
    learning_rate: float
    variant: str
    seed: int

    @property
    def key(self) -> dict[str, Any]:
        """What a record is found by."""
        return {
            "method": self.row.method,
            "setting": self.row.setting,
            "learning_rate": self.learning_rate,
            "variant": self.variant,
            "seed": self.seed,
        }

    def configure(self, study: Study, smoke: bool) -> train.Config:
        """What is trained."""
        return configure(
            study.table,
            self.row,
            smoke=smoke,
            learning_rate=self.learning_rate,
            seed=self.seed,
            **study.variants_of(self.row)[self.variant],
        )


def _tuning(study: Study, ledger: Ledger) -> Iterator[_Job]:
    """All learning rates and variants of those that are tuned, with the first seed."""
    for row in study.table.rows:
        rates = () if row.method in study.borrowed else study.rates
        for rate in rates:
            for variant in study.variants_of(row):
                yield _Job(row, rate, variant, study.seeds[0])


def _borrowing(study: Study, ledger: Ledger) -> Iterator[_Job]:
    """Those that take over a learning rate, with the first seed."""
    for row in study.table.rows:
        if row.method in study.borrowed:
            owner = dataclasses.replace(row, method=study.borrowed[row.method])
            rate = chosen(study, ledger.records, owner)[0]["learning_rate"]
            for variant in study.variants_of(row):
                yield _Job(row, rate, variant, study.seeds[0])


def _repeating(study: Study, ledger: Ledger) -> Iterator[_Job]:
    """The best of all, with the other seeds."""
    for row in study.table.rows:
        best = chosen(study, ledger.records, row)[0]
        for seed in study.seeds[1:]:
            yield _Job(row, best["learning_rate"], best["variant"], seed)


def _execute(config: train.Config, folder: str | None = None) -> dict[str, Any]:
    """Trains in silence.

    Args:
      config: of the training.
      folder: for files that are of no use afterwards; by default the system's.

    Returns:
      The history; what each worker sent, in MB, unless it diverged; and how it
      diverged, if it did.
    """
    with tempfile.TemporaryDirectory(dir=folder) as runs:
        run = train.Run(config.replace(runs=pathlib.Path(runs)))
        outcome, megabytes, failure = run.job.outcome, None, None
        try:
            run.train()
            megabytes = run.job.traffic()["megabytes_mean"]
        except trainer.Diverged as error:
            failure = str(error)
    jax.clear_caches()
    return {"history": outcome.history, "megabytes": megabytes, "error": failure}
