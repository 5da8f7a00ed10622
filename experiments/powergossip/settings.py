r"""All settings of the paper's CIFAR-10 and WikiText-2 runs, and their optimizers.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425; the settings are
those of the published code, the grids that it searched among them.

Where the optimizers differ from it: weight decay sees a worker's model before it is
averaged, there after; it spares all of the normalization's parameters, there not those
of the first layer and of the downsampling (224 numbers); PowerGossip iterates in the
first step too, where all models are equal, there not; Moniqua's noise is shared by the
workers, as in its paper, there not; top-k sends indices of 32 bits, there of 64.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

import djax
from djax import (
    Communicator,
    Topology,
    compressors,
)

from ..lib import models
from ..lib.optimizers import (
    BaseOptimizer,
    all_but_norms,
    learning_rate_schedule,
)

STEPS = 49
"""Of an epoch of CIFAR-10 among 8 workers, with batches of 128."""
SEEDS = (10, 20, 30, 40, 50, 60)


@dataclasses.dataclass(frozen=True)
class Published:
    """What follows from the definitions in the published code.

    Attributes:
      bytes: to each neighbour in each step.
      ratio: those of gossip over these; for the LSTM a rounded one.
      mib: per worker and epoch.
    """

    bytes: float | None = None
    ratio: float | None = None
    mib: float | None = None


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to average, and what it was run with.

    Attributes:
      name: of the method.
      mechanism: of djax.
      options: its arguments.
      factor: F, the peak of the learning rate over where the warm-up starts.
      tried: the grids that were searched, if any.
      seeds: of the published runs.
      overlap: whether models are averaged before the step's update, the published
        code's default.
      published: what it sends there.
    """

    name: str
    mechanism: Callable[..., optax.GradientTransformation]
    options: Mapping[str, Any]
    factor: float
    tried: Mapping[str, tuple[float, ...]] = dataclasses.field(default_factory=dict)
    seeds: tuple[int, ...] = SEEDS
    overlap: bool = True
    published: Published = Published()


@dataclasses.dataclass(frozen=True)
class Configuration:
    """A task and how it is learned, whoever averages.

    Attributes:
      name: of data and model.
      shapes: makes the shapes of one worker's parameters.
      split: of the data.
      workers: on a ring with weights 1/3.
      batch_size: of a worker.
      epochs: passes over the data.
      learning_rate: where the warm-up starts; its end is the method's factor times it.
      warmup_epochs: of linear growth.
      milestones: epochs after which the learning rate is a tenth.
      methods: who averages.
      momentum: of SGD.
      nesterov: whether it is Nesterov's.
      weight_decay: of all parameters but the normalization's.
      clip: on the norm of a gradient.
      sequence_length: through which an LSTM's gradient is propagated.
      dropout: in the LSTM.
      steps_per_epoch: if known without the data.
    """

    name: str
    shapes: Callable[[], Any]
    split: str
    workers: int
    batch_size: int
    epochs: int
    learning_rate: float
    warmup_epochs: int
    milestones: tuple[int, ...]
    methods: tuple[Method, ...]
    momentum: float | None = None
    nesterov: bool = False
    weight_decay: float = 0.0
    clip: float | None = None
    sequence_length: int | None = None
    dropout: float = 0.0
    steps_per_epoch: int | None = None


def resnet20_shapes() -> Any:
    """The parameters of ResNet-20 with batch normalization, 272,474 numbers."""
    return _shapes(models.IMAGE_MODELS["resnet20"](10), jnp.zeros((1, 32, 32, 3)))


def lstm_shapes(vocabulary: int = 28_869) -> Any:
    """The parameters of the three-layer LSTM whose decoder is its embedding.

    Args:
      vocabulary: words; how many depends on the tokenizer.
    """
    model = models.lstm(vocabulary)
    return _shapes(model, jnp.zeros((1, 1), jnp.int32), model.initial_carry(1))


def _shapes(model: nn.Module, *inputs: Any) -> Any:
    init = functools.partial(model.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), *inputs)["params"]


def _power_gossip(
    name: str,
    factor: float,
    options: Mapping[str, Any],
    published: Published = Published(),
    seeds: tuple[int, ...] = SEEDS,
) -> Method:
    """Nothing was searched for PowerGossip: it has what D-PSGD has."""
    return Method(
        f"PowerGossip, {name}",
        djax.power_gossip,
        options,
        factor,
        seeds=seeds,
        published=published,
    )


RATE = {"consensus_rate": 1.308}
"""The best on a ring of 8, for all methods that need not tune it."""
SIGN, TOP = {"compressor": compressors.sign()}, {"compressor": compressors.top_k(0.01)}

CIFAR10 = Configuration(
    name="CIFAR-10, ResNet-20",
    shapes=resnet20_shapes,
    split="iid, drawn anew in each epoch",
    workers=8,
    batch_size=128,
    epochs=300,
    learning_rate=0.1,
    warmup_epochs=5,
    milestones=(150, 225),
    momentum=0.9,
    nesterov=True,
    weight_decay=1e-4,
    steps_per_epoch=STEPS,
    methods=(
        Method(
            "all-reduce",
            djax.all_reduce,
            {},
            factor=11.3,
            tried={"F": (8, 11.3, 16)},
            overlap=False,
        ),
        Method(
            "D-PSGD",
            djax.gossip,
            RATE,
            factor=11.3,
            tried={"F": (8, 11.3, 16)},
            published=Published(1_089_896, 1, 101.9),
        ),
        Method(
            "CHOCO, sign",
            djax.choco_gossip,
            {"consensus_rate": 0.45, **SIGN},
            factor=16,
            published=Published(34_320, 32, 3.21),
        ),
        Method(
            "CHOCO, sign, untuned",
            djax.choco_gossip,
            {**RATE, **SIGN},
            factor=11.3,
            published=Published(34_320, 32, 3.21),
        ),
        Method(
            "CHOCO, top 1 %",
            djax.choco_gossip,
            {"consensus_rate": 0.0375, **TOP},
            factor=11.3,
            published=Published(32_952, 33, 3.08),
        ),
        Method(
            "DeepSqueeze, sign",
            djax.deep_squeeze,
            {"consensus_rate": 0.01, **SIGN},
            factor=4.8,
            published=Published(34_320, 32, 3.21),
        ),
        Method(
            "Moniqua, 2 bits",
            djax.moniqua,
            {"theta": 0.25, "consensus_rate": 0.005},
            factor=4,
            published=Published(68_118.5, 16, 6.37),
        ),
        _power_gossip("1 iteration", 11.3, RATE, Published(19_410, 56, 1.81)),
        _power_gossip(
            "2 iterations",
            11.3,
            {**RATE, "iterations": 2},
            Published(32_508, 34, 3.04),
        ),
        _power_gossip(
            "1 it., random",
            11.3,
            {**RATE, "warm_start": False},
            Published(19_410, 56, 1.81),
            seeds=SEEDS[:4],
        ),
        _power_gossip(
            "2 it., random",
            11.3,
            {**RATE, "iterations": 2, "warm_start": False},
            Published(32_508, 34, 3.04),
            seeds=SEEDS[:4],
        ),
    ),
)

_TWO = SEEDS[:2]
WIKITEXT2 = Configuration(
    name="WikiText-2, LSTM",
    shapes=lstm_shapes,
    split="consecutive parts of the text, a worker's always the same",
    workers=16,
    batch_size=64,
    epochs=90,
    learning_rate=1.25,
    warmup_epochs=5,
    milestones=(60, 80),
    clip=0.4,
    sequence_length=30,
    dropout=0.4,
    methods=(
        Method(
            "all-reduce",
            djax.all_reduce,
            {},
            factor=38,
            tried={"F": (28, 38)},
            seeds=_TWO,
            overlap=False,
        ),
        Method(
            "D-PSGD",
            djax.gossip,
            {},
            factor=38,
            tried={"F": (28, 38)},
            seeds=_TWO,
            published=Published(ratio=1),
        ),
        Method(
            "CHOCO, top 1 %",
            djax.choco_gossip,
            {"consensus_rate": 0.01, **TOP},
            factor=38,
            tried={"consensus_rate": (0.01, 0.1)},
            seeds=_TWO,
        ),
        Method(
            "CHOCO, sign",
            djax.choco_gossip,
            {"consensus_rate": 0.8, **SIGN},
            factor=38,
            tried={"consensus_rate": (0.4, 0.6, 0.8, 1.0)},
            seeds=_TWO,
        ),
        Method(  # The published code does not say which of the grid it was to be.
            "DeepSqueeze, sign",
            djax.deep_squeeze,
            {"consensus_rate": 0.1, **SIGN},
            factor=28,
            tried={"F": (28, 38), "consensus_rate": (0.1, 0.2, 0.4, 0.8)},
            seeds=SEEDS[:1],
        ),
        *(
            _power_gossip(
                f"{n} iterations",
                38,
                {"iterations": n},
                Published(ratio=ratio),
                seeds=_TWO,
            )
            for n, ratio in ((8, 120), (16, 66), (32, 35))
        ),
        _power_gossip(
            "32 it., random",
            38,
            {"iterations": 32, "warm_start": False},
            Published(ratio=35),
            seeds=_TWO,
        ),
        *(
            _power_gossip(
                f"rank {rank}, {n} it.",
                38,
                {"rank": rank, "iterations": n},
                Published(ratio=35),
                seeds=_TWO,
            )
            for rank, n in ((8, 4), (4, 8), (2, 16))
        ),
    ),
)

CONFIGURATIONS = (CIFAR10, WIKITEXT2)


def learning_rate(
    configuration: Configuration, method: Method, steps_per_epoch: int
) -> optax.Schedule:
    """Linear warm-up to the method's factor, then a staircase, as published.

    Args:
      configuration: whose epochs count.
      method: whose factor counts.
      steps_per_epoch: of the data.

    Returns:
      The schedule. A step has the learning rate of the time when it is over.
    """
    epochs = configuration.epochs
    base = BaseOptimizer(
        learning_rate=method.factor * configuration.learning_rate,
        warmup_from=configuration.learning_rate,
        warmup=configuration.warmup_epochs / epochs,
        decay_at=tuple(epoch / epochs for epoch in configuration.milestones),
        rate_at_end=True,
    )
    return learning_rate_schedule(base, epochs * steps_per_epoch)


def make_optimizer(
    configuration: Configuration,
    method: Method,
    topology: Topology,
    communicator: Communicator,
    steps_per_epoch: int,
) -> optax.GradientTransformationExtraArgs:
    """Makes the method's optimizer, to be used as any of optax.

    Args:
      configuration: how the task is learned.
      method: who averages.
      topology: who talks to whom.
      communicator: how messages travel.
      steps_per_epoch: of the data.

    Returns:
      Clipping, weight decay, SGD and the mechanism, in a chain.
    """
    links = []
    if configuration.clip:
        links.append(optax.clip_by_global_norm(configuration.clip))
    if configuration.weight_decay:
        links.append(
            optax.add_decayed_weights(configuration.weight_decay, all_but_norms)
        )
    rate = learning_rate(configuration, method, steps_per_epoch)
    links.append(
        optax.sgd(rate, configuration.momentum, nesterov=configuration.nesterov)
    )
    return optax.chain(*links, make_mechanism(method, topology, communicator))


def make_mechanism(
    method: Method, topology: Topology, communicator: Communicator
) -> optax.GradientTransformation:
    """Makes what a method averages by.

    Args:
      method: who averages.
      topology: who talks to whom.
      communicator: how messages travel.

    Returns:
      The last link of the method's optimizer.
    """
    options = {**method.options, "overlap": method.overlap}
    if method.mechanism is djax.all_reduce:
        return djax.all_reduce(communicator, **options)
    return method.mechanism(topology, communicator, **options)
