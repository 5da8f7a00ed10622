r"""The paper's CIFAR-10 and WikiText-2 configurations, and the bytes that they send.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.configurations           # every method
    python -m experiments.powergossip.configurations --smoke   # one a mechanism

Shows all settings of :mod:`experiments.powergossip.settings`. This script does not
train a ResNet-20 on CIFAR-10, nor an LSTM on WikiText-2. It counts what each method
would send for the shapes of those models, and has each optimizer learn handwritten
digits for three steps on the configured number of workers, which shows that it can be
made and runs. 1 minute on 2 cores.

Expect the published numbers of bytes exactly, but for top-k and half a byte of Moniqua.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from tqdm import tqdm

import djax
from djax import communicators
from djax import topologies as graphs

from ..lib import figures, tasks
from .settings import (
    CONFIGURATIONS,
    STEPS,
    Configuration,
    Method,
    make_mechanism,
    make_optimizer,
)

NEIGHBORS = 2
"""Of each worker, on a ring."""


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
    epochs = [task.epoch(epoch) for epoch in range(steps)]
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
