r"""The consensus figure: error against bits, for all compressed averaging methods.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.consensus           # 20 minutes on 2 cores
    python -m experiments.powergossip.consensus --smoke   # seconds

Eight workers on a ring average one matrix each, without gradients. The matrices are of
two kinds: 100 x 100 independent normal entries, which no matrix of low rank
approximates well; or 64 x 64 pieces of two photographs of scikit-learn, in place of the
paper's faces. The error is :math:`\frac1n \sum_i \|M_i - \bar M\|_F^2`, and the bits
are those that one worker sends.

Uncompressed gossip and PowerGossip use the consensus rate 1.308, which is the best one
on this ring for any data. The other methods are tuned as in the paper, on a grid of 20
rates from 1e-4 to 1.308, or for Moniqua of 10 rates x 10 bounds. All settings are first
compared in short runs, in one program; then the best one and its neighbours in the grid
are compared in full. "Untuned" means the rate 1.308. DeepSqueeze, random-k, QSGD, DCD
and ECD are not in the paper's figure. DCD and ECD have no rate, and each of their
workers sends its start uncompressed first.

Expect PowerGossip to need fewer bits than every untuned method until the error is 1e-4
of the initial one. Uncompressed gossip needs 1.1 times as many bits on the normal
matrices, and twice as many on the photographs. Untuned CHOCO with signs needs 1.8 times
as many on the photographs, and no other untuned method reaches the goal. Of the tuned
methods, CHOCO with a 4-bit quantizer needs half as many bits as PowerGossip on the
normal matrices, and CHOCO with signs two thirds on the photographs; so the best code
and its rate depend on the data. DCD and ECD do not keep the mean, and their error stops
falling early.
"""

import itertools
from collections.abc import Iterator, Mapping

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import datasets
from tqdm import tqdm

import djax

from ..lib import figures
from .averaging import GOAL, METHODS, RING, SIZE, Method, errors, first_below, tune


def normal_matrices(side: int) -> jax.Array:
    """Draws matrices of independent normal entries, `float32[workers, side, side]`."""
    draws = [
        np.random.default_rng(42 + i).standard_normal((side, side)) for i in range(SIZE)
    ]
    return jnp.asarray(np.stack(draws), jnp.float32)


def photographs(side: int) -> jax.Array:
    """Cuts grey pieces out of two photographs, which are first shrunk to a third.

    The result is `float32[workers, side, side]`, where the side is at most 71 pixels.
    """
    grey = np.mean(datasets.load_sample_images().images, -1)[:, :426, :639] / 255
    small = grey.reshape(2, 142, 3, 213, 3).mean((2, 4))
    corners = itertools.product(small, (0, 1), (0, 1, 2))
    pieces = [image[side * i :, side * j :][:side, :side] for image, i, j in corners]
    chosen = np.random.default_rng(0).permutation(len(pieces))[:SIZE]
    return jnp.asarray(np.stack(pieces)[chosen], jnp.float32)


PROBLEMS = {"normal matrices": normal_matrices, "photographs": photographs}


def compute(
    sizes: Mapping[str, tuple[int, int]], methods: Mapping[str, Method]
) -> Iterator[figures.Record]:
    """Runs all methods on all data sets; those that can be tuned also without tuning.

    For each data set, `sizes` has the side of the matrices and the number of steps.
    """
    for data, (side, all_steps) in sizes.items():
        start = PROBLEMS[data](side)
        for name, method in tqdm(methods.items(), desc=data, unit="method"):
            steps = max(1, int(all_steps / method.shorter))
            mechanism = method.make(method.grid[0].tolist())
            cost = djax.communication_cost(mechanism, start[0], RING)
            runs = [(method.untuned is not None, *tune(method, start, steps))]
            if method.untuned is not None:
                (curve,) = errors(method, start, np.array([method.untuned]), steps)
                runs.append((False, list(method.untuned), curve))
            for tuned, setting, curve in runs:
                yield {
                    "data": data,
                    "method": name,
                    "tuned": tuned,
                    "setting": setting,
                    "bits_per_step": 8 * cost.mean_bytes,
                    "bits_before": 8 * 2 * start[0].nbytes * method.sends_start,
                    "steps_to_goal": _finite(first_below(curve)),
                    "steps": logged(len(curve)),
                    "errors": [_finite(curve[i]) for i in logged(len(curve))],
                }


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def logged(count: int) -> list[int]:
    """Lists the steps that the paper logs among the first `count`.

    They are the first ten steps, every tenth up to 100, every hundredth, and the last.
    """
    steps = {*range(10), *range(0, 100, 10), *range(0, count, 100), count - 1}
    return sorted(t for t in steps if t < count)


def bits_to_goal(record: figures.Record) -> float | None:
    """Returns the bits that a worker sends until the goal; None if it fails."""
    if record["steps_to_goal"] is None:
        return None
    return record["bits_before"] + record["bits_per_step"] * record["steps_to_goal"]


def make_tables(records: list[figures.Record]) -> list:
    """Shows the bits to the goal, and their ratio to PowerGossip's, by data set."""
    tables = []
    for data in figures.distinct(records, "data"):
        mine = figures.select(records, data=data)
        (power,) = map(bits_to_goal, figures.select(mine, method="PowerGossip"))
        rows = []
        for record in sorted(mine, key=lambda r: bits_to_goal(r) or np.inf):
            bits = bits_to_goal(record)
            setting = ", ".join(f"{value:.3g}" for value in record["setting"])
            free = METHODS[record["method"]].untuned is None
            tuning = "fixed" if free else "tuned" if record["tuned"] else "untuned"
            row = [record["method"], f"{tuning}: {setting}" if setting else tuning]
            row += [record["bits_per_step"] / 1e3, record["steps_to_goal"]]
            row.append(bits / 1e6 if bits else "never")
            row.append(f"{bits / power:.2f}" if bits and power else None)
            rows.append([*row, record["errors"][-1]])
        columns = ["method", "rate (and bound)", "kbit/step", "steps to 1e-4", "Mbit"]
        columns += ["x PowerGossip's", "last error"]
        title = f"Consensus on {data}: bits that a worker sends until an error of"
        tables.append(figures.table(f"{title} {GOAL:g}", columns, rows))
    return tables


def draw(records: list[figures.Record]):
    """Draws error against bits, in a panel for each data set."""
    names = figures.distinct(records, "data")
    size = 5.5 * len(names) + 2, 4.2
    figure, (panels,) = figures.panels(size, 1, len(names))
    for axes, data in zip(panels, names, strict=True):
        for r in figures.select(records, data=data):
            method = METHODS[r["method"]]
            free = method.untuned is None
            best = r["tuned"] or free
            sent = r["bits_before"] + r["bits_per_step"] * np.asarray(r["steps"], float)
            axes.plot(
                sent[1:],
                np.asarray(r["errors"], float)[1:],
                color=method.color,
                linestyle="-" if free else "--" if best else ":",
                linewidth=2.5 if r["method"] == "PowerGossip" else 1.2,
                label=r["method"] if best else None,
            )
        axes.axhline(GOAL, color="gray", linewidth=0.5)
        axes.set(xscale="log", yscale="log", ylim=(1e-8, 10), title=data)
        axes.set_xlabel("bits sent by a worker")
    panels[0].set_ylabel("error / initial error")
    title = "dashed: tuned, dotted: untuned,\nsolid: nothing to tune"
    handles, _ = panels[0].get_legend_handles_labels()
    sizes = {"fontsize": 8, "title_fontsize": 8}
    figure.legend(handles=handles, loc="outside right center", title=title, **sizes)
    return figure


_FEW = ("uncompressed gossip", "PowerGossip", "CHOCO, top-k", "DCD, QSGD 8 bits")
main = figures.script(
    __name__,
    full=({"normal matrices": (100, 5000), "photographs": (64, 3000)}, METHODS),
    smoke=(
        {"photographs": (16, 12)},
        {k: METHODS[k]._replace(grid=METHODS[k].grid[::9]) for k in _FEW},
    ),
)

if __name__ == "__main__":
    main()
