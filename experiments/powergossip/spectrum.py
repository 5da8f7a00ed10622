r"""The spectrum figure, on handwritten digits: of which rank neighbours' models differ.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.spectrum           # 16 workers, 90 epochs
    python -m experiments.powergossip.spectrum --smoke   # seconds

The protocol is the paper's: 16 workers with data of their own on a ring with weights
1/3; PowerGossip of rank 1 with 32 iterations in each step, which averages the models
before the step's update; plain SGD with warm-up over 5 of 90 epochs, and decays after
epochs 60 and 80. After epochs 1, 50, 65 and 89 the singular values of :math:`x_i - x_j`
are recorded for three pairs of neighbours. The task is scaled down: digits of 8 x 8
pixels, whose classes are split by a Dirichlet distribution with alpha 0.1, and an MLP
with layers of 128 and 128 units replace WikiText-2 and an LSTM. PowerGossip with 1
iteration and gossip without compression are shown too. All methods have the same
learning rate. The run takes 1 minute on 2 cores.

Expect the differences under gossip to be of low rank at all times, which makes
compression by low rank effective. Of a 128 x 128 matrix, the first direction holds 70
to 90 % of the squared norm and the first eight hold 98 %; with independent entries they
would hold 3 and 21 %. After one epoch the same holds under PowerGossip. Later
PowerGossip, which averages 32 directions in each step, has removed the leading
directions. The differences that remain are small but spread over all directions: their
singular values are flat, and the smallest are above those of gossip. Their norm is a
third to a half of gossip's while the learning rate is large, and about the same at the
end. With 1 iteration PowerGossip sends a 47th of gossip's bytes, and the differences
stay large in all directions. The last singular value of the last layer is zero, since
the softmax ignores a change that is common to all classes.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import communicators, simulation, topologies

from ..lib import figures, tasks
from ..lib.optimizers import BaseOptimizer, learning_rate_schedule

PAIRS = ((0, 1), (4, 5), (8, 9))
"""The pairs of neighbours that the paper shows."""
EPOCHS, RECORDED = 90, (1, 50, 65, 89)
RANKS = (1, 2, 4, 8)
"""Numbers of singular values whose share of the squared norm is shown."""
WORKERS, BATCH_SIZE, SPLIT = 16, 16, "dirichlet:0.1"
BASE = BaseOptimizer(learning_rate=0.2, warmup=5 / 90, decay_at=(60 / 90, 80 / 90))
FLOOR = 1e-6
"""Smaller singular values are rounding errors of float32."""
RING, COMMUNICATOR = topologies.ring(WORKERS), communicators.simulated(WORKERS)
METHODS = {
    "gossip": djax.gossip(RING, COMMUNICATOR, overlap=True),
    "PowerGossip, 1 it.": djax.power_gossip(RING, COMMUNICATOR, overlap=True),
    "PowerGossip, 32 it.": djax.power_gossip(
        RING, COMMUNICATOR, iterations=32, overlap=True
    ),
}
COLORS = dict(zip(METHODS, ("tab:gray", "tab:orange", "tab:blue"), strict=True))


def difference_spectra(params: Any) -> Iterator[tuple[str, np.ndarray, tuple]]:
    """Computes the singular values of the differences between workers' matrices.

    A leaf `[workers, ..., k]` of at least three dimensions is a matrix `[m, k]` of each
    worker. For each of them the path in the tree, the singular values
    `[pairs, min(m, k)]`, the largest first, and the shape are yielded.
    """
    one, other = np.transpose(PAIRS)
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if leaf.ndim > 2:
            name = jax.tree_util.keystr(path, simple=True, separator="/")
            matrix = np.asarray(leaf, np.float64).reshape(len(leaf), -1, leaf.shape[-1])
            difference = matrix[one] - matrix[other]
            yield name, np.linalg.svd(difference, compute_uv=False), matrix.shape[1:]


def _shares(values: np.ndarray) -> str:
    """Tells how many percent of the squared norm the first singular values hold.

    There is a number for each of :data:`RANKS`, the mean over the pairs.
    """
    squares = np.square(values)
    carried = squares.cumsum(1) / squares.sum(1, keepdims=True)
    last = carried.shape[1] - 1
    means = [carried[:, min(rank - 1, last)].mean() for rank in RANKS]
    return " ".join(f"{100 * mean:3.0f}" for mean in means)


def compute(hidden: Sequence[int], epochs: int) -> Iterator[figures.Record]:
    """Trains with every method, and records the spectra of the workers' differences.

    With fewer `epochs` than :data:`EPOCHS`, those that are recorded are scaled.
    """
    setting = tasks.Setting(WORKERS, range(WORKERS), SPLIT, BATCH_SIZE, seed=0)
    task = tasks.digits(setting, hidden)
    rate = learning_rate_schedule(BASE, task.steps_per_epoch * epochs)
    start = task.init(jax.random.key(0))
    evaluate = jax.jit(COMMUNICATOR.spmd(task.assess))
    due = {max(1, round(epoch / EPOCHS * epochs)) for epoch in RECORDED}
    for name, mechanism in tqdm(METHODS.items(), desc="spectrum", unit="method"):
        optimizer = optax.chain(optax.sgd(rate), mechanism)
        sent = djax.communication_cost(optimizer, start, RING).mean_bytes
        params = communicators.replicate(COMMUNICATOR, start)
        workers = simulation.init_workers(optimizer, COMMUNICATOR, params)
        steps = simulation.make_steps(task.gradient_fn, optimizer, COMMUNICATOR)
        for epoch in range(1, max(due) + 1):
            workers, measured = steps(workers, task.epoch(epoch))
            if epoch not in due:
                continue
            found = difference_spectra(workers.params)
            names, spectra, shapes = zip(*found, strict=True)
            values = [list(map(figures.rounded, x)) for x in spectra]
            scores = np.asarray(evaluate(workers.params)["accuracy"])
            accuracy = {"mean": float(scores.mean()), "worst": float(scores.min())}
            yield {
                "method": name,
                "epoch": epoch,
                "bytes_per_step": sent,
                "loss": float(np.asarray(measured["loss"]).mean()),
                "accuracy": accuracy,
                "shapes": dict(zip(names, shapes, strict=True)),
                "spectra": dict(zip(names, values, strict=True)),
            }


def make_tables(records: list[figures.Record]) -> list:
    """Makes the tables of spectra and of scores."""
    return [_make_spectra(records), _make_scores(records)]


def _make_spectra(records: list[figures.Record]):
    """Shows the norms of the differences, and how few directions hold them."""
    rows = []
    for name, shape in records[0]["shapes"].items():
        for epoch in figures.distinct(records, "epoch"):
            row: list[Any] = [f"{name}, {shape[0]} × {shape[1]}", str(epoch)]
            for record in figures.select(records, epoch=epoch):
                values = np.asarray(record["spectra"][name])
                norm = np.linalg.norm(values, axis=1).mean()
                row += [f"{norm:.2g}", _shares(values)]
            rows.append(row)
        flat = np.random.default_rng(0).standard_normal(shape)
        shares = _shares(np.linalg.svd(flat, compute_uv=False)[None])
        rows.append(["  independent entries", "", "", shares, *4 * [""]])
    columns = ["matrix", "epoch"]
    for method in METHODS:
        who, _, count = method.partition(", ")
        columns += [f"{who}\n{count or 'exact'}: norm", "shares"]
    ranks = ", ".join(map(str, RANKS))
    return figures.table(
        "Spectrum figure: differences between neighbours' matrices, mean of "
        f"{len(PAIRS)} pairs",
        columns,
        rows,
        f"shares: of the squared norm, in percent, that the first {ranks} singular "
        "values carry. independent entries: shares of a random matrix.\nThe paper "
        "shows curves, no numbers.",
    )


def _make_scores(records: list[figures.Record]):
    """Shows the bytes that the methods send, and the accuracies of their workers."""
    rows = []
    for method in METHODS:
        mine = figures.select(records, method=method)
        accuracies = [
            f"{100 * x['mean']:.1f}, {100 * x['worst']:.1f}"
            for x in figures.column(mine, "accuracy")
        ]
        rows.append([method, f"{mine[0]['bytes_per_step']:,}", *accuracies])
    epochs = [f"accuracy after {epoch}" for epoch in figures.distinct(records, "epoch")]
    return figures.table(
        "Test accuracy of the workers, mean and worst, in percent",
        ["method", "bytes per step", *epochs],
        rows,
    )


def draw(records: list[figures.Record]):
    """Draws the singular values; each matrix has a row, and each epoch a column."""
    shapes, epochs = records[0]["shapes"], figures.distinct(records, "epoch")
    size = 1.5 + 2.4 * len(epochs), 2.2 * len(shapes)
    figure, panels = figures.panels(
        size, len(shapes), len(epochs), sharex="row", sharey=True
    )
    for row, (name, shape) in zip(panels, shapes.items(), strict=True):
        for axes, epoch in zip(row, epochs, strict=True):
            for record in figures.select(records, epoch=epoch):
                color = COLORS[record["method"]]
                for values in record["spectra"][name]:
                    axes.plot(range(1, 1 + len(values)), values, color=color, lw=1)
            axes.set(yscale="log", ylim=(FLOOR, 1))
        row[0].set_ylabel(f"{name}\n{shape[0]} × {shape[1]}", fontsize=9)
    for axes, epoch in zip(panels[0], epochs, strict=True):
        axes.set_title(f"after epoch {epoch}", fontsize=10)
    handles = [figures.handle(name, color=color) for name, color in COLORS.items()]
    figure.legend(handles=handles, loc="outside upper center", ncols=3, fontsize=9)
    figure.supxlabel("number of the singular value", fontsize=10)
    figure.supylabel(
        "singular values of $x_i - x_j$, for three pairs of neighbours", fontsize=10
    )
    return figure


main = figures.script(__name__, full=((128, 128), EPOCHS), smoke=((), 2))

if __name__ == "__main__":
    main()
