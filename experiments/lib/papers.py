"""Runs the tables of papers, whose rows are configurations of :mod:`experiments.train`.

A table is a value of :mod:`experiments.configs`. Its script lists the rows with the
paper's results, and runs the chosen ones: in simulation or, under mpirun or srun, with
one process for each worker.
"""

import pathlib
import shlex
import statistics
import sys
import tempfile
import types
from collections.abc import Callable, Sequence
from typing import Any

import jax
import rich.table
import tyro

from djax import communicators

from .. import train
from . import errors, figures, processes, trainer
from .config import Config, command_line
from .errors import UsageError
from .options import write_flags
from .tables import Choice, Row, Table, configure, score, select

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
    """Explains how the script of a table is started, here and on a cluster."""
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
    """Makes the command line of the `TABLE` in a module.

    The module's docstring is the help text.
    """
    name, table = described.__name__.replace(".configs", ""), described.TABLE

    def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
        processes.keep_compiled()
        with errors.heard_once():
            choice = tyro.cli(
                Choice,
                prog=f"python -m {name}",
                description=f"{described.__doc__}{describe(name, table)}",
                args=arguments,
            )
        return run(table, choice)

    return main


def run(table: Table, choice: Choice) -> list[dict[str, Any]]:
    """Runs the chosen rows of a table, or lists all rows if none is chosen."""
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
            config = train.parse(choice.more, config)
            if speaks:
                print(f"{row.method} {row.setting}: {command_line(config)}", flush=True)
            what = {"method": row.method, "setting": row.setting, **options}
            found = run_row(table, config, smoke=choice.smoke)
            records.append(what | {"score": found})
            if not choice.smoke:  # Programs of tiny runs are kept for the next ones.
                jax.clear_caches()
    if speaks:
        figures.print_tables([results(table, records)], choice.smoke)
    return records


def run_row(table: Table, config: Config, *, smoke: bool) -> float | None:
    """Trains, and returns the score; None if the training diverges.

    A divergence raises no error, so that a search among learning rates goes on.
    """
    start = try_out if smoke else train.run_once
    try:
        return score(table, start(config).history)
    except trainer.Diverged as error:
        if communicators.launcher_rank() == 0:
            print(error, file=sys.stderr, flush=True)
        return None


def try_out(config: Config) -> trainer.Job:
    """Trains for a smoke test, which does not time steps or draw pictures.

    Equal programs of several rows are compiled only once.
    """
    with tempfile.TemporaryDirectory() as folder, processes.compiled_once():
        with errors.one_line_errors(Exception):
            run = train.Run(config.replace(runs=pathlib.Path(folder)))
        return run.train()


def plan(row: Row, choice: Choice) -> list[dict[str, Any]]:
    """Lists the learning rates and seeds with which a row is run."""
    rates, seeds = (row.learning_rate,), choice.seeds or row.seeds
    if choice.smoke or choice.tune:
        seeds = seeds[:1]
    if choice.tune and not choice.smoke:
        rates = row.tried or rates
    return [{"learning_rate": rate, "seed": seed} for rate in rates for seed in seeds]


def show(table: Table) -> None:
    """Prints the rows with their command lines, without running any."""
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
    figures.print_tables([figures.table(table.title, columns, rows)], smoke=False)
    for row in table.rows:
        line = command_line(row.config.replace(seed=row.seeds[0]))
        print(f"{row.method} {row.setting}: experiments.train {line}")


def results(table: Table, records: Sequence[dict[str, Any]]) -> rich.table.Table:
    """Makes the table of mean scores over the seeds, beside the paper's."""
    rows = []
    for row in table.rows:
        own = figures.select(records, method=row.method, setting=row.setting)
        for rate in sorted({record["learning_rate"] for record in own}):
            found = figures.column(figures.select(own, learning_rate=rate), "score")
            scores = [score for score in found if score is not None]
            told = [f"{statistics.fmean(scores):.4g}"] if scores else []
            if len(scores) > 1:
                told[0] += f" ± {statistics.stdev(scores):.2g}"
            if len(scores) < len(found):
                told.append(f"{len(found) - len(scores)} diverged")
            rows.append((row.method, row.setting, rate, ", ".join(told), row.expected))
    columns = ("method", "setting", "learning rate", table.score, "paper")
    return figures.table(table.title, columns, rows)
