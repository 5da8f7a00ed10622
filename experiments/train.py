"""Decentralized training from the command line.

Under mpirun one process is one worker; without it all workers are simulated in this
process. Nothing else changes: the same seed gives the same numbers.

    python -m experiments.train                               # 4 workers, simulated
    mpirun -n 4 python -m experiments.train                   # 4 workers, over MPI
    python -m experiments.train --workers 32 --topology social_network
    python -m experiments.train --algorithm relay_sgd --topology chain --workers 8
    python -m experiments.train --task quadratics --split iid --optimizer adam
    python -m experiments.train --algorithm a2cid2 --speeds 1 1 1 0.25

With the defaults (D-PSGD on a ring, handwritten digits whose classes are split by a
Dirichlet distribution with alpha 0.1) every worker ends above 90 % test accuracy.
Each run writes runs/<time>-<name>/ with its configuration, metrics and pictures.
"""

import contextlib
import dataclasses
import pathlib
import sys
from collections.abc import Callable, Sequence
from typing import Any, Literal

import jax
import tqdm
import tyro

import djax
from djax import communicators, topologies

from .common import (
    algorithms,
    asynchronous,
    checkpoints,
    errors,
    optimizers,
    partition,
    report,
    runtime,
    synchronous,
    tasks,
    trainer,
)
from .common.data import DataOptions
from .common.errors import UsageError


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    base: optimizers.BaseOptimizer
    averaging: algorithms.Algorithm
    clocks: asynchronous.Clocks
    runtime: runtime.Runtime
    data: DataOptions
    saving: checkpoints.Saving
    task: str = "digits"
    """What is learned: digits, fashion_mnist, cifar10, imagenet2012 (images), ag_news
    (classes of texts), sotu, wikitext2 (the next word or character), or quadratics."""
    task_options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Its own arguments, as in `dim 20 noise 0.1` or `level character`."""
    model: str | None = None
    """The model, of images mlp, vgg11, resnet8, resnet20, resnet18, resnet50 or
    resnet18_evonorm; by default the task's own."""
    model_options: dict[str, str] = dataclasses.field(default_factory=dict)
    """Its arguments, as in `hidden "(64,)"` or `width 0.5`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which models compute; parameters and messages are float32."""
    topology: str = "ring"
    """Who talks to whom: ring, chain, star, complete, torus, hypercube, exponential,
    binary_tree, regular_tree, social_network or double_binary_trees (two, for half of
    the coordinates each). Relays need trees; sgp has a graph of its own, the one-peer
    exponential, and all_reduce_sgd needs none."""
    weights: str = "metropolis"
    """Mixing weights of gossip: metropolis, uniform, lazy, or a number for every
    edge."""
    split: str | None = None
    """Who holds which samples: iid, dirichlet:ALPHA, shards:K, reshuffled (iid, anew in
    each epoch) or whole (each worker has all of them); of texts contiguous or iid. By
    default dirichlet:0.1, of texts contiguous."""
    workers: int | None = None
    """Number of workers: 4 by default; under mpirun, the number of ranks."""
    communicator: Literal["auto", "simulated", "mesh", "mpi"] = "auto"
    """How messages travel; auto is mpi under a launcher, else simulated."""
    drop_probability: float = 0.0
    """Probability with which a message is lost."""
    batch_size: int = 32
    """Samples of one worker's step; rows of a text."""
    accumulation: int = 1
    """Parts of a batch whose gradients are computed one after another."""
    epochs: int | None = None
    """Passes over the data; by default the task's own, 40 of the digits."""
    steps_per_epoch: int | None = None
    """Steps that are called an epoch, if not as many as one pass over the data has."""
    evaluations: int = 20
    """How often the models are evaluated, spread over the training."""
    collapse: tuple[float, float] | None = None
    """An epoch and a score: end there if no worker is better."""
    seed: int = 0
    """Of the split, the start, the batches and the losses of messages."""
    name: str | None = None
    """Name of the run's folder; by default task, algorithm and topology."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Where the run's folder is made."""
    tensorboard: bool = False
    """Write the metrics for TensorBoard, too."""


class Run:
    """Everything that a configuration determines, checked before any time is spent."""

    def __init__(self, config: Config):
        """Raises for what the user can mend, on all ranks alike."""
        check(config)
        self.communicator = make_communicator(config)
        local = self.communicator.local_ranks
        communicators.check_agreement(
            self.communicator,
            "the configurations",
            [dataclasses.asdict(config) | {"jax": jax.__version__}] * len(local),
        )
        size = self.communicator.size
        self.topologies = make_topologies(config, size)
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
        base = optimizers.scale_linearly(config.base, size * config.batch_size)
        self.config = config = dataclasses.replace(config, base=base)
        self.epochs = self.task.epochs if config.epochs is None else config.epochs
        self.steps = self.epochs * self.task.steps_per_epoch
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
          Diverged: if a loss is not finite.
          Stopped: after SIGTERM, when all is saved.
        """
        evaluations = min(self.config.evaluations, self.epochs)
        return self.job.train(self.params, evaluations, report, advance)

    def _make_synchronous(self, model) -> synchronous.Synchronous:
        config = self.config
        optimizer = algorithms.make_optimizer(
            config.averaging,
            config.base,
            self.steps,
            self.topologies,
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
            checkpoints.Saver(config.saving, self.communicator, identify(config)),
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
        if config.drop_probability or config.weights != Config.weights:
            raise UsageError(
                f"--algorithm {name} has no options --drop-probability and --weights: "
                "neighbours exchange models and take their mean."
            )
        if len(self.topologies) > 1:
            raise UsageError(
                f"--algorithm {name} needs one graph: choose a --topology."
            )
        (topology,) = self.topologies
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
            )
        events = asynchronous.make_events(
            config.clocks, topology, self.steps, config.seed
        )
        return asynchronous.Virtual(
            self.task, algorithm, events, config.clocks.rate, self.communicator
        )


def check(config: Config) -> None:
    """Raises UsageError for numbers out of range, and options that do not fit."""
    for name in ("epochs", "steps_per_epoch", "evaluations"):
        if (value := getattr(config, name)) is not None and value < 1:
            flag = f"--{name}".replace("_", "-")
            raise UsageError(f"{flag} {value} must be at least 1.")
    if not 0 <= config.seed < 2**32:
        raise UsageError(f"--seed {config.seed} must be in [0, 2**32).")
    if config.name is not None and pathlib.Path(config.name).name != config.name:
        raise UsageError(f"--name {config.name!r} must be a plain folder name.")
    checkpoints.check_saving(config.saving)


UNESSENTIAL = {"saving", "runs", "name", "tensorboard", "data"}
"""What may differ between a run and the one that goes on with its checkpoints."""


def identify(config: Config) -> dict[str, str]:
    """What two runs have in common of which one goes on with the other's workers."""
    found = {}
    for name, value in dataclasses.asdict(config).items():
        if name in UNESSENTIAL:
            continue
        parts = value if isinstance(value, dict) else {name: value}
        found |= {f"{name}.{key}": repr(part) for key, part in parts.items()}
    return found


def make_communicator(config: Config) -> djax.Communicator:
    """Chooses where the workers live."""
    kind, ranks = config.communicator, communicators.launcher_size()
    if kind == "auto":
        kind = "simulated" if ranks is None else "mpi"
    losses = {"drop_probability": config.drop_probability, "drop_seed": config.seed}
    if kind != "mpi":
        if (ranks or 1) > 1:
            raise UsageError(
                f"--communicator {kind} runs all workers in one process, but the "
                f"launcher started {ranks}; leave mpirun away, or use mpi."
            )
        workers = 4 if config.workers is None else config.workers
        return getattr(communicators, kind)(workers, **losses)
    if ranks is None:
        raise UsageError("--communicator mpi needs mpirun: mpirun -n 4 python -m ...")
    communicator = communicators.mpi(**losses)
    if config.workers not in (None, communicator.size):
        raise UsageError(
            f"--workers {config.workers}, but mpirun started {communicator.size} "
            f"ranks; use mpirun -n {config.workers}, or leave --workers away."
        )
    return communicator


def make_topologies(config: Config, size: int) -> tuple[djax.Topology, ...]:
    """Builds the graph that the command line names, or its pair of trees."""
    names = (*topologies.BUILDERS, "double_binary_trees")
    build = getattr(topologies, errors.lookup("--topology", config.topology, names))
    weights = config.weights
    with contextlib.suppress(ValueError):
        weights = float(weights)
    built = build(size, weights=weights)
    return (built,) if isinstance(built, djax.Topology) else built


def execute(run: Run) -> trainer.Outcome:
    """Trains, shows and writes."""
    config, folder = run.config, run.folder
    folder.write_config(config)
    if (counts := run.task.class_counts) is not None and folder.active:
        title = f"{config.split}, {run.communicator.size} workers"
        folder.save("split.png", partition.plot_classes(counts, title))
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
            folder.append(record)
            score, value = run.task.score, record.get("mean", record["averaged"])
            loss = record.get("loss", record["averaged_loss"])
            bar.set_postfix_str(f"loss {loss:.4g}, {score} {value:.4g}")

        def advance(epochs):
            bar.update(min(epochs, run.epochs - bar.n))  # But for rounding.

        outcome = run.train(log, advance)
    title = f"{run.title}, seed {config.seed}"
    rows = report.summarize(run.task.score, outcome.history[-1])
    if outcome.history[-1].get("collapsed"):
        rows.append(
            ("given up, collapsed, in epoch", f"{outcome.history[-1]['epoch']}")
        )
    rows += run.job.describe(run.params, outcome.history)
    run.job.save(folder, title)
    if folder.active:
        report.show_table(title, rows)
        if len(run.job.ranks) == run.communicator.size:
            curves = report.plot_history(outcome.history, run.task.score, title)
            folder.save("curves.png", curves)
        print(f"written to {folder.path}")
    return outcome


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
    config = parse(arguments)
    with errors.one_line_errors(Exception):
        run = Run(config)
    with errors.one_line_errors(trainer.Diverged):
        try:
            return execute(run)
        except trainer.Stopped as stop:
            if run.folder.active:
                print(stop, file=sys.stderr)
            sys.exit(0)
        finally:
            run.folder.close()


if __name__ == "__main__":
    main()
