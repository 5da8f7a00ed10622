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
import dataclasses
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

import jax
import tqdm
import tyro

import djax
from djax import communicators
from djax.training import Checkpointer, CheckpointError, Checkpoints
from djax.transport import GUARD

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
    signals,
    synchronous,
    tasks,
    trainer,
)
from .lib.config import BUDGET, Config, check, identify, make_communicator
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
        params = communicators.replicate(self.communicator, model)
        self.job: trainer.Job
        if waitless:
            self.job = self._make_asynchronous(params, live)
        else:
            self.job = self._make_synchronous(params, model)
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
        if isinstance(self.job, synchronous.Synchronous) and self.job.saver is None:
            # Without --checkpoints nothing is saved unless a signal ends the run.
            self.job.saver = Checkpointer(
                Checkpoints(self.folder.path / "checkpoints", math.inf),
                self.communicator,
                identify(config, self.graphs),
                lazy=True,
            )

    def records(self, advance: Callable[[float], object]) -> trainer.Records:
        """Trains all local workers, and yields the records of the history.

        Args:
          advance: called with the number of epochs that have passed since its last
            call.

        Raises:
          Diverged: if a loss is not finite, or has grown and not come back.
          Stopped: after SIGTERM or Ctrl-C, when all is saved.
          CheckpointError: if checkpoints cannot be used.
        """
        evaluations = min(self.config.evaluations, self.epochs)
        try:
            with contextlib.closing(self.job.train(evaluations, advance)) as records:
                yield from records
        except trainer.Diverged as error:
            raise trainer.Diverged(f"{error} {self._remedy()}") from error

    def train(self) -> trainer.Outcome:
        """Trains all local workers in silence, and raises what `records` does."""
        for _ in self.records(lambda epochs: None):
            pass
        return self.job.outcome

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

    def _make_synchronous(self, params, model) -> synchronous.Synchronous:
        config = self.config
        optimizer = algorithms.make_optimizer(
            config.averaging,
            config.base,
            self.steps,
            self.graphs,
            self.communicator,
        )
        base = optimizers.make_base(config.base, self.steps)
        cost = djax.communication_cost(optimizer, model, self.communicator)
        rounds = asynchronous.make_rounds(
            config.clocks, self.communicator.size, self.steps, config.seed
        )
        saving = config.saving.make(identify(config, self.graphs))
        return synchronous.Synchronous(
            self.task,
            optimizer,
            base,
            self.communicator,
            params,
            self.epochs,
            cost,
            rounds,
            Checkpointer(saving, self.communicator) if saving else None,
            config.collapse,
        )

    def _make_asynchronous(
        self, params, live: bool
    ) -> asynchronous.Virtual | runtime.Live:
        config, name = self.config, self.config.averaging.algorithm
        algorithms.check_options(config.averaging, set())
        if config.communicator == "mesh":
            raise UsageError(
                f"--algorithm {name} is not for --communicator mesh: start it under "
                "mpirun, or leave the option away to simulate it."
            )
        topologies = graphs.take_fixed(name, self.graphs)
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
                params,
                topology,
                config.runtime,
                config.clocks.rate,
                self.steps,
                config.seed,
                config.saving.make(identify(config, self.graphs, BUDGET)),
            )
        events = asynchronous.make_events(
            config.clocks, topology, self.steps, config.seed
        )
        return asynchronous.Virtual(
            self.task, algorithm, self.communicator, params, events, config.clocks.rate
        )


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
