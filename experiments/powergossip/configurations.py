r"""Counts the bytes that the paper's CIFAR-10 and WikiText-2 configurations send.

Vogels, Karimireddy and Jaggi, PowerGossip: Practical Low-Rank Communication Compression
in Decentralized Deep Learning, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.configurations           # every method
    python -m experiments.powergossip.configurations --smoke   # one per mechanism

The script shows all settings of :mod:`experiments.configs.powergossip`. It does not
train a ResNet-20 on CIFAR-10, nor an LSTM on WikiText-2: it counts what each method
would send for the shapes of those models. To show that each optimizer runs, it learns
handwritten digits for three steps on the configured number of workers. The run takes 1
minute on 2 cores.

Expect the published numbers of bytes, but for top-k and half a byte of Moniqua.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
import optax
from matplotlib.figure import Figure
from rich.table import Table
from tqdm import tqdm

import djax
from djax import communicators, simulation, topologies

from ..configs.powergossip import table_cifar10, table_wikitext2
from ..lib import algorithms, figures, tasks
from ..lib.algorithms import Algorithm
from ..lib.config import Config, flatten, make_communicator
from ..lib.tables import Row, one_of_each_algorithm
from .published import CIFAR10, PUBLISHED, SHAPES, WIKITEXT2, Published

STEPS = 49
"""Number of steps in an epoch of CIFAR-10 with 8 workers and batches of 128."""
NEIGHBORS = 2
"""Number of neighbours of each worker on a ring."""


TABLES = {CIFAR10: table_cifar10, WIKITEXT2: table_wikitext2}


def make_optimizer(
    config: Config, communicator: djax.Communicator
) -> optax.GradientTransformation:
    """Makes the optimizer of a row, with epochs of `STEPS` steps."""
    assert config.epochs is not None
    ring = topologies.ring(communicator.size)
    steps = config.epochs * STEPS
    return algorithms.make_optimizer(
        config.averaging, config.base, steps, [ring], communicator
    )


def try_out(config: Config, steps: int = 3) -> list[float]:
    """Trains a linear model of handwritten digits briefly, to see that it runs.

    Args:
      config: configuration of the workers and their optimizer.
      steps: number of steps.

    Returns:
      The mean loss of the workers in each step.

    Raises:
      FloatingPointError: if a loss is not finite.
    """
    communicator = make_communicator(config)
    n = communicator.size
    setting = tasks.Setting(n, range(n), "iid", config.batch_size, seed=0)
    task = tasks.digits(setting, hidden=())
    optimizer = make_optimizer(config, communicator)
    workers = simulation.init_workers(
        optimizer,
        communicator,
        communicators.replicate(communicator, task.init(jax.random.key(0))),
    )
    run = simulation.make_steps(task.gradient_fn, optimizer, communicator)
    epochs = [task.epoch(epoch) for epoch in range(steps)]
    batches = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1)[:, :steps], *epochs)
    _, measured = run(workers, batches)
    losses = np.asarray(measured["loss"])
    if not np.isfinite(losses).all():
        raise FloatingPointError(f"{config.averaging.algorithm} diverges.")
    return [float(f"{loss:.4g}") for loss in losses.mean(0)]


def compute(choose: Callable[[Sequence[Row]], list[Row]]) -> list[dict[str, Any]]:
    """Counts what the rows of both tables send, and tries their optimizers out.

    Args:
      choose: selects the rows of a table that are wanted; it must keep D-PSGD.

    Returns:
      A record for each row.
    """
    records: list[dict[str, Any]] = []
    jobs = [(name, row) for name in TABLES for row in choose(TABLES[name].TABLE.rows)]
    for name, row in tqdm(jobs, desc="configurations", unit="method"):
        communicator = make_communicator(row.config)
        optimizer = make_optimizer(row.config, communicator)
        cost = djax.communication_cost(optimizer, SHAPES[name](), communicator)
        records.append(
            {
                "configuration": name,
                "method": row.method,
                "peak_learning_rate": row.learning_rate,
                "options": _options(row),
                "bytes_per_step": cost.mean_bytes,
                "messages_per_step": cost.mean_messages,
                "digits_loss": try_out(row.config),
            }
        )
    for r in records:
        name = r["configuration"]
        (gossip,) = figures.select(records, configuration=name, method="D-PSGD")
        r["ratio"] = float(f"{gossip['bytes_per_step'] / r['bytes_per_step']:.4g}")
    return records


def _options(row: Row) -> dict[str, Any]:
    """Returns the options of averaging that the method's name does not tell."""
    options, defaults = (flatten(x) for x in (row.config.averaging, Algorithm()))
    unnamed = options.keys() - {"algorithm", "compressor", "compressor_options"}
    return {
        name: value
        for name, value in options.items()
        if name in unnamed and value != defaults[name]
    }


def make_settings():
    """Shows the settings that all rows of a configuration have in common."""
    commons = [flatten(module.COMMON) for module in TABLES.values()]
    defaults = flatten(Config())
    rows = [
        [name.replace("_", " "), *(_text(common[name]) for common in commons)]
        for name in defaults
        if any(common[name] != defaults[name] for common in commons)
    ]
    for what, wanted in (("parameters", lambda x: True), ("in vectors", _is_vector)):
        numbers = (
            sum(x.size for x in jax.tree.leaves(shapes()) if wanted(x))
            for shapes in SHAPES.values()
        )
        rows.append([what, *(f"{number:,}" for number in numbers)])
    return figures.table("Configurations", ["", *TABLES], rows)


def _is_vector(x: jax.ShapeDtypeStruct) -> bool:
    return len(x.shape) < 2


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return _settings(value, ", ") or "–"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value))
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else f"{value}"


def make_methods(name: str, records: list[dict]):
    """Shows the rows' own settings, and the losses in their three steps."""
    rows = {row.method: row for row in TABLES[name].TABLE.rows}
    lines = []
    for record in records:
        if record["configuration"] == name:
            row, losses = rows[record["method"]], record["digits_loss"]
            options = {k: v for k, v in record["options"].items() if k != "overlap"}
            lines.append(
                [
                    row.method,
                    row.learning_rate / row.config.base.warmup_from,
                    row.learning_rate,
                    _settings(options, ", "),
                    _text(row.tried) or None,
                    "–".join(map(str, sorted({min(row.seeds), max(row.seeds)}))),
                    f"{losses[0]:.2f}, {losses[-1]:.2f}",
                ]
            )
    return figures.table(
        f"Methods of {name}",
        ["method", "F", "peak", "options", "tried", "seeds", "digits"],
        lines,
        "F: the peak learning rate over that before the warm-up. tried: other peaks. "
        "rate: consensus_rate. digits: losses of the first and the last of three "
        "steps.\nAll but all-reduce average models before the step's update.",
    )


def _settings(values: Mapping[str, Any], separator: str) -> str | None:
    texts = [f"{name} {_text(value)}" for name, value in values.items()]
    return separator.join(texts).replace("consensus_rate", "rate") or None


def _published(record: dict) -> Published:
    return PUBLISHED[record["configuration"]].get(record["method"], Published())


def make_table(records: list[dict]):
    """Shows what each method sends here, and in the published code."""
    rows = []
    for record in records:
        name, sent = record["configuration"], record["bytes_per_step"]
        published = _published(record)
        each = None if record["method"] == "all-reduce" else sent / NEIGHBORS
        mib = f"{sent * STEPS / 2**20:.2f}" if name == CIFAR10 else None
        rows.append(
            [
                f"{name.split(',')[0]}: {record['method']}",
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


def make_tables(records: list[dict]) -> list[Table]:
    """Makes the tables of settings, methods and bytes."""
    methods = [make_methods(name, records) for name in TABLES]
    return [make_settings(), *methods, make_table(records)]


def draw(records: list[dict]) -> Figure:
    """Draws the bytes of a worker in a step, in a panel for each configuration."""
    figure, (panels,) = figures.panels((11, 4.2), 1, len(TABLES))
    for axes, name in zip(panels, TABLES, strict=True):
        mine = figures.select(records, configuration=name)
        sent = [r["bytes_per_step"] for r in mine]
        published = [_published(r).bytes for r in mine]
        axes.barh(range(len(mine)), sent, color=[_color(r) for r in mine])
        for i, (record, known) in enumerate(zip(mine, published, strict=True)):
            end = max(record["bytes_per_step"], NEIGHBORS * (known or 0))
            text = f"{record['ratio']:.3g}×"
            axes.text(1.15 * end, i, text, va="center", size=8)
            if known:
                axes.plot(NEIGHBORS * known, i, "o", color="k", mfc="none", ms=5)
        axes.set_yticks(range(len(mine)), [r["method"] for r in mine], fontsize=8)
        axes.set(xscale="log", title=name)
        axes.set_xlabel("bytes a worker sends in a step")
        axes.set_xlim(min(sent) / 3, 6 * max(sent))
        axes.invert_yaxis()
        axes.grid(False, axis="y")
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


main = figures.script(__name__, full=(list,), smoke=(one_of_each_algorithm,))

if __name__ == "__main__":
    main()
