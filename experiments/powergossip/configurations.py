r"""The paper's CIFAR-10 and WikiText-2 runs as data, and the bytes that they send.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.configurations           # every method
    python -m experiments.powergossip.configurations --smoke   # one a mechanism

:data:`CIFAR10` and :data:`WIKITEXT2` hold all settings of the published experiments,
the grids that were searched among them, and :func:`make_optimizer` makes each method's
optimizer. This script does not train a ResNet-20 on CIFAR-10, nor an LSTM on
WikiText-2. It counts what each method would send for the shapes of those models, and
has each optimizer learn handwritten digits for three steps on the configured number of
workers, which shows that it can be made and runs. 1 minute on 2 cores.

Where the optimizers differ from the published code: weight decay sees a worker's model
before it is averaged, there after; it spares all of the normalization's parameters,
there not those of the first layer and of the downsampling (224 numbers); PowerGossip
iterates in the first step too, where all models are equal, there not; Moniqua's noise
is shared by the workers, as in its paper, there not; top-k sends indices of 32 bits,
there of 64.

Expect the published numbers of bytes exactly, but for top-k and half a byte of Moniqua.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import djax
from djax import Communicator, Topology, communicators, compressors
from djax import topologies as graphs

from ..common import figures, tasks

NEIGHBORS = 2
"""Of each worker, on a ring."""
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


def resnet20_shapes() -> dict[str, Any]:
    """The parameters of ResNet-20 with batch normalization, 272,474 numbers.

    Returns:
      A tree in the layout of flax.
    """

    def layers(*kernels: tuple[int, ...]) -> dict[str, Any]:
        tree: dict[str, Any] = {}
        for i, kernel in enumerate(kernels):
            vectors = {"scale": _shape(kernel[-1]), "bias": _shape(kernel[-1])}
            tree[f"Conv_{i}"] = {"kernel": _shape(*kernel)}
            tree[f"BatchNorm_{i}"] = vectors
        return tree

    tree, before = layers((3, 3, 3, 16)), 16
    for block, width in enumerate(3 * [16] + 3 * [32] + 3 * [64]):
        kernels = [(3, 3, before, width), (3, 3, width, width)]
        if before != width:  # The residual connection has to change its width.
            kernels.append((1, 1, before, width))
        tree[f"Block_{block}"] = layers(*kernels)
        before = width
    tree["Dense_0"] = {"kernel": _shape(64, 10), "bias": _shape(10)}
    return tree


def lstm_shapes(vocabulary: int = 28_869, width: int = 650) -> dict[str, Any]:
    """The parameters of the three-layer LSTM whose decoder is its embedding.

    Args:
      vocabulary: words; how many depends on the tokenizer.
      width: of embedding and layers.

    Returns:
      A tree in the layout of PyTorch.
    """
    layer = {
        "weight_ih": _shape(4 * width, width),
        "weight_hh": _shape(4 * width, width),
        "bias_ih": _shape(4 * width),
        "bias_hh": _shape(4 * width),
    }
    return {
        "encoder": {"weight": _shape(vocabulary, width)},
        **{f"rnn_{i}": layer for i in range(3)},
        "decoder": {"bias": _shape(vocabulary)},
    }


def _shape(*shape: int) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, jnp.float32)


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
    warmup = configuration.warmup_epochs * steps_per_epoch
    milestones = jnp.asarray(configuration.milestones) * steps_per_epoch

    def schedule(step):
        done = jnp.asarray(step) + 1
        growth = 1 + (method.factor - 1) * jnp.minimum(done / warmup, 1)
        decays = jnp.sum(done >= milestones)
        return configuration.learning_rate * growth * 0.1**decays

    return schedule


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
        links.append(optax.add_decayed_weights(configuration.weight_decay, is_decayed))
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


def is_decayed(params: Any) -> Any:
    """Which parameters decay: all but those of normalization layers.

    Args:
      params: a tree of dictionaries, in which those layers' names begin with
        `BatchNorm` or `bn`.

    Returns:
      A tree of truth values.
    """

    def decays(path, leaf):
        del leaf
        names = jax.tree_util.keystr(path, simple=True, separator="/").split("/")
        return not any(name.startswith(("BatchNorm", "bn")) for name in names)

    return jax.tree_util.tree_map_with_path(decays, params)


def count(configuration: Configuration, method: Method) -> dict[str, Any]:
    """Counts what a method sends for the model's shapes.

    Args:
      configuration: of which model.
      method: who averages.

    Returns:
      Bytes and messages that a worker sends in a step.
    """
    ring = graphs.ring(configuration.workers)
    communicator = communicators.simulated(configuration.workers)
    mechanism = make_mechanism(method, ring, communicator)
    cost = djax.communication_cost(mechanism, configuration.shapes(), ring)
    return {
        "bytes_per_step": cost.mean_bytes,
        "messages_per_step": cost.mean_messages,
    }


def try_out(
    configuration: Configuration, method: Method, steps: int = 3
) -> list[float]:
    """Trains a linear model of handwritten digits, just long enough to see it run.

    Args:
      configuration: how many workers learn, and how.
      method: who averages.
      steps: how many, the first of an epoch as long as CIFAR-10's.

    Returns:
      The mean loss of the workers in each step.

    Raises:
      FloatingPointError: if a loss is not finite.
    """
    n = configuration.workers
    setting = tasks.Setting(n, range(n), "iid", configuration.batch_size, seed=0)
    task = tasks.digits(setting, hidden=())
    start = task.init(jax.random.key(0))
    epochs = [task.batches(epoch) for epoch in range(steps)]
    batches = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1)[:, :steps], *epochs)
    ring, communicator = graphs.ring(n), communicators.simulated(n)
    optimizer = make_optimizer(configuration, method, ring, communicator, STEPS)

    def worker(batches):
        def step(carry, batch):
            params, state = carry
            grads, _, measured = task.gradient_fn(params, (), batch)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), measured["loss"]

        return jax.lax.scan(step, (start, optimizer.init(start)), batches)[1]

    # Of the time of so few steps, compilation is all.
    fast = {"xla_backend_optimization_level": 0}
    program = jax.jit(communicator.spmd(worker), compiler_options=fast)
    losses = np.asarray(program(batches))
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"{configuration.name}: {method.name} diverges.")
    return [float(f"{loss:.4g}") for loss in losses.mean(0)]


def compute(
    configurations: Sequence[tuple[Configuration, Sequence[Method]]],
) -> list[dict[str, Any]]:
    """Counts and tries out.

    Args:
      configurations: each with those of its methods that are wanted, D-PSGD included.

    Returns:
      A record for each configuration and method.
    """
    records = []
    jobs = [(c, method) for c, methods in configurations for method in methods]
    for configuration, method in tqdm(jobs, desc="configurations", unit="method"):
        options = {k: v for k, v in method.options.items() if k != "compressor"}
        record: dict[str, Any] = {
            "configuration": configuration.name,
            "method": method.name,
            "peak_learning_rate": method.factor * configuration.learning_rate,
            "options": options | {"overlap": method.overlap},
            **count(configuration, method),
            "digits_loss": try_out(configuration, method),
        }
        records.append(record)
    gossip = {
        r["configuration"]: r["bytes_per_step"]
        for r in records
        if r["method"] == "D-PSGD"
    }
    for r in records:
        r["ratio"] = float(f"{gossip[r['configuration']] / r['bytes_per_step']:.4g}")
    return records


def one_a_mechanism(configuration: Configuration) -> list[Method]:
    """The first method of each mechanism."""
    firsts = {m.mechanism: m for m in reversed(configuration.methods)}
    return [m for m in configuration.methods if m in firsts.values()]


def _lookup(record: dict) -> tuple[Configuration, Method]:
    """The configuration and the method that a record is of."""
    return next(
        (configuration, method)
        for configuration in CONFIGURATIONS
        for method in configuration.methods
        if record["configuration"] == configuration.name
        and record["method"] == method.name
    )


def make_settings():
    """What the methods of a configuration have in common."""
    rows = []
    for field in dataclasses.fields(Configuration):
        if field.name in ("name", "shapes", "methods"):
            continue
        values = [
            getattr(configuration, field.name) for configuration in CONFIGURATIONS
        ]
        rows.append([field.name.replace("_", " "), *map(_text, values)])
    for what, wanted in (("parameters", lambda x: True), ("in vectors", _is_vector)):
        numbers = (
            sum(x.size for x in jax.tree.leaves(configuration.shapes()) if wanted(x))
            for configuration in CONFIGURATIONS
        )
        rows.append([what, *(f"{number:,}" for number in numbers)])
    return figures.table(
        "Configurations", ["", *(c.name for c in CONFIGURATIONS)], rows
    )


def _is_vector(x: jax.ShapeDtypeStruct) -> bool:
    return len(x.shape) < 2


def _text(value: Any) -> str:
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "–" if value is None else f"{value}"


def make_methods(configuration: Configuration, records: list[dict]):
    """The methods' own settings, and the losses of their three steps."""
    rows = []
    for record in records:
        if record["configuration"] != configuration.name:
            continue
        _, method = _lookup(record)
        options = {k: v for k, v in record["options"].items() if k != "overlap"}
        losses = record["digits_loss"]
        rows.append(
            [
                method.name,
                method.factor,
                record["peak_learning_rate"],
                _settings(options, ", "),
                _settings(method.tried, "; "),
                "–".join(map(str, sorted({min(method.seeds), max(method.seeds)}))),
                f"{losses[0]:.2f}, {losses[-1]:.2f}",
            ]
        )
    return figures.table(
        f"Methods of {configuration.name}",
        ["method", "F", "peak", "options", "tried", "seeds", "digits"],
        rows,
        "F: the peak learning rate over that before the warm-up. rate: consensus_rate. "
        "digits: losses of the first and the last of three steps.\n"
        "All but all-reduce average models before the step's update.",
    )


def _settings(values: Mapping[str, Any], separator: str) -> str | None:
    texts = [f"{name} {_text(value)}" for name, value in values.items()]
    return separator.join(texts).replace("consensus_rate", "rate") or None


def make_table(records: list[dict]):
    """What is sent, beside what the published code sends."""
    rows = []
    for record in records:
        configuration, method = _lookup(record)
        published, sent = method.published, record["bytes_per_step"]
        each = None if method.mechanism is djax.all_reduce else sent / NEIGHBORS
        mib = None
        if configuration.steps_per_epoch:
            mib = f"{sent * configuration.steps_per_epoch / 2**20:.2f}"
        rows.append(
            [
                f"{configuration.name.split(',')[0]}: {method.name}",
                _bytes(each),
                _bytes(published.bytes),
                _compare(each, published.bytes),
                f"{record['ratio']:.1f}",
                published.ratio,
                mib,
                published.mib,
                record["messages_per_step"],
            ]
        )
    columns = ["method", "bytes", "published", "", "ratio", "published"]
    columns += ["MiB an epoch", "published", "messages a step"]
    return figures.table(
        "What is sent: bytes to each neighbour in each step",
        columns,
        rows,
        "published: from the definitions in its code; for the LSTM rounded ratios. "
        "ratio: what a worker sends in D-PSGD over what it sends here.\n"
        f"MiB an epoch, messages a step: of a worker, to its {NEIGHBORS} neighbours. "
        "all-reduce: its buffer is counted once, which makes half of D-PSGD.\n"
        "top 1 %: an index has 4 bytes here, 8 there, which makes 8 bytes an entry for "
        "12. Moniqua: the last byte is a whole one.\nPowerGossip's vectors travel with "
        "its first message, there in one of their own.",
    )


def _bytes(value: float | None) -> str | None:
    return None if value is None else f"{value:,.1f}".removesuffix(".0")


def _compare(ours: float | None, published: float | None) -> str | None:
    if ours is None or published is None:
        return None
    if ours == published:
        return "exact"
    return f"{100 * (ours / published - 1):+.3g} %"


def draw(records: list[dict]) -> Figure:
    """Bytes of a worker in a step, a panel for each configuration."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    panels = figure.subplots(1, len(CONFIGURATIONS))
    for axes, configuration in zip(panels, CONFIGURATIONS, strict=True):
        mine = [r for r in records if r["configuration"] == configuration.name]
        sent = [r["bytes_per_step"] for r in mine]
        published = [_lookup(r)[1].published.bytes for r in mine]
        axes.barh(range(len(mine)), sent, color=[_color(r) for r in mine])
        for i, (record, known) in enumerate(zip(mine, published, strict=True)):
            end = max(record["bytes_per_step"], NEIGHBORS * (known or 0))
            text = f"{record['ratio']:.3g}×"
            axes.text(1.15 * end, i, text, va="center", size=8)
            if known:
                axes.plot(NEIGHBORS * known, i, "o", color="k", mfc="none", ms=5)
        axes.set_yticks(range(len(mine)), [r["method"] for r in mine], fontsize=8)
        axes.set(xscale="log", title=configuration.name)
        axes.set_xlabel("bytes a worker sends in a step")
        axes.set_xlim(min(sent) / 3, 6 * max(sent))
        axes.invert_yaxis()
        axes.grid(alpha=0.3, axis="x")
        axes.set_axisbelow(True)
    figure.supxlabel(
        "numbers: D-PSGD sends so many times as much. circles: the published code",
        fontsize=8,
    )
    return figure


def _color(record: dict) -> str:
    if record["method"].startswith("PowerGossip"):
        return "tab:blue"
    return "black" if record["method"] in ("all-reduce", "D-PSGD") else "tab:gray"


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.

    Returns:
      The records.
    """
    config = figures.configure(__file__, __doc__, arguments)
    choose = one_a_mechanism if config.smoke else lambda c: c.methods
    records = compute([(c, choose(c)) for c in CONFIGURATIONS])
    methods = [make_methods(c, records) for c in CONFIGURATIONS]
    tables = [make_settings(), *methods, make_table(records)]
    figures.publish(__file__, config, records, tables, draw(records))
    return records


if __name__ == "__main__":
    main()
