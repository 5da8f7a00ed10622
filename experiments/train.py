"""Trains decentralized workers from the command line.

Under mpirun each process is one worker; without mpirun all workers are simulated in
this process. Both give the same numbers for the same seed.

    python -m experiments.train                               # 4 workers, simulated
    mpirun -n 4 python -m experiments.train                   # 4 workers, over MPI
    srun -n 4 python -m experiments.train --communicator mesh # 4 workers, without MPI
    python -m experiments.train --workers 32 --topology social_network
    python -m experiments.train --algorithm relay_sgd --topology chain --workers 8
    python -m experiments.train --topology base_graph --message-dtype bfloat16
    python -m experiments.train --task quadratics --split iid --optimizer adam
    python -m experiments.train --workers 8 --group-size 4 --local all_reduce
    python -m experiments.train --algorithm a2cid2 --speeds 1 1 1 0.25

The defaults are D-PSGD on a ring, and handwritten digits whose classes are split by a
Dirichlet distribution with alpha 0.1; every worker ends above 90 % test accuracy. Each
run writes runs/<time>-<name>/ with its configuration, metrics and pictures.
"""

import contextlib
import dataclasses
import os
import pathlib
import signal
import sys
from collections.abc import Sequence
from typing import NoReturn

import tqdm
import tyro

from djax import data
from djax.training import CheckpointError
from djax.transport import GUARD, launch_command, process_number

from .lib import errors, options, processes, report, signals, trainer
from .lib.config import Config, command_line
from .lib.run import Run

WRITING = 120.0
"""Seconds for which ranks wait at the end until rank 0 has written its files."""


def execute(run: Run) -> trainer.Job:
    """Trains, shows the results, and writes them, also if the run ends early."""
    folder, job = run.folder, run.job
    try:
        _begin_folder(run)
        with _Bar(run) as bar, contextlib.closing(run.records(bar.advance)) as records:
            for record in records:
                # Rank 0 made the folder; if it is lost, the first other rank writes.
                folder.active = min(job.ranks) in run.communicator.local_ranks
                folder.append(record)
                bar.show(run.task.score, record)
        _publish(run)
    except (trainer.Diverged, trainer.Stopped, KeyboardInterrupt) as ending:
        _publish(run, ending)
        raise
    return job


def _begin_folder(run: Run) -> None:
    """Writes the files of a run that are known before it begins."""
    config, folder = run.config, run.folder
    if not folder.active:
        return
    made_by = {"config": dataclasses.asdict(config), **report.provenance()}
    folder.write("config.json", made_by)
    if run.task.split is not None:
        size = run.communicator.size
        figure, ((axes,),) = report.panels((7, 2 + min(0.3 * size, 12)))
        data.plot_classes(*run.task.split, axes)
        axes.set(title=f"{config.split}, {size} workers")
        axes.grid(False)
        folder.save("split.png", figure)


class _Bar(tqdm.tqdm):
    """A progress bar that counts epochs."""

    def __init__(self, run: Run):
        super().__init__(
            total=run.epochs,
            desc=run.title,
            unit="epoch",
            disable=not run.folder.active,
            bar_format="{l_bar}{bar}| {n:.4g}/{total} [{elapsed}<{remaining}{postfix}]",
        )

    def advance(self, epochs: float) -> None:
        """Moves the bar; rounding errors do not move it beyond its end."""
        self.update(min(epochs, self.total - self.n))

    def show(self, score: str, record: trainer.Record) -> None:
        """Shows loss and score of a record beside the bar."""
        value = record.get("mean", record["averaged"])
        loss = record.get("loss", record["averaged_loss"])
        self.set_postfix_str(f"loss {loss:.4g}, {score} {value:.4g}")


def _publish(run: Run, ending: BaseException | None = None) -> None:
    """Shows and writes what a run has measured, also if an exception has ended it.

    All ranks wait until rank 0 has written its files, because the first rank that exits
    with a code other than 0 ends all others, unless they are guarded.
    """
    folder, job, history = run.folder, run.job, run.job.history
    diverged = isinstance(ending, trainer.Diverged)
    cut_off = ending is not None and not diverged
    title = f"{run.title}, seed {run.config.seed}" + ", cut off" * cut_off
    rows = report.summarize(run.task.score, history[-1]) if history else []
    sent = {}
    if cut_off:
        until = f"{history[-1]['epoch']:.4g}" if history else "none evaluated"
        rows.insert(0, ("epochs", f"{until} of {run.epochs}"))
    known = job.reported if cut_off else bool(history)  # What the workers did.
    if known:
        job.save(folder, title)
        sent = job.traffic()
    if ending is None and history[-1].get("collapsed"):
        rows.append(("given up, collapsed, in epoch", f"{history[-1]['epoch']}"))
    if known and not diverged:
        rows += job.describe()
    if folder.active:
        if not diverged:
            report.show_table(title, rows)
        if history and "mean" in history[-1]:  # Missing if workers are lost.
            curves = report.plot_history(history, run.task.score, title)
            folder.save("curves.png", curves)
        summary = {
            "title": title,
            "rows": {name.strip(): value for name, value in rows},
            "sent_per_worker": sent,
            "diverged": str(ending) if diverged else None,
            "columns": report.explain_columns(run.task.score, history),
        }
        folder.write("summary.json", summary)
        print(f"written to {folder.path}", flush=True)
    stopped = isinstance(ending, trainer.Stopped)  # All ranks know; Ctrl-C one alone.
    together = stopped or (history and not isinstance(ending, KeyboardInterrupt))
    all_here = together and len(job.ranks) == run.communicator.size
    if all_here and GUARD not in os.environ:
        errors.all_come(WRITING)


def parse(
    arguments: Sequence[str] | None = None, default: Config | None = None
) -> Config:
    """Reads the command line."""
    with errors.heard_once():
        return tyro.cli(
            tyro.conf.OmitArgPrefixes[Config],
            prog="python -m experiments.train",
            args=arguments,
            description=__doc__,
            default=default or Config(),
        )


def main(arguments: Sequence[str] | None = None) -> trainer.Job:
    """Runs the command line."""
    processes.keep_compiled()
    try:
        config = parse(arguments)
    except KeyboardInterrupt:
        end(signals.INTERRUPTED, "stopped by Ctrl-C before the training began")
    with errors.one_line_errors(trainer.Diverged):
        return run_once(config)


def run_once(config: Config) -> trainer.Job:
    """Trains, shows the results, and writes them.

    The process ends if a signal stops the run, or if a checkpoint was not saved. A
    divergence is raised on every process alike.
    """
    run: Run | None = None
    try:
        with signals.Termination(raises=signals.interrupt):
            with errors.one_line_errors(Exception), options.said_as_options():
                run = Run(config)
            with errors.one_line_errors(CheckpointError, OSError):
                job = execute(run)
    except trainer.Stopped as stop:
        code = stop.code or config.saving.stopped_code
        end(code, f"{stop}; {_how_to_go_on(config, stop.directory)}")
    except KeyboardInterrupt as stop:
        number = (*stop.args, signal.SIGINT)[0]
        # The first rank that exits ends the others; rank 0 may still write its files.
        patience = 0.0 if run is None else errors.PATIENCE
        end(128 + number, _explain_interrupt(config, run, number), patience)
    finally:
        if run is not None:
            run.folder.close()
    if job.unsaved:
        end(
            1,
            f"trained to the end, but {len(job.unsaved)} checkpoints could not be "
            f"saved, the first: {job.unsaved[0]}",
        )
    return job


def _explain_interrupt(config: Config, run: Run | None, number: int) -> str:
    """Says what a signal has ended that came outside of the loop over the steps."""
    said = f"stopped by {signals.name_of(number)}"
    if run is not None and run.job.workers is not None:
        return f"{said} after the training; its metrics are in {run.folder.path}"
    if run is None:
        said += " before the training began"
    else:
        said += "; nothing was saved by this"
    return f"{said}; {_how_to_go_on(config, config.saving.checkpoints)}"


def _how_to_go_on(config: Config, directory: pathlib.Path | str | None) -> str:
    """Says which command continues a run from its checkpoints, or starts it anew.

    Args:
      config: the run as it was started.
      directory: the folder of the checkpoints; None if there are none.
    """
    said = "to start anew"
    if directory is not None:
        saved = pathlib.Path(directory).absolute()
        said, config = "to go on", config.replace(checkpoints=saved, resume=True)
    start = "python -m experiments.train"
    if (launch := launch_command()) is not None:
        if GUARD in os.environ:
            launch = launch.replace("mpirun", "mpirun -disable-auto-cleanup")
            start = "python -m djax.guard -m experiments.train"
        start = f"{launch} {start}"
    return f"{said}: {start} {command_line(config)}".rstrip()


def end(code: int, message: str, patience: float = 0.0) -> NoReturn:
    """Ends this process; rank 0 prints a line on stderr.

    The process waits for `patience` seconds until all ranks call this function.
    """
    if process_number() == 0:
        print(message, file=sys.stderr, flush=True)
    if patience:
        errors.all_come(patience)
    sys.exit(code)


if __name__ == "__main__":
    main()
