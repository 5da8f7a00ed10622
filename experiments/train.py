"""Decentralized training from the command line.

Under mpirun one process is one worker; without it all workers are simulated in this
process. Nothing else changes: the same seed gives the same numbers.

    python -m experiments.train                               # 4 workers, simulated
    mpirun -n 4 python -m experiments.train                   # 4 workers, over MPI
    python -m experiments.train --workers 32 --topology social_network
    python -m experiments.train --algorithm relay_sgd --topology chain --workers 8
    python -m experiments.train --topology base_graph --message-dtype bfloat16
    python -m experiments.train --task quadratics --split iid --optimizer adam
    python -m experiments.train --algorithm a2cid2 --speeds 1 1 1 0.25

With the defaults (D-PSGD on a ring, handwritten digits whose classes are split by a
Dirichlet distribution with alpha 0.1) every worker ends above 90 % test accuracy.
Each run writes runs/<time>-<name>/ with its configuration, metrics and pictures.
"""

import contextlib
import os
import sys
from collections.abc import Sequence
from typing import NoReturn

import tqdm
import tyro

from djax import communicators
from djax.training import CheckpointError
from djax.transport import GUARD

from .lib import errors, options, partition, report, signals, trainer
from .lib.config import Config
from .lib.run import Run

WRITING = 120.0
"""Seconds for which ranks wait at the end for rank 0's tables and pictures."""


def execute(run: Run) -> trainer.Outcome:
    """Trains, shows and writes.

    Raises:
      Diverged: if the training does, when its curves are drawn.
      Stopped: after SIGTERM or Ctrl-C, when all is saved.
    """
    config, folder, job = run.config, run.folder, run.job
    folder.write_config(config)
    if (counts := run.task.class_counts) is not None and folder.active:
        title = f"{config.split}, {run.communicator.size} workers"
        folder.save("split.png", partition.plot_classes(counts, title))
    try:
        with _Bar(run) as bar, contextlib.closing(run.records(bar.advance)) as records:
            for record in records:
                # Rank 0, which has made the folder, may be lost by now.
                folder.active = min(job.ranks) in run.communicator.local_ranks
                folder.append(record)
                bar.show(run.task.score, record)
    except (trainer.Diverged, trainer.Stopped, KeyboardInterrupt) as ending:
        _publish(run, ending)
        raise
    _publish(run)
    return job.outcome


class _Bar(tqdm.tqdm):
    """The bar that shows how far a run is, in epochs."""

    def __init__(self, run: Run):
        super().__init__(
            total=run.epochs,
            desc=run.title,
            unit="epoch",
            disable=not run.folder.active,
            bar_format="{l_bar}{bar}| {n:.4g}/{total} [{elapsed}<{remaining}{postfix}]",
        )

    def advance(self, epochs: float) -> None:
        """Moves the bar, but not beyond its end by errors of rounding."""
        self.update(min(epochs, self.total - self.n))

    def show(self, score: str, record: trainer.Record) -> None:
        """Shows loss and score of a record."""
        value = record.get("mean", record["averaged"])
        loss = record.get("loss", record["averaged_loss"])
        self.set_postfix_str(f"loss {loss:.4g}, {score} {value:.4g}")


def _publish(run: Run, ending: BaseException | None = None) -> None:
    """Shows and writes what a run has measured, in whatever way it has ended.

    The first rank that exits with a code other than 0 ends all others, unless they are
    guarded: so all of them wait until rank 0 has written its files.

    Args:
      run: what was trained.
      ending: what has ended it early.
    """
    folder, job, history = run.folder, run.job, run.job.outcome.history
    diverged = isinstance(ending, trainer.Diverged)
    cut_off = ending is not None and not diverged
    if cut_off and not history:
        return
    title = f"{run.title}, seed {run.config.seed}" + ", cut off" * cut_off
    rows = report.summarize(run.task.score, history[-1]) if history else []
    sent = {}
    if cut_off:
        rows.insert(0, ("epochs", f"{history[-1]['epoch']:.4g} of {run.epochs}"))
    elif history:
        job.save(folder, title)
        sent = job.traffic()
    if ending is None:
        if history[-1].get("collapsed"):
            rows.append(("given up, collapsed, in epoch", f"{history[-1]['epoch']}"))
        rows += job.describe()
    if folder.active:
        if not diverged:
            report.show_table(title, rows)
        if history and "mean" in history[-1]:  # It is not where workers are lost.
            curves = report.plot_history(history, run.task.score, title)
            folder.save("curves.png", curves)
        folder.write_summary(title, rows, sent, str(ending) if diverged else None)
        print(f"written to {folder.path}", flush=True)
    alone = isinstance(ending, KeyboardInterrupt)  # Other ranks may not have heard it.
    all_here = history and not alone and len(job.ranks) == run.communicator.size
    if all_here and GUARD not in os.environ:
        errors.all_come(WRITING)


def parse(
    arguments: Sequence[str] | None = None, default: Config | None = None
) -> Config:
    """Reads the command line.

    Args:
      arguments: by default those of the process.
      default: has the options that are not given.
    """
    with errors.heard_once():
        return tyro.cli(
            tyro.conf.OmitArgPrefixes[Config],
            prog="python -m experiments.train",
            args=arguments,
            description=__doc__,
            default=default or Config(),
        )


def main(arguments: Sequence[str] | None = None) -> trainer.Outcome:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    with errors.one_line_errors(trainer.Diverged):
        return run_once(parse(arguments))


def run_once(config: Config) -> trainer.Outcome:
    """Trains, shows and writes; ends the process where a run ends early.

    Args:
      config: of the run.

    Raises:
      Diverged: on every process alike, if the training does; what was measured until
        then has been written.
    """
    run: Run | None = None
    try:
        with errors.one_line_errors(Exception), options.said_as_options():
            run = Run(config)
        with errors.one_line_errors(CheckpointError, OSError):
            outcome = execute(run)
    except trainer.Stopped as stop:
        end(stop.code, str(stop))
    except KeyboardInterrupt:
        end(
            signals.INTERRUPTED,
            "stopped by Ctrl-C; no checkpoint was saved by this, so start it anew, "
            "or with --resume where there are --checkpoints",
        )
    finally:
        if run is not None:
            run.folder.close()
    if outcome.unsaved:
        end(
            1,
            f"trained to the end, but {len(outcome.unsaved)} checkpoints could not be "
            f"saved, the first: {outcome.unsaved[0]}",
        )
    return outcome


def end(code: int, message: str) -> NoReturn:
    """Ends this process with a line on stderr, said by rank 0.

    Args:
      code: exit code.
      message: the line.
    """
    if communicators.launcher_rank() == 0:
        print(message, file=sys.stderr, flush=True)
    sys.exit(code)


if __name__ == "__main__":
    main()
