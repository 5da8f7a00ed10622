"""Describes a training by its options, which are those of the command line."""

import dataclasses
import os
import pathlib
import shlex
from collections.abc import Collection, Mapping, Sequence
from typing import Any, Literal

import jax

import djax
from djax import communicators
from djax.topologies import Graph
from djax.training import Checkpoints

from . import asynchronous, graphs, ranges, tasks
from .algorithms import Algorithm
from .asynchronous import Clocks
from .data import DataOptions
from .errors import UsageError
from .groups import NO_GROUPS, Groups
from .optimizers import BaseOptimizer
from .options import Options, changed, write_flags
from .outer import NO_OUTER, Outer
from .runtime import Runtime


@dataclasses.dataclass(frozen=True)
class Saving:
    """Says where and when the workers are saved."""

    checkpoints: pathlib.Path | None = None
    """Folder for checkpoints of every worker. Without it workers are saved only when
    SIGTERM or Ctrl-C ends the run, in the run's own folder, and workers of a2cid2 and
    adpsgd are not saved at all."""
    checkpoint_every: float = 600.0
    """Seconds between two checkpoints."""
    keep_checkpoints: int = 2
    """Number of checkpoints that are kept; older ones are deleted."""
    resume: bool = False
    """Continue from the last checkpoint, if there is one."""
    stopped_code: int = 0
    """Exit code of a run that SIGTERM has stopped and that is saved, so that a job
    script can tell it from a run that has come to its end."""

    def make(self, identity: Mapping[str, str]) -> Checkpoints | None:
        """Makes djax's description of the checkpoints; None if no folder is given."""
        if self.checkpoints is None:
            return None
        how = self.checkpoint_every, self.keep_checkpoints, self.resume, identity
        return Checkpoints(self.checkpoints, *how)


@dataclasses.dataclass(frozen=True)
class Config:
    """One training run."""

    base: BaseOptimizer = BaseOptimizer()
    averaging: Algorithm = Algorithm()
    rarely: Outer = NO_OUTER
    groups: Groups = NO_GROUPS
    clocks: Clocks = Clocks()
    runtime: Runtime = Runtime()
    data: DataOptions = DataOptions()
    saving: Saving = Saving()
    task: str = "digits"
    """What is learned: digits, fashion_mnist, cifar10, imagenet2012 (images), ag_news
    (classes of texts), sotu, wikitext2 (the next word or character), or quadratics."""
    task_options: Options = dataclasses.field(default_factory=dict)
    """Arguments of the task, as in `dim 20 noise 0.1` or `level character`."""
    model: str | None = None
    """The model. For images: mlp, vgg11, resnet8, resnet20, resnet18, resnet50 or
    resnet18_evonorm. Each task has a default."""
    model_options: Options = dataclasses.field(default_factory=dict)
    """Arguments of the model, as in `hidden "(64,)"` or `width 0.5`."""
    precision: Literal["float32", "bfloat16"] = "float32"
    """Dtype in which models compute. Parameters are float32, and messages too, unless
    there is a --message-dtype."""
    topology: str = "ring"
    """Graph of the workers; neighbours communicate. Fixed graphs are ring, chain, star,
    complete, torus, hypercube, exponential, binary_tree, regular_tree, social_network,
    equi_static and double_binary_trees (two trees, each for half of the coordinates).
    With base_graph, simple_base_graph, hyper_hypercube, one_peer_hypercube,
    one_peer_exponential, equi_dyn, random_matchings and matcha the neighbours change
    from step to step, so that models come together fast although each worker sends few
    messages. relay_sgd and relay_sgd_grad need trees; choco_sgd, dcd_psgd, ecd_psgd,
    a2cid2 and adpsgd need a fixed graph; power_gossip needs a graph whose messages go
    both ways. sgp uses one_peer_exponential unless another changing graph is named, and
    all_reduce_sgd needs no graph."""
    topology_options: Options = dataclasses.field(default_factory=dict)
    """Arguments of the graph, as in `rows 2` for a torus, `degree 3` for equi_static
    (which needs it), `max_degree 2` for a base_graph, `period 100 seed 1` for
    random_matchings, or `base torus budget 0.3` for matcha."""
    weights: str = "metropolis"
    """Mixing weights of a fixed graph: metropolis, uniform, lazy, best_constant (the
    fastest equal weights), fastest (the fastest weights of all), or a number, which is
    the weight of every edge. Changing graphs and equi_static have weights of their own.
    """
    split: str | None = None
    """Which samples each worker holds: iid, dirichlet:ALPHA, shards:K, reshuffled (iid,
    drawn again in each epoch) or whole (each worker has all samples). For texts:
    contiguous or iid. By default dirichlet:0.1, for texts contiguous."""
    workers: int | None = None
    """Number of workers: 4 by default; with several processes, that of the ranks, or
    with a mesh that of all devices."""
    communicator: Literal["auto", "simulated", "mesh", "mpi"] = "auto"
    """How messages travel; auto is mpi under mpirun or srun, mesh if
    JAX_COORDINATOR_ADDRESS is set, else simulated."""
    message_dtype: (
        Literal["bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"] | None
    ) = None
    """Dtype to which numbers are rounded before they are sent, which saves a half or
    three quarters of the bytes; by default numbers are not rounded."""
    rounding_seed: int | None = None
    """Seed of random rounding to --message-dtype. Numbers are rounded up or down at
    random, so that small differences between models are not always rounded away."""
    drop_probability: float = 0.0
    """Probability with which a message is lost."""
    drop_bursts: float | None = None
    """Lose messages in bursts, during which a link between two workers loses all its
    messages. This is the mean length of a burst in steps; --drop-probability is then
    the share of messages that are lost in the long run."""
    batch_size: int = 32
    """Samples of one step of one worker; for texts, rows."""
    accumulation: int = 1
    """Number of parts of a batch, whose gradients are computed one after another."""
    epochs: int | None = None
    """Passes over the data. Each task has a default, which is 40 for the digits."""
    steps_per_epoch: int | None = None
    """Number of steps that count as an epoch; by default those of a pass over the data.
    """
    evaluations: int = 20
    """Number of evaluations of the models, spread over the training."""
    pooled_statistics: bool = False
    """Give the batch normalizations of the averaged model the variance of all workers'
    batches together. By default they get the mean of the batches' variances, as is
    common, which leaves out that workers' data have different means."""
    collapse: tuple[float, float] | None = None
    """An epoch and a score: the run ends at that epoch if no worker's score is better.
    """
    seed: int = 0
    """Seed of the split, the initial parameters, the batches and the lost messages."""
    name: str | None = None
    """Name of the run's folder; by default task, --outer, algorithm and topology."""
    runs: pathlib.Path = pathlib.Path("runs")
    """Folder in which the run's folder is made."""
    tensorboard: bool = False
    """Also write the metrics for TensorBoard."""

    def replace(self, **options: Any) -> "Config":
        """Returns a copy with other options, which may be fields of any part.

        Examples:
          >>> Config().replace(topology="chain", algorithm="relay_sgd").topology
          'chain'
        """
        for part, value in vars(self).items():
            if dataclasses.is_dataclass(value) and not isinstance(value, type):
                names = vars(value).keys() & options.keys()
                own = {name: options.pop(name) for name in names}
                options[part] = dataclasses.replace(value, **own)
        return dataclasses.replace(self, **options)


def flatten(config: Any) -> dict[str, Any]:
    """Returns the values of all options of a configuration and its parts, by name."""
    found = {}
    for name, value in vars(config).items():
        found |= flatten(value) if dataclasses.is_dataclass(value) else {name: value}
    return found


def command_line(config: Config) -> str:
    """Returns the arguments of :mod:`experiments.train` that make a configuration."""
    defaults = flatten(Config())
    options = {k: v for k, v in flatten(config).items() if v != defaults[k]}
    return shlex.join(write_flags(options))


def check(config: Config) -> None:
    """Raises UsageError for numbers out of range, and for options that conflict."""
    ranges.check(config)
    if config.name is not None and pathlib.Path(config.name).name != config.name:
        raise UsageError(f"--name {config.name!r} must be a plain folder name.")
    if config.collapse is not None:
        epoch, score = config.collapse
        unbounded = config.task in ("quadratics", *tasks.CORPORA)
        if epoch < 0 or score < 0 or (score > 1 and not unbounded):
            raise UsageError(
                f"--collapse {epoch:g} {score:g} must be an epoch, at least 0, and a "
                "score; an accuracy is in [0, 1]."
            )
    if config.saving.checkpoints is None and config.saving.resume:
        raise UsageError("--resume needs the folder: --checkpoints.")
    _check_messages(config)


def _check_messages(config: Config) -> None:
    """Raises UsageError for options of messages that the algorithm does not use."""
    name = config.averaging.algorithm
    refused, reason = "", ""
    if name in asynchronous.ALGORITHMS:
        refused = "drop_probability drop_bursts message_dtype rounding_seed weights"
        reason = "neighbours exchange whole models and take their mean"
    elif name == "all_reduce_sgd":
        refused = "message_dtype rounding_seed"
        reason = "sums over all workers are never rounded"
    for option in refused.split():
        if option in changed(config):
            raise UsageError(
                f"--algorithm {name} has no option {ranges.flag(option)}: {reason}."
            )
    if config.rounding_seed is not None and config.message_dtype is None:
        raise UsageError(
            f"--rounding-seed {config.rounding_seed} rounds nothing without a "
            "--message-dtype, such as bfloat16."
        )
    if config.drop_bursts is not None:
        steps, lost = config.drop_bursts, config.drop_probability
        if lost == 0:
            raise UsageError(
                f"--drop-bursts {steps:g} needs a --drop-probability, the share of the "
                "messages that are lost."
            )
        # With shorter bursts, to_bad + to_good would be above 1, which djax refuses.
        if steps < (shortest := 1 / (1 - lost)):
            raise UsageError(
                f"--drop-bursts {steps:g} is too short for --drop-probability "
                f"{lost:g}: it must be at least {shortest:.4g}, which is how long "
                "bursts are where messages are lost independently."
            )


UNESSENTIAL = {"runs", "name", "tensorboard", "data_dir", "download"} | {
    field.name for field in dataclasses.fields(Saving)
}
"""Options that may differ between a run and the run that continues it."""
BUDGET = {"epochs", "evaluations", "seconds", "transport", "timeout"}
"""Further options that may differ for asynchronous workers: duration and network."""


def identify(
    config: Config, between: Sequence[Graph], ignored: Collection[str] = ()
) -> dict[str, str]:
    """Returns the options in which a run must agree with the run that it continues.

    The graphs are among them, since another version of djax may give a name to another
    graph. Options of `UNESSENTIAL` and those that are `ignored` may differ.
    """
    found = {"the graph": "; ".join(map(graphs.digest, between))}
    for name, value in flatten(config).items():
        if name not in UNESSENTIAL | set(ignored):
            if isinstance(value, dict):
                value = dict(sorted(value.items()))
            found[ranges.flag(name)] = repr(value)
    return found


def make_communicator(config: Config) -> djax.Communicator:
    """Makes the communicator of all workers that the options ask for.

    It loses messages if the options say so, unless there are groups: only messages
    between groups are lost, by :func:`lose`.
    """
    kind, ranks = config.communicator, communicators.launcher_size()
    if kind == "auto":
        kind = "simulated" if ranks is None else "mpi"
        if "JAX_COORDINATOR_ADDRESS" in os.environ:
            kind = "mesh"
    messages = {
        "message_dtype": config.message_dtype,
        "rounding_seed": config.rounding_seed,
    }
    if kind == "mpi":
        if ranks is None:
            raise UsageError(
                "--communicator mpi needs mpirun: mpirun -n 4 python -m ..."
            )
        communicator = communicators.mpi(**messages)
        if config.workers not in (None, communicator.size):
            raise UsageError(
                f"--workers {config.workers}, but mpirun started {communicator.size} "
                f"ranks; use mpirun -n {config.workers}, or leave --workers away."
            )
    elif kind == "mesh" and communicators.start_processes() > 1:
        devices = jax.device_count()
        if config.workers not in (None, devices):
            raise UsageError(
                f"--workers {config.workers}, but the {jax.process_count()} processes "
                f"have {devices} devices together, of which each is a worker; leave "
                "--workers away."
            )
        communicator = communicators.mesh(devices, **messages)
    else:
        if (ranks or 1) > 1:
            raise UsageError(
                f"--communicator {kind} runs all workers in one process, but the "
                f"launcher started {ranks}; leave mpirun away, or use mpi or mesh."
            )
        workers = 4 if config.workers is None else config.workers
        communicator = getattr(communicators, kind)(workers, **messages)
    return communicator if config.groups != NO_GROUPS else lose(config, communicator)


def lose(config: Config, communicator: djax.Communicator) -> djax.Communicator:
    """Lets a communicator lose the messages that the options say."""
    lost = config.drop_probability
    if lost == 0:
        return communicator
    model = lost
    if config.drop_bursts is not None:
        to_good = 1 / config.drop_bursts
        # In the long run a link is bad for the share to_bad / (to_bad + to_good) of the
        # steps. The minimum keeps to_bad + to_good at 1 or less in spite of rounding.
        to_bad = min(lost * to_good / (1 - lost), 1 - to_good)
        model = communicators.GilbertElliott(to_bad, to_good)
    return communicators.lossy(communicator, model, seed=config.seed)
