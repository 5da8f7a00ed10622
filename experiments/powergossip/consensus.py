r"""The consensus figure: error against bits, for all compressed averaging methods.

Vogels, Karimireddy and Jaggi, PowerGossip, 2020, https://arxiv.org/abs/2008.01425.

    python -m experiments.powergossip.consensus           # 20 minutes on 2 cores
    python -m experiments.powergossip.consensus --smoke   # seconds

Eight workers on a ring average a matrix each, without gradients: 100 x 100 independent
normal entries, where no low rank helps; or 64 x 64 pieces of two photographs (which
scikit-learn brings), in place of the paper's faces. The error is
:math:`\frac1n \sum_i \|M_i - \bar M\|_F^2`, the bits are those that one worker sends.

Uncompressed gossip and PowerGossip take the consensus rate 1.308 that is best on this
ring whatever the data. All others are tuned, as in the paper, on a grid of 20 rates
from 1e-4 to 1.308, Moniqua on 10 rates x 10 bounds: every setting runs a screening,
all at once in one program, then the best one and its neighbours in the grid the whole
length. "Untuned" is again 1.308. DeepSqueeze, random-k, QSGD, DCD and ECD are not in
the paper's figure; DCD and ECD have no rate, and send their start uncompressed first.

Expect PowerGossip to need fewer bits than every untuned method to bring the error to
1e-4 of the initial one: uncompressed gossip needs 1.1 times as many on the normal
matrices and twice as many on the photographs, CHOCO with signs 1.8 times as many there,
and none of the others arrives. Tuned, CHOCO with a quantizer of 4 bits needs half as
many on normal matrices, CHOCO with signs two thirds on photographs: not the same code,
and not at the same rate. DCD and ECD lose the mean, and stop early.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn import datasets
from tqdm import tqdm

import djax

from ..lib import figures
from ..lib.figures import Record
from .averaging import GOAL, METHODS, RING, SIZE, Method, errors, first_below, tune


def normal_matrices(side: int) -> jax.Array:
    """`float32[workers, side, side]`, independent normal entries."""
    draws = [
        np.random.default_rng(42 + i).standard_normal((side, side)) for i in range(SIZE)
    ]
    return jnp.asarray(np.stack(draws), jnp.float32)


def photographs(side: int) -> jax.Array:
    """`float32[workers, side, side]`, grey pieces of two photographs, a third in size.

    Args:
      side: at most 71, so that a photograph has six pieces.
    """
    grey = np.mean(datasets.load_sample_images().images, -1)[:, :426, :639] / 255
    small = grey.reshape(2, 142, 3, 213, 3).mean((2, 4))
    pieces = [
        image[side * i :, side * j :][:side, :side]
        for image in small
        for i in (0, 1)
        for j in (0, 1, 2)
    ]
    chosen = np.random.default_rng(0).permutation(len(pieces))[:SIZE]
    return jnp.asarray(np.stack(pieces)[chosen], jnp.float32)


PROBLEMS = {"normal matrices": normal_matrices, "photographs": photographs}


def compute(
    sizes: Mapping[str, tuple[int, int]], methods: Mapping[str, Method]
) -> list[Record]:
    """Runs all methods on all data.

    Args:
      sizes: of each data set, the side of the matrices and the number of steps.
      methods: how they are averaged.

    Returns:
      A record for each data set, method, and whether it was tuned.
    """
    records = []
    for data, (side, all_steps) in sizes.items():
        start = PROBLEMS[data](side)
        for name, method in tqdm(methods.items(), desc=data, unit="method"):
            steps = max(1, int(all_steps / method.shorter))
            mechanism = method.make(*method.grid[0].tolist())
            cost = djax.communication_cost(mechanism, start[0], RING)
            runs = [(method.untuned is not None, *tune(method, start, steps))]
            if method.untuned is not None:
                (curve,) = errors(method, start, np.array([method.untuned]), steps)
                runs.append((False, list(method.untuned), curve))
            records += [
                {
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
                for tuned, setting, curve in runs
            ]
    return records


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def logged(count: int) -> list[int]:
    """The steps that the paper logs: the first ten, then every tenth, hundredth."""
    steps = {*range(10), *range(0, 100, 10), *range(0, count, 100), count - 1}
    return sorted(t for t in steps if t < count)


def bits_to_goal(record: Record) -> float | None:
    """Bits that a worker has sent when the error is 1e-4 of the initial one."""
    if record["steps_to_goal"] is None:
        return None
    return record["bits_before"] + record["bits_per_step"] * record["steps_to_goal"]


def make_tables(records: list[Record]) -> list:
    """A table for each data set."""
    return [_table(data, records) for data in _data(records)]


def _data(records: list[Record]) -> list[str]:
    return list(dict.fromkeys(figures.column(records, "data")))


def _table(data: str, records: list[Record]):
    """Bits to the goal on one data set, and how many times PowerGossip's."""
    mine = figures.select(records, data=data)
    (power,) = map(bits_to_goal, figures.select(mine, method="PowerGossip"))
    rows = []
    for record in sorted(mine, key=lambda r: bits_to_goal(r) or np.inf):
        bits = bits_to_goal(record)
        setting = ", ".join(f"{value:.3g}" for value in record["setting"])
        free = METHODS[record["method"]].untuned is None
        tuning = "fixed" if free else "tuned" if record["tuned"] else "untuned"
        rows.append(
            (
                record["method"],
                f"{tuning}: {setting}" if setting else tuning,
                record["bits_per_step"] / 1e3,
                record["steps_to_goal"],
                bits / 1e6 if bits else "never",
                f"{bits / power:.2f}" if bits and power else None,
                record["errors"][-1],
            )
        )
    columns = ["method", "rate (and bound)", "kbit/step", "steps to 1e-4", "Mbit"]
    return figures.table(
        f"Consensus on {data}: bits that a worker sends until an error of {GOAL:g}",
        [*columns, "x PowerGossip's", "last error"],
        rows,
    )


def draw(records: list[Record]) -> Figure:
    """Error against bits, a panel for each data set."""
    names = _data(records)
    size = 5.5 * len(names) + 2, 4.2
    figure, (panels,) = figures.panels(size, 1, len(names))
    for axes, data in zip(panels, names, strict=True):
        for r in figures.select(records, data=data):
            method = METHODS[r["method"]]
            free = method.untuned is None
            best = r["tuned"] or free
            sent = r["bits_per_step"] * np.asarray(r["steps"], float)
            axes.plot(
                (r["bits_before"] + sent)[1:],
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
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right center",
        fontsize=8,
        title="dashed: tuned, dotted: untuned,\nsolid: nothing to tune",
        title_fontsize=8,
    )
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
