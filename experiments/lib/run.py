"""Makes graphs, communicator, task, optimizer and job from a configuration."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Sequence

import jax

import djax
from djax import communicators
from djax.training import Checkpointer, Checkpoints
from djax.transport import say

from . import (
    algorithms,
    asynchronous,
    errors,
    graphs,
    optimizers,
    outer,
    report,
    runtime,
    synchronous,
    tasks,
    trainer,
)
from .config import BUDGET, Config, Saving, check, identify, lose, make_communicator
from .errors import UsageError
from .groups import make_levels


class Run:
    """Everything that a configuration determines, checked before training begins."""

    def __init__(self, config: Config):
        """Raises UsageError for mistakes of the user, on all ranks alike."""
        check(config)
        self.communicator = make_communicator(config)
        self.levels = make_levels(config.groups, self.communicator)
        if self.levels.local is not None:
            across = lose(config, self.levels.across)
            self.levels = self.levels._replace(across=across)
        local = self.communicator.local_ranks
        agreed = dataclasses.asdict(config) | {"jax": jax.__version__}
        del agreed["runs"]  # Ranks may differ here: only rank 0 makes the folder.
        communicators.check_agreement(
            self.communicator, "the configurations", [agreed] * len(local)
        )
        size = self.communicator.size
        self.graphs = graphs.make_graphs(
            config.topology,
            self.levels.across.size,
            config.topology_options,
            config.weights,
        )
        self.task = make_task(config, size, local)
        base = optimizers.scale_linearly(config.base, size * config.batch_size)
        self.config = config = dataclasses.replace(config, base=base)
        self.epochs = self.task.epochs if config.epochs is None else config.epochs
        self.steps = self.epochs * self.task.steps_per_epoch
        if size * self.steps >= 2**31:
            raise UsageError(
                f"--epochs {self.epochs} of {self.task.steps_per_epoch} steps each are "
                f"too many for {size} workers, who can count up to {2**31 - 1} steps "
                "together: lower --epochs or --steps-per-epoch."
            )
        algorithm = config.averaging.algorithm
        errors.lookup(
            "--algorithm", algorithm, [*algorithms.ALGORITHMS, *asynchronous.ALGORITHMS]
        )
        never_waits = algorithm in asynchronous.ALGORITHMS
        live = never_waits and communicators.launcher_size() is not None
        asynchronous.check_clocks(config.clocks, algorithm, live)
        runtime.check_runtime(config.runtime, algorithm, live)
        model = self.task.init(jax.random.key(config.seed))
        params = communicators.replicate(self.communicator, model)
        self.job: trainer.Job
        if never_waits:
            self.job = self._make_asynchronous(params, live)
        else:
            self.job = self._make_synchronous(params, model)
        communicators.check_agreement(
            self.communicator, "the initial parameters", [model] * len(local)
        )
        local = self.levels.local
        named = (
            config.task,
            config.rarely.outer,
            algorithm,
            f"{config.topology}{self.levels.across.size}",
            None if local is None else f"groups{local.size}",
        )
        self.title = "-".join(filter(None, named))
        name = config.name or self.title
        self.folder = report.RunFolder(
            config.runs, name, self.communicator, config.tensorboard
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
        """Trains all local workers, and yields the records of the job.

        The message of a Diverged then also says which options to change.
        """
        evaluations = min(self.config.evaluations, self.epochs)
        try:
            with contextlib.closing(self.job.train(evaluations, advance)) as records:
                yield from records
        except trainer.Diverged as error:
            raise trainer.Diverged(f"{error} {self._remedy()}") from error

    def train(self) -> trainer.Job:
        """Trains all local workers without output; raises the errors of `records`."""
        for _ in self.records(lambda epochs: None):
            pass
        return self.job

    def _remedy(self) -> str:
        """Says which options of the algorithm to change after a divergence."""
        config, steps = self.config, ["lower --learning-rate"]
        if config.base.warmup < 1:
            steps.append("lengthen --warmup")
        recipe = algorithms.ALGORITHMS.get(config.averaging.algorithm)
        if recipe is not None and "consensus_rate" in recipe.options:
            # Compressed messages need a small rate; all others are stable up to 1.
            if recipe.tuned or (config.averaging.consensus_rate or 1.0) > 1:
                steps.append("lower --consensus-rate")
        if config.rarely.outer is not None:
            steps.append("lower --outer-learning-rate")
        return f"{', or '.join(steps)}.".capitalize()

    def _make_synchronous(self, params, model) -> synchronous.Synchronous:
        config, communicator = self.config, self.communicator
        _, across, local = self.levels
        how = config.averaging, config.base, self.steps, self.graphs, across
        optimizer = algorithms.make_optimizer(*how, config.rarely, local)
        base = optimizers.make_base(config.base, self.steps)
        cost = djax.communication_cost(optimizer, model, communicator)
        rounds = None
        if config.clocks != asynchronous.Clocks():
            durations = config.clocks.durations(config.seed)
            size = communicator.size
            rounds = djax.asynchronous.draw_rounds(size, self.steps, **durations)
        saving = config.saving.make(identify(config, self.graphs))
        saver = Checkpointer(saving, communicator) if saving else None
        if saver is not None and config.saving.resume and 0 in communicator.local_ranks:
            say(describe_start(saver))
        job = self.task, communicator, params
        return synchronous.Synchronous(
            *job, optimizer, base, self.epochs, cost, rounds, saver, config.collapse
        )

    def _make_asynchronous(
        self, params, live: bool
    ) -> asynchronous.Virtual | runtime.Live:
        config, name = self.config, self.config.averaging.algorithm
        algorithms.check_used(config.averaging, set())
        topologies = graphs.take_fixed(name, self.graphs)
        for refused, why in (
            (
                config.communicator == "mesh",
                "is not for --communicator mesh: start it under mpirun, or leave the "
                "option away to simulate it.",
            ),
            (len(topologies) > 1, "needs one graph: choose a --topology."),
            (
                config.rarely != outer.NO_OUTER,
                "has no outer optimizer.",
            ),
            (config.collapse is not None, "has no option --collapse."),
            (
                self.levels.local is not None and not live,
                "has groups over MPI alone: start it under mpirun.",
            ),
            (
                self.levels.local is not None and config.runtime.transport == "zmq",
                "with groups needs --transport mpi: a group cannot go on without one "
                "of its ranks.",
            ),
            (
                not live and config.saving != Saving(),
                "saves no checkpoints on virtual clocks, where the same seed repeats a "
                "run: leave --checkpoints and its options away.",
            ),
        ):
            if refused:
                raise UsageError(f"--algorithm {name} {why}")
        (topology,), rate = topologies, config.clocks.rate
        if name == "a2cid2" and rate == 0 and topology.size > 1:
            raise UsageError(
                "--rate 0.0: no averagings connect worker 1 with the others; "
                "--algorithm a2cid2 needs a positive --rate."
            )
        algorithm = asynchronous.make_algorithm(
            name, config.clocks, config.base, self.steps, topology
        )
        job = self.task, self.levels.across, params, algorithm
        if live:
            saving = config.saving.make(identify(config, self.graphs, BUDGET))
            how = topology, config.runtime, rate, self.steps, config.seed, saving
            return runtime.Live(*job, *how, local=self.levels.local)
        durations = config.clocks.durations(config.seed)
        events = djax.asynchronous.draw_events(
            topology, rate, gradients=self.steps * topology.size, **durations
        )
        return asynchronous.Virtual(*job, events, rate)


def describe_start(saver: Checkpointer) -> str:
    """Says from which step a run goes on that may be resumed."""
    if saver.latest is None:
        return f"{saver.directory} has no checkpoint yet: the run begins from the start"
    return f"resumed from step {saver.latest} of {saver.directory}"


_LAST_TASK: dict[str, tasks.Task] = {}
"""The last task by its description. A table's next row needs not load its data again,
nor compile its evaluation."""


def make_task(config: Config, size: int, local_ranks: Sequence[int]) -> tasks.Task:
    """Makes the task for the workers of this process, out of `size` workers."""
    named = {name: getattr(config, name) for name in tasks.Setting._fields[2:]}
    setting = tasks.Setting(size, local_ranks, **named)
    given = config.task, setting, config.task_options
    described = repr((*given, setting.data.folder))
    if described not in _LAST_TASK:
        _LAST_TASK.clear()  # Data of two tasks may not fit in memory.
        _LAST_TASK[described] = tasks.make_task(*given)
    task = _LAST_TASK[described]
    if config.steps_per_epoch is not None:
        task = task._replace(steps_per_epoch=config.steps_per_epoch)
    if config.pooled_statistics and task.statistics is None:
        raise UsageError(
            "--pooled-statistics is for models with batch normalization, which that of "
            f"--task {config.task} has not: choose another --model."
        )
    return task._replace(pooled_statistics=config.pooled_statistics)
