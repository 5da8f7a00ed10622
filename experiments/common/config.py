"""A training as the command line describes it."""

import contextlib
import dataclasses
import pathlib
import zlib
from collections.abc import Collection, Sequence
from typing import Literal

import numpy as np

import djax
from djax import _checkpoints, communicators, topologies

from . import (
    algorithms,
    asynchronous,
    checkpoints,
    errors,
    optimizers,
    ranges,
    runtime,
    tasks,
)
from .data import DataOptions
from .errors import UsageError


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
    pooled_statistics: bool = False
    """Give the averaged model the variances of all workers' batches together, for its
    batch normalizations. By default it gets the mean of the batches' variances, as is
    common; that leaves out how far the means of workers' data are apart."""
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


def check(config: Config) -> None:
    """Raises UsageError for numbers out of range, and options that do not fit."""
    ranges.check(config)
    if config.name is not None and pathlib.Path(config.name).name != config.name:
        raise UsageError(f"--name {config.name!r} must be a plain folder name.")
    if config.collapse is not None:
        epoch, score = config.collapse
        if epoch < 0 or score < 0 or (score > 1 and not _is_unbounded(config.task)):
            raise UsageError(
                f"--collapse {epoch:g} {score:g} must be an epoch, at least 0, and a "
                "score; an accuracy is in [0, 1]."
            )
    checkpoints.check_saving(config.saving)


def _is_unbounded(task: str) -> bool:
    """Whether the score of a task, by its name, may be above 1."""
    return task in ("quadratics", *tasks.CORPORA)


UNESSENTIAL = {"runs", "name", "tensorboard", "data_dir", "download"} | {
    field.name for field in dataclasses.fields(checkpoints.Saving)
}
"""What may differ between a run and the one that goes on with its checkpoints."""
BUDGET = {"epochs", "evaluations", "seconds", "transport", "timeout"}
"""What may differ besides where workers never wait: how long, and over what network."""


def identify(
    config: Config, graphs: Sequence[djax.Topology], ignored: Collection[str] = ()
) -> dict[str, str]:
    """What two runs have in common of which one goes on with the other's workers.

    Args:
      config: from the command line.
      graphs: that it names; the same name may come to mean another graph.
      ignored: further options that may differ.
    """
    found = {"the graph": "; ".join(map(_digest, graphs))}
    for name, value in dataclasses.asdict(config).items():
        options = dataclasses.is_dataclass(getattr(config, name))
        parts = value if options else {name: value}
        if isinstance(value, dict) and not options:
            parts = {name: dict(sorted(value.items()))}
        for key in parts.keys() - UNESSENTIAL - set(ignored):
            found[f"--{key}".replace("_", "-")] = repr(parts[key])
    return found | _checkpoints.environment()


def _digest(graph: djax.Topology) -> str:
    """A name of a graph with its weights, to what is more than rounding."""
    edges = [(i, j, graph.multiplicity(i, j)) for i, j in graph.edges]
    weights = np.round(graph.mixing_matrix, 9).tolist()
    return f"{zlib.crc32(repr((edges, weights)).encode()):08x}"


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
    if config.topology == "social_network" and size != 32:
        raise UsageError(
            f"--topology social_network has 32 workers, not {size}: use --workers 32, "
            "or mpirun -n 32 where there is mpirun."
        )
    weights = config.weights
    with contextlib.suppress(ValueError):
        weights = float(weights)
    try:
        built = build(size, weights=weights)
    except ValueError as error:
        if isinstance(weights, float):
            raise UsageError(f"--weights {config.weights}: {error}") from error
        raise
    return (built,) if isinstance(built, djax.Topology) else built
