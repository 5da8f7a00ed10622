r"""Counts the bytes that the paper's CIFAR-10 and WikiText-2 configurations send.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.configurations           # every method
    python -m experiments.powergossip.configurations --smoke   # one per mechanism

The script shows all settings of :mod:`experiments.configs.powergossip`. It does not
train a ResNet-20 on CIFAR-10, nor an LSTM on WikiText-2: it counts what each method
would send for the shapes of those models. Each optimizer learns handwritten digits for
three steps, to show that it runs. The run takes 1 minute on 2 cores.

Expect the published numbers of bytes, but for top-k and half a byte of Moniqua.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
import optax
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


def try_out(
    optimizer: optax.GradientTransformation,
    communicator: djax.Communicator,
    batch_size: int,
) -> list[float]:
    """Trains a linear model of handwritten digits for three steps, to see that it runs.

    Returns the workers' mean losses; a training that diverges raises an error.
    """
    n = communicator.size
    setting = tasks.Setting(n, range(n), "iid", batch_size, seed=0)
    task = tasks.digits(setting, hidden=())
    params = communicators.replicate(communicator, task.init(jax.random.key(0)))
    workers = simulation.init_workers(optimizer, communicator, params)
    run = simulation.make_steps(task.gradient_fn, optimizer, communicator)
    epochs = map(task.epoch, range(3))  # There may be one step in each.
    batches = jax.tree.map(lambda *xs: np.concatenate(xs, axis=1)[:, :3], *epochs)
    _, measured = run(workers, batches)
    return figures.rounded(np.asarray(measured["loss"]).mean(0))


def compute(choose: Callable[[Sequence[Row]], list[Row]]) -> list[figures.Record]:
    """Counts what the rows of both tables send, and tries their optimizers out.

    `choose` selects the rows of a table that are wanted; it must keep D-PSGD.
    """
    jobs = [(name, row) for name in TABLES for row in choose(TABLES[name].TABLE.rows)]
    records: list[figures.Record] = []
    for name, row in tqdm(jobs, desc="configurations", unit="method"):
        config, communicator = row.config, make_communicator(row.config)
        assert config.epochs is not None
        ring, steps = topologies.ring(communicator.size), config.epochs * STEPS
        optimizer = algorithms.make_optimizer(
            config.averaging, config.base, steps, [ring], communicator
        )
        cost = djax.communication_cost(optimizer, SHAPES[name](), communicator)
        records.append(
            {
                "configuration": name,
                "method": row.method,
                "peak_learning_rate": row.learning_rate,
                "options": _options(config),
                "bytes_per_step": cost.mean_bytes,
                "messages_per_step": cost.mean_messages,
                "digits_loss": try_out(optimizer, communicator, config.batch_size),
            }
        )
    for r in records:
        (gossip,) = figures.column(
            records, "bytes_per_step", configuration=r["configuration"], method="D-PSGD"
        )
        r["ratio"] = float(f"{gossip / r['bytes_per_step']:.4g}")
    return records


def _options(config: Config) -> dict[str, Any]:
    """Returns the options of averaging that the method's name does not tell."""
    options, defaults = flatten(config.averaging), flatten(Algorithm())
    for named in ("algorithm", "compressor", "compressor_options"):
        del options[named]
    return {key: value for key, value in options.items() if value != defaults[key]}


def make_settings():
    """Shows the settings that all rows of a configuration have in common."""
    commons = [flatten(module.COMMON) for module in TABLES.values()]
    defaults = flatten(Config())
    rows = [
        [name.replace("_", " "), *(_text(common[name]) for common in commons)]
        for name in defaults
        if any(common[name] != defaults[name] for common in commons)
    ]
    leaves = [jax.tree.leaves(shapes()) for shapes in SHAPES.values()]
    for what, most_axes in (("parameters", 4), ("in vectors", 1)):
        numbers = [sum(x.size for x in xs if x.ndim <= most_axes) for xs in leaves]
        rows.append([what, *(f"{number:,}" for number in numbers)])
    return figures.table("Configurations", ["", *TABLES], rows)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        texts = [f"{name} {_text(item)}" for name, item in value.items()]
        return ", ".join(texts).replace("consensus_rate", "rate") or "–"
    if isinstance(value, tuple):
        return ", ".join(map(_text, value)) or "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return "–" if value is None else f"{value}"


def make_methods(name: str, records: list[figures.Record]):
    """Shows the rows' own settings, and the losses in their three steps."""
    rows = {row.method: row for row in TABLES[name].TABLE.rows}
    lines = []
    for record in figures.select(records, configuration=name):
        row, losses = rows[record["method"]], record["digits_loss"]
        options = {k: v for k, v in record["options"].items() if k != "overlap"}
        seeds = "–".join(map(str, sorted({min(row.seeds), max(row.seeds)})))
        factor = row.learning_rate / row.config.base.warmup_from
        line = [row.method, factor, row.learning_rate, _text(options), _text(row.tried)]
        lines.append([*line, seeds, f"{losses[0]:.2f}, {losses[-1]:.2f}"])
    return figures.table(
        f"Methods of {name}",
        ["method", "F", "peak", "options", "tried", "seeds", "digits"],
        lines,
        "F: the peak learning rate over that before the warm-up. tried: other peaks. "
        "rate: consensus_rate. digits: losses of the first and the last of three "
        "steps.\nAll but all-reduce average models before the step's update.",
    )


def _published(record: figures.Record) -> Published:
    return PUBLISHED[record["configuration"]].get(record["method"], Published())


def make_bytes(records: list[figures.Record]):
    """Shows what each method sends here, and in the published code."""
    rows = []
    for record in records:
        name, sent = record["configuration"], record["bytes_per_step"]
        published = _published(record)
        each = None if record["method"] == "all-reduce" else sent / NEIGHBORS
        row: list[Any] = [f"{name.split(',')[0]}: {record['method']}"]
        for count in (each, published.bytes):
            row.append(count and f"{count:,.1f}".removesuffix(".0"))
        if each and published.bytes:
            off = f"{100 * (each / published.bytes - 1):+.3g} %"
            row.append("exact" if each == published.bytes else off)
        else:
            row.append(None)
        mib = f"{sent * STEPS / 2**20:.2f}" if name == CIFAR10 else None
        row += [f"{record['ratio']:.1f}", published.ratio, mib, published.mib]
        rows.append([*row, record["messages_per_step"]])
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


def make_tables(records: list[figures.Record]) -> list:
    """Makes the tables of settings, methods and bytes."""
    methods = [make_methods(name, records) for name in TABLES]
    return [make_settings(), *methods, make_bytes(records)]


def draw(records: list[figures.Record]):
    """Draws the bytes of a worker in a step, in a panel for each configuration."""
    figure, (panels,) = figures.panels((11, 4.2), 1, len(TABLES))
    for axes, name in zip(panels, TABLES, strict=True):
        mine = figures.select(records, configuration=name)
        methods, sent = (figures.column(mine, k) for k in ("method", "bytes_per_step"))
        axes.barh(range(len(mine)), sent, color=list(map(_color, methods)))
        for i, record in enumerate(mine):
            published = NEIGHBORS * (_published(record).bytes or 0)
            end = 1.15 * max(sent[i], published)
            axes.text(end, i, f"{record['ratio']:.3g}×", va="center", size=8)
            if published:
                axes.plot(published, i, "o", color="k", mfc="none", ms=5)
        axes.set_yticks(range(len(mine)), methods, fontsize=8)
        axes.set(xscale="log", title=name, xlim=(min(sent) / 3, 6 * max(sent)))
        axes.set_xlabel("bytes a worker sends in a step")
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.set_axisbelow(True)
    figure.supxlabel(
        "numbers: D-PSGD sends so many times as much. circles: the published code",
        fontsize=8,
    )
    return figure


def _color(method: str) -> str:
    if method.startswith("PowerGossip"):
        return "tab:blue"
    return "black" if method in ("all-reduce", "D-PSGD") else "tab:gray"


main = figures.script(__name__, full=(list,), smoke=(one_of_each_algorithm,))

if __name__ == "__main__":
    main()
