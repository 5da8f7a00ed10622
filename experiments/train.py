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

import dataclasses
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import jax
import tqdm
import tyro

import djax
from djax import communicators
from djax.training._checkpoints import CheckpointError
from djax.transport._end import GUARD

from .lib import (
    algorithms,
    asynchronous,
    checkpoints,
    errors,
    graphs,
    optimizers,
    options,
    partition,
    report,
    runtime,
    synchronous,
    tasks,
    trainer,
)
from .lib.config import (
    BUDGET,
    Config,
    check,
    identify,
    make_communicator,
)
from .lib.errors import UsageError

WRITING = 120.0
"""Seconds for which ranks wait at the end for rank 0's tables and pictures."""


class Run:
    """Everything that a configuration determines, checked before any time is spent."""

    def __init__(self, config: Config):
        """Raises for what the user can mend, on all ranks alike."""
        check(config)
        self.communicator = make_communicator(config)
        local = self.communicator.local_ranks
        agreed = dataclasses.asdict(config) | {"jax": jax.__version__}
        del agreed["runs"]  # Rank 0's is where the folder is made.
        communicators.check_agreement(
            self.communicator, "the configurations", [agreed] * len(local)
        )
        size = self.communicator.size
        self.graphs = graphs.make_graphs(
            config.topology, size, config.topology_options, config.weights
        )
        setting = tasks.Setting(
            size,
            local,
            config.split,
            config.batch_size,
            config.seed,
            config.data,
            config.model,
            config.model_options,
            config.precision,
            config.accumulation,
        )
        self.task = tasks.make_task(config.task, setting, config.task_options)
        if config.steps_per_epoch is not None:
            self.task = self.task._replace(steps_per_epoch=config.steps_per_epoch)
        if config.pooled_statistics:
            if self.task.statistics is None:
                raise UsageError(
                    "--pooled-statistics is for models with batch normalization, which "
                    f"that of --task {config.task} has not: choose another --model."
                )
            self.task = self.task._replace(pooled_statistics=True)
        base = optimizers.scale_linearly(config.base, size * config.batch_size)
        self.config = config = dataclasses.replace(config, base=base)
        self.epochs = self.task.epochs if config.epochs is None else config.epochs
        self.steps = self._count_steps(size)
        algorithm = config.averaging.algorithm
        errors.lookup(
            "--algorithm", algorithm, [*algorithms.ALGORITHMS, *asynchronous.ALGORITHMS]
        )
        waitless = algorithm in asynchronous.ALGORITHMS
        live = waitless and communicators.launcher_size() is not None
        asynchronous.check_clocks(config.clocks, algorithm, live)
        runtime.check_runtime(config.runtime, algorithm, live)
        model = self.task.init(jax.random.key(config.seed))
        if waitless:
            self.job = self._make_asynchronous(live)
        else:
            self.job = self._make_synchronous(model)
        self.params = communicators.replicate(self.communicator, model)
        communicators.check_agreement(
            self.communicator, "the initial parameters", [model] * len(local)
        )
        self.title = f"{config.task}-{algorithm}-{config.topology}{size}"
        self.folder = report.RunFolder(
            config.runs,
            config.name or self.title,
            self.communicator,
            tensorboard=config.tensorboard,
        )
        if isinstance(self.job, synchronous.Synchronous) and self.job.saver is not None:
            self.job.saver.fall_back(self.folder.path / "checkpoints")

    def train(
        self,
        report: Callable[[dict[str, Any]], None],
        advance: Callable[[float], object],
    ) -> trainer.Outcome:
        """Trains all local workers.

        Args:
          report: called with each record of the history.
          advance: called with the epochs since the last call.

        Raises:
          Diverged: if a loss is not finite, or has grown and not come back.
          Stopped: after SIGTERM or Ctrl-C, when all is saved.
          CheckpointError: if checkpoints cannot be used.
        """
        evaluations = min(self.config.evaluations, self.epochs)
        try:
            return self.job.train(self.params, evaluations, report, advance)
        except trainer.Diverged as error:
            raise trainer.Diverged(f"{error} {self._remedy()}") from error

    def _count_steps(self, size: int) -> int:
        """Of a worker; raises UsageError if integers of 32 bits do not hold all's."""
        steps = self.epochs * self.task.steps_per_epoch
        if size * steps >= 2**31:
            raise UsageError(
                f"--epochs {self.epochs} of {self.task.steps_per_epoch} steps each are "
                f"too many for {size} workers, who can count up to {2**31 - 1} steps "
                "together: lower --epochs or --steps-per-epoch."
            )
        return steps

    def _remedy(self) -> str:
        """What to try after a divergence, of the options that the algorithm has."""
        averaging, base = self.config.averaging, self.config.base
        steps = ["lower --learning-rate"]
        if base.warmup < 1:
            steps.append("lengthen --warmup")
        if algorithms.may_be_too_fast(averaging):
            steps.append("lower --consensus-rate")
        return f"{', or '.join(steps)}.".capitalize()

    def _make_synchronous(self, model) -> synchronous.Synchronous:
        config = self.config
        optimizer = algorithms.make_optimizer(
            config.averaging,
            config.base,
            self.steps,
            self.graphs,
            self.communicator,
        )
        return synchronous.Synchronous(
            self.task,
            optimizer,
            optimizers.make_base(config.base, self.steps),
            self.communicator,
            self.epochs,
            djax.communication_cost(optimizer, model, self.communicator),
            asynchronous.make_rounds(
                config.clocks, self.communicator.size, self.steps, config.seed
            ),
            checkpoints.Saver(
                config.saving, self.communicator, identify(config, self.graphs)
            ),
            config.collapse,
        )

    def _make_asynchronous(self, live: bool) -> asynchronous.Virtual | runtime.Live:
        config, name = self.config, self.config.averaging.algorithm
        algorithms.check_options(config.averaging, set())
        if config.communicator == "mesh":
            raise UsageError(
                f"--algorithm {name} is not for --communicator mesh: start it under "
                "mpirun, or leave the option away to simulate it."
            )
        topologies = graphs.check_fixed(name, self.graphs)
        if len(topologies) > 1:
            raise UsageError(
                f"--algorithm {name} needs one graph: choose a --topology."
            )
        (topology,) = topologies
        if name == "a2cid2" and config.clocks.rate == 0 and topology.size > 1:
            raise UsageError(
                "--rate 0.0: no averagings connect worker 1 with the others; "
                "--algorithm a2cid2 needs a positive --rate."
            )
        if config.collapse is not None:
            raise UsageError(f"--algorithm {name} has no option --collapse.")
        if not live and config.saving != checkpoints.Saving():
            raise UsageError(
                f"--algorithm {name} saves no checkpoints on virtual clocks, where "
                "the same seed repeats a run: leave --checkpoints and its options away."
            )
        algorithm = asynchronous.make_algorithm(
            name, config.clocks, config.base, self.steps, topology
        )
        if live:
            return runtime.Live(
                self.task,
                algorithm,
                self.communicator,
                topology,
                config.runtime,
                config.saving,
                config.clocks.rate,
                self.steps,
                config.seed,
                identity=identify(config, self.graphs, BUDGET),
            )
        events = asynchronous.make_events(
            config.clocks, topology, self.steps, config.seed
        )
        return asynchronous.Virtual(
            self.task, algorithm, events, config.clocks.rate, self.communicator
        )


def execute(run: Run) -> trainer.Outcome:
    """Trains, shows and writes.

    Raises:
      Diverged: if the training does, when its curves are drawn.
      Stopped: after SIGTERM, when all is saved.
    """
    config, folder = run.config, run.folder
    folder.write_config(config)
    if (counts := run.task.class_counts) is not None and folder.active:
        title = f"{config.split}, {run.communicator.size} workers"
        folder.save("split.png", partition.plot_classes(counts, title))
    history: list[dict[str, Any]] = []
    title = f"{run.title}, seed {config.seed}"
    try:
        outcome = _train_with_bar(run, history)
    except trainer.Diverged as error:
        rows = report.summarize(run.task.score, history[-1]) if history else []
        _publish(run, title, history, rows, diverged=str(error))
        if history:
            _wait_until_written(run)
        raise
    except (trainer.Stopped, KeyboardInterrupt) as stop:
        if history:
            _publish_cut_off(run, f"{title}, cut off", history)
            if isinstance(stop, trainer.Stopped):  # All ranks raise it.
                _wait_until_written(run)
        raise
    rows = report.summarize(run.task.score, history[-1])
    if history[-1].get("collapsed"):
        rows.append(("given up, collapsed, in epoch", f"{history[-1]['epoch']}"))
    rows += run.job.describe(run.params, history)
    if folder.active:
        report.show_table(title, rows)
    _publish(run, title, history, rows)
    _wait_until_written(run)
    return outcome


def _train_with_bar(run: Run, history: list[dict[str, Any]]) -> trainer.Outcome:
    """Trains, shows how far it is, and writes and collects the records."""
    folder = run.folder
    with tqdm.tqdm(
        total=run.epochs,
        desc=run.title,
        unit="epoch",
        disable=not folder.active,
        bar_format="{l_bar}{bar}| {n:.4g}/{total} [{elapsed}<{remaining}{postfix}]",
    ) as bar:

        def log(record):
            # Rank 0 may be lost by now.
            folder.active = min(run.job.ranks) in run.communicator.local_ranks
            history.append(record)
            folder.append(record)
            score, value = run.task.score, record.get("mean", record["averaged"])
            loss = record.get("loss", record["averaged_loss"])
            bar.set_postfix_str(f"loss {loss:.4g}, {score} {value:.4g}")

        def advance(epochs):
            bar.update(min(epochs, run.epochs - bar.n))  # But for rounding.

        return run.train(log, advance)


def _publish(run, title, history, rows, diverged=None) -> None:
    """Writes what a run has measured, also where it has diverged."""
    folder = run.folder
    if history:
        run.job.save(folder, title)
    if not folder.active:
        return
    if history and len(run.job.ranks) == run.communicator.size:
        curves = report.plot_history(history, run.task.score, title)
        folder.save("curves.png", curves)
    sent = run.job.traffic(run.params, history) if history else {}
    folder.write_summary(title, rows, sent, diverged)
    print(f"written to {folder.path}", flush=True)


def _publish_cut_off(run: Run, title: str, history: list[dict[str, Any]]) -> None:
    """Shows what there is of a run that ends early, in table, curves and summary."""
    folder = run.folder
    if not folder.active:
        return
    rows = [("epochs", f"{history[-1]['epoch']:.4g} of {run.epochs}")]
    rows += report.summarize(run.task.score, history[-1])
    report.show_table(title, rows)
    if "mean" in history[-1]:
        folder.save("curves.png", report.plot_history(history, run.task.score, title))
    folder.write_summary(title, rows, {}, None)
    print(f"written to {folder.path}", flush=True)


def _wait_until_written(run: Run) -> None:
    """Waits until rank 0 has written its files.

    The first rank that exits with a code other than 0 ends all others, unless they are
    guarded.
    """
    if len(run.job.ranks) == run.communicator.size and GUARD not in os.environ:
        errors.all_come(WRITING)


def parse(arguments: Sequence[str] | None = None) -> Config:
    """Reads the command line.

    Args:
      arguments: by default those of the process.
    """
    with errors.heard_once():
        return tyro.cli(
            tyro.conf.OmitArgPrefixes[Config],
            prog="python -m experiments.train",
            args=arguments,
            description=__doc__,
        )


def main(arguments: Sequence[str] | None = None) -> trainer.Outcome:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    with errors.one_line_errors(trainer.Diverged):
        return run_once(arguments)


def run_once(arguments: Sequence[str] | None = None) -> trainer.Outcome:
    """The command line, for those who go on after a divergence.

    Args:
      arguments: by default those of the process.

    Raises:
      Diverged: on every process alike, if the training does; what was measured until
        then has been written.
    """
    run: Run | None = None
    try:
        config = parse(arguments)
        with errors.one_line_errors(Exception), options.said_as_options():
            run = Run(config)
        with errors.one_line_errors(CheckpointError, OSError):
            outcome = execute(run)
    except trainer.Stopped as stop:
        end(stop.code, str(stop))
    except KeyboardInterrupt:
        end(
            checkpoints.INTERRUPTED,
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
