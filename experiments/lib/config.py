"""A training as the command line describes it."""

import dataclasses
import pathlib
import shlex
from collections.abc import Collection, Sequence
from typing import Any, Literal

import djax
from djax import communicators
from djax.topologies import Graph

from . import asynchronous, checkpoints, graphs, ranges, tasks
from .algorithms import Algorithm
from .asynchronous import Clocks
from .checkpoints import Saving
from .data import DataOptions
from .errors import UsageError
from .optimizers import BaseOptimizer
from .options import Options, write_flags
from .runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    base: BaseOptimizer = BaseOptimizer()
    averaging: Algorithm = Algorithm()
    clocks: Clocks = Clocks()
    runtime: Runtime = Runtime()
    data: DataOptions = DataOptions()
    saving: Saving = Saving()
    task: str = "digits"
    """What is learned: digits, fashion_mnist, cifar10, imagenet2012 (images), ag_news
    (classes of texts), sotu, wikitext2 (the next word or character), or quadratics."""
    task_options: Options = dataclasses.field(default_factory=dict)
    """Its own arguments, as in `dim 20 noise 0.1` or `level character`."""
    model: str | None = None
    """The model, of images mlp, vgg11, resnet8, resnet20, resnet18, resnet50 or
    resnet18_evonorm; by default the task's own."""
    model_options: Options = dataclasses.field(default_factory=dict)
    """Its arguments, as in `hidden "(64,)"` or `width 0.5`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """In which models compute. Parameters are float32, and messages too, unless there
    is a --message-dtype."""
    topology: str = "ring"
    """Who talks to whom. Fixed graphs are ring, chain, star, complete, torus,
    hypercube, exponential, binary_tree, regular_tree, social_network, equi_static and
    double_binary_trees (two, for half of the coordinates each). With base_graph,
    simple_base_graph, hyper_hypercube, one_peer_hypercube, one_peer_exponential,
    equi_dyn, random_matchings and matcha the neighbours change from step to step, so
    that workers come together fast although each of them sends few messages. Relays
    need trees; choco_sgd, dcd_psgd, ecd_psgd, a2cid2 and adpsgd a fixed graph;
    power_gossip one whose messages go both ways. sgp has the one_peer_exponential
    unless another graph that changes is named, and all_reduce_sgd needs none."""
    topology_options: Options = dataclasses.field(default_factory=dict)
    """Arguments of the graph, as in `rows 2` of a torus, `degree 3` of equi_static
    (which needs it), `max_degree 2` of a base_graph, `period 100 seed 1` of
    random_matchings, or `base torus budget 0.3` of matcha."""
    weights: str = "metropolis"
    """Mixing weights of a fixed graph: metropolis, uniform, lazy, best_constant or
    fastest (which bring the workers together fastest, of equal weights or of any), or a
    number for every edge. Graphs that change, and equi_static, have weights of their
    own."""
    split: str | None = None
    """Who holds which samples: iid, dirichlet:ALPHA, shards:K, reshuffled (iid, anew in
    each epoch) or whole (each worker has all of them); of texts contiguous or iid. By
    default dirichlet:0.1, of texts contiguous."""
    workers: int | None = None
    """Number of workers: 4 by default; under mpirun, the number of ranks."""
    communicator: Literal["auto", "simulated", "mesh", "mpi"] = "auto"
    """How messages travel; auto is mpi under a launcher, else simulated."""
    message_dtype: (
        Literal["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"] | None
    ) = None
    """To what the numbers are rounded that workers send to their neighbours, to save a
    half or three quarters of the bytes; by default they are sent as they are."""
    rounding_seed: int | None = None
    """Round to --message-dtype up or down at random, by draws of this seed, so that
    small differences between models are not always rounded away."""
    drop_probability: float = 0.0
    """Probability with which a message is lost."""
    drop_bursts: float | None = None
    """Lose messages in bursts: how many steps on average a link between two workers
    loses all messages, once it has begun to. --drop-probability is then the share of
    messages that are lost in the long run."""
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

    def replace(self, **options: Any) -> "Config":
        """Returns a configuration with other options, of whichever part they are.

        Examples:
          >>> Config().replace(topology="chain", algorithm="relay_sgd").topology
          'chain'
        """
        for part in dataclasses.fields(self):
            value = getattr(self, part.name)
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                names = {field.name for field in dataclasses.fields(value)}
                own = {name: options.pop(name) for name in names & options.keys()}
                options[part.name] = dataclasses.replace(value, **own)
        return dataclasses.replace(self, **options)


def flatten(config: Any) -> dict[str, Any]:
    """The values of all options by their names, those of the parts included."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        found |= (
            flatten(value) if dataclasses.is_dataclass(value) else {field.name: value}
        )
    return found


def command_line(config: Config) -> str:
    """The arguments for :mod:`experiments.train` that make a configuration."""
    defaults = flatten(Config())
    changed = {k: v for k, v in flatten(config).items() if v != defaults[k]}
    return shlex.join(write_flags(changed))


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
    _check_messages(config)


def _check_messages(config: Config) -> None:
    """Raises UsageError for options of messages that mean nothing here."""
    name = config.averaging.algorithm
    refused, reason = (), ""
    if name in asynchronous.ALGORITHMS:
        refused = ("drop_probability", "drop_bursts", "message_dtype", "rounding_seed")
        refused += ("weights",)
        reason = "neighbours exchange whole models and take their mean"
    elif name == "all_reduce_sgd":
        refused = ("message_dtype", "rounding_seed")
        reason = "sums over all workers are never rounded"
    for option in refused:
        if getattr(config, option) != getattr(Config, option):
            raise UsageError(
                f"--algorithm {name} has no option {ranges.flag(option)}: {reason}."
            )
    if config.rounding_seed is not None and config.message_dtype is None:
        raise UsageError(
            f"--rounding-seed {config.rounding_seed} rounds nothing without a "
            "--message-dtype, such as bfloat16."
        )
    if config.drop_bursts is not None:
        _check_bursts(config.drop_bursts, config.drop_probability)


def _check_bursts(steps: float, lost: float) -> None:
    """Raises UsageError if no link can lose messages in this way."""
    if lost == 0:
        raise UsageError(
            f"--drop-bursts {steps:g} needs a --drop-probability, the share of the "
            "messages that are lost."
        )
    # With shorter ones to_bad + to_good would be above 1, which djax refuses.
    if steps < (shortest := 1 / (1 - lost)):
        raise UsageError(
            f"--drop-bursts {steps:g} is too short for --drop-probability {lost:g}: it "
            f"must be at least {shortest:.4g}, which is how long bursts are where "
            "messages are lost independently."
        )


def _is_unbounded(task: str) -> bool:
    """Whether the score of a task, by its name, may be above 1."""
    return task in ("quadratics", *tasks.CORPORA)


UNESSENTIAL = {"runs", "name", "tensorboard", "data_dir", "download"} | {
    field.name for field in dataclasses.fields(Saving)
}
"""What may differ between a run and the one that goes on with its checkpoints."""
BUDGET = {"epochs", "evaluations", "seconds", "transport", "timeout"}
"""What may differ besides where workers never wait: how long, and over what network."""


def identify(
    config: Config, between: Sequence[Graph], ignored: Collection[str] = ()
) -> dict[str, str]:
    """What two runs have in common of which one goes on with the other's workers.

    Args:
      config: of a run.
      between: the graphs that it names; a name may come to mean another graph.
      ignored: further options that may differ.
    """
    found = {"the graph": "; ".join(map(graphs.digest, between))}
    for name, value in flatten(config).items():
        if name not in UNESSENTIAL | set(ignored):
            if isinstance(value, dict):
                value = dict(sorted(value.items()))
            found[ranges.flag(name)] = repr(value)
    return found


def make_communicator(config: Config) -> djax.Communicator:
    """Chooses where the workers live."""
    kind, ranks = config.communicator, communicators.launcher_size()
    if kind == "auto":
        kind = "simulated" if ranks is None else "mpi"
    messages = {
        "message_dtype": config.message_dtype,
        "rounding_seed": config.rounding_seed,
    }
    if kind != "mpi":
        if (ranks or 1) > 1:
            raise UsageError(
                f"--communicator {kind} runs all workers in one process, but the "
                f"launcher started {ranks}; leave mpirun away, or use mpi."
            )
        workers = 4 if config.workers is None else config.workers
        return _lossy(config, getattr(communicators, kind)(workers, **messages))
    if ranks is None:
        raise UsageError("--communicator mpi needs mpirun: mpirun -n 4 python -m ...")
    communicator = communicators.mpi(**messages)
    if config.workers not in (None, communicator.size):
        raise UsageError(
            f"--workers {config.workers}, but mpirun started {communicator.size} "
            f"ranks; use mpirun -n {config.workers}, or leave --workers away."
        )
    return _lossy(config, communicator)


def _lossy(config: Config, communicator: djax.Communicator) -> djax.Communicator:
    """Lets messages between neighbours get lost, as the options say."""
    lost = config.drop_probability
    if lost == 0:
        return communicator
    model = lost
    if config.drop_bursts is not None:
        to_good = 1 / config.drop_bursts
        # In the long run a link is bad for the share to_bad / (to_bad + to_good). Both
        # are at most 1 together, but for rounding.
        to_bad = min(lost * to_good / (1 - lost), 1 - to_good)
        model = communicators.GilbertElliott(to_bad, to_good)
    return communicators.lossy(communicator, model, seed=config.seed)
