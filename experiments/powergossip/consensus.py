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

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.figure import Figure
from sklearn import datasets
from tqdm import tqdm

import djax
from djax import (
    communicators,
    compressors,
    topologies,
)

from ..lib import figures

SIZE, GOAL, BEST_RATE = 8, 1e-4, 1.308
RATES = [(rate,) for rate in np.geomspace(1e-4, BEST_RATE, 20).tolist()]
MONIQUA = [
    (rate, theta)
    for rate in np.geomspace(1e-4, BEST_RATE, 10).tolist()
    for theta in np.geomspace(0.1, 10, 10).tolist()
]
RING, COMMUNICATOR = topologies.ring(SIZE), communicators.simulated(SIZE)


class Method(NamedTuple):
    """A way to average.

    Attributes:
      make: from a rate, and where there are two parameters, the second one.
      grid: settings to choose from, `[settings, parameters]`.
      untuned: a setting that asks for no tuning; None if there is nothing to tune.
      color: of its curves.
      shorter: what the number of steps is divided by.
      screening: steps in which the settings of the grid are compared.
      sends_start: whether each worker sends its start uncompressed, once.
    """

    make: Callable
    grid: Sequence[tuple[float, ...]]
    untuned: tuple[float, ...] | None
    color: str
    shorter: float = 1
    screening: int = 500
    sends_start: bool = False


def _power(color: str, **options: Any) -> Method:
    def make(rate):
        return djax.power_gossip(RING, COMMUNICATOR, consensus_rate=rate, **options)

    return Method(make, [(BEST_RATE,)], None, color)


def _choco(code: djax.Compressor, color: str, **options: Any) -> Method:
    def make(rate):
        return djax.choco_gossip(RING, COMMUNICATOR, code, rate)

    return Method(make, RATES, (BEST_RATE,), color, **options)


METHODS = {
    "uncompressed gossip": Method(
        lambda rate: djax.gossip(RING, COMMUNICATOR, consensus_rate=rate),
        [(BEST_RATE,)],
        None,
        "black",
        shorter=10,
    ),
    "PowerGossip": _power("tab:red"),
    "PowerGossip, random": _power("salmon", warm_start=False),
    "PowerGossip, signs": _power("tab:orange", sign=True),
    "PowerGossip, random signs": _power("gold", sign=True, warm_start=False),
    "CHOCO, sign": _choco(compressors.sign(), "tab:blue"),
    "CHOCO, top-k": _choco(compressors.top_k(rank=1), "tab:cyan"),
    # A decomposition of each difference costs seconds.
    "CHOCO, SVD": _choco(compressors.low_rank(1), "navy", screening=400, shorter=4),
    "CHOCO, random-k": _choco(compressors.random_k(rank=2), "tab:green", shorter=2),
    "CHOCO, QSGD 4 bits": _choco(
        compressors.quantize(4, unbiased=False), "tab:olive", shorter=5
    ),
    "DeepSqueeze, sign": Method(
        lambda rate: djax.deep_squeeze(RING, COMMUNICATOR, compressors.sign(), rate),
        RATES,
        (BEST_RATE,),
        "tab:purple",
    ),
    "Moniqua, 2 bits": Method(
        lambda rate, theta: djax.moniqua(RING, COMMUNICATOR, theta, rate),
        MONIQUA,
        (BEST_RATE, 1.0),
        "tab:brown",
    ),
    "DCD, QSGD 8 bits": Method(
        lambda: djax.dcd(RING, COMMUNICATOR, compressors.quantize(8)),
        [()],
        None,
        "tab:pink",
        shorter=10,
        sends_start=True,
    ),
    "ECD, QSGD 8 bits": Method(
        lambda: djax.ecd(RING, COMMUNICATOR, compressors.quantize(8)),
        [()],
        None,
        "tab:gray",
        shorter=10,
        sends_start=True,
    ),
}


def normal_matrices(side: int) -> jax.Array:
    """`[workers, side, side]`, independent normal entries."""
    draws = [
        np.random.default_rng(42 + i).standard_normal((side, side)) for i in range(SIZE)
    ]
    return jnp.asarray(np.stack(draws), jnp.float32)


def photographs(side: int) -> jax.Array:
    """`[workers, side, side]`, grey pieces of two photographs at a third of their size.

    Args:
      side: at most 71, so that a photograph has six pieces.
    """
    pieces = []
    for image in datasets.load_sample_images().images:
        grey = np.asarray(image, np.float64)[:426, :639].mean(-1) / 255
        small = grey.reshape(142, 3, 213, 3).mean((1, 3))
        pieces += [
            small[side * i :, side * j :][:side, :side]
            for i in (0, 1)
            for j in (0, 1, 2)
        ]
    chosen = np.random.default_rng(0).permutation(len(pieces))[:SIZE]
    return jnp.asarray(np.stack(pieces)[chosen], jnp.float32)


def errors(
    method: Method, start: jax.Array, settings: np.ndarray, steps: int
) -> np.ndarray:
    r"""Averages with all settings in one program.

    Args:
      method: how.
      start: `[workers, ...]`, the matrices.
      settings: of the method, `[settings, parameters]`.
      steps: how many.

    Returns:
      `[settings, 1 + steps]`, the error relative to the initial one.
    """
    target = start.mean(0)

    def worker(x, setting):
        mechanism = method.make(*setting)

        def step(carry, _):
            x, state = carry
            updates, state = mechanism.update(jnp.zeros_like(x), state, x)
            x = x + updates
            return (x, state), jnp.sum((x - target) ** 2)

        first = jnp.sum((x - target) ** 2)
        _, later = jax.lax.scan(step, (x, mechanism.init(x)), length=steps)
        return jnp.concatenate([first[None], later])

    def run(setting):
        everyones = communicators.replicate(COMMUNICATOR, setting)
        return COMMUNICATOR.spmd(worker)(start, everyones).mean(0)

    grid = jnp.asarray(settings, jnp.float32)
    found = np.asarray(jax.jit(jax.vmap(run))(grid), np.float64)
    return found / found[:, :1]


def first_below(curve: np.ndarray, goal: float = GOAL) -> float:
    """The first step with a smaller error, infinite if there is none."""
    below = np.flatnonzero(curve < goal)
    return float(below[0]) if len(below) else np.inf


def _rank(curve: np.ndarray) -> tuple[float, float]:
    """What is minimized by tuning: steps to the goal, then the last error."""
    return first_below(curve), float(np.nan_to_num(curve[-1], nan=np.inf))


def tune(method: Method, start: jax.Array, steps: int) -> tuple[Any, np.ndarray]:
    """Returns the best setting of the grid, and its curve over all steps."""
    grid = np.asarray(method.grid, np.float64).reshape(len(method.grid), -1)
    if len(grid) > 1:
        screened = errors(method, start, grid, min(method.screening, steps))
        best = grid[min(range(len(grid)), key=lambda i: _rank(screened[i]))]
        grid = grid[_neighbours(grid, best)]
    curves = errors(method, start, grid, steps)
    chosen = min(range(len(grid)), key=lambda i: _rank(curves[i]))
    return grid[chosen].tolist(), curves[chosen]


def _neighbours(grid: np.ndarray, best: np.ndarray) -> np.ndarray:
    """`bool[settings]`: at most one value of each parameter away from the best."""
    near = np.ones(len(grid), bool)
    for values, value in zip(grid.T, best, strict=True):
        levels = np.unique(values).tolist()
        place = [levels.index(v) for v in values]
        near &= np.abs(np.asarray(place) - levels.index(value)) <= 1
    return near


def compute(
    problems: Mapping[str, tuple[jax.Array, int]], methods: Mapping[str, Method]
) -> list[dict[str, Any]]:
    """Runs all methods on all data.

    Args:
      problems: of each data set, the matrices and the number of steps.
      methods: how they are averaged.

    Returns:
      A record for each data set, method, and whether it was tuned.
    """
    records = []
    for data, (start, all_steps) in problems.items():
        for name, method in tqdm(methods.items(), desc=data, unit="method"):
            steps = max(1, int(all_steps / method.shorter))
            mechanism = method.make(*method.grid[0])
            cost = djax.communication_cost(mechanism, start[0], RING)
            bits = {
                "bits_per_step": 8 * cost.mean_bytes,
                "bits_before": 8 * 2 * start[0].nbytes * method.sends_start,
            }
            runs = [(method.untuned is not None, *tune(method, start, steps))]
            if method.untuned is not None:
                (curve,) = errors(method, start, np.array([method.untuned]), steps)
                runs.append((False, list(method.untuned), curve))
            for tuned, setting, curve in runs:
                kept = logged(len(curve))
                records.append(
                    {
                        "data": data,
                        "method": name,
                        "tuned": tuned,
                        "setting": setting,
                        **bits,
                        "steps_to_goal": _finite(first_below(curve)),
                        "steps": kept,
                        "errors": [_finite(curve[i]) for i in kept],
                    }
                )
    return records


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def logged(count: int) -> list[int]:
    """The steps that the paper logs: the first ten, then every tenth, hundredth."""
    return [
        t
        for t in range(count)
        if t < 10 or (t < 100 and t % 10 == 0) or t % 100 == 0 or t == count - 1
    ]


def bits_to_goal(record: Mapping[str, Any]) -> float | None:
    """Bits that a worker has sent when the error is 1e-4 of the initial one."""
    if record["steps_to_goal"] is None:
        return None
    return record["bits_before"] + record["bits_per_step"] * record["steps_to_goal"]


def make_table(data: str, records: Sequence[Mapping[str, Any]]):
    """Bits to the goal, and how many times PowerGossip's."""
    mine = [r for r in records if r["data"] == data]
    (power,) = (bits_to_goal(r) for r in mine if r["method"] == "PowerGossip")
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


def draw(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Error against bits, a panel for each data set."""
    names = list(dict.fromkeys(record["data"] for record in records))
    figure = Figure(figsize=(5.5 * len(names) + 2, 4.2), layout="constrained")
    panels = figure.subplots(1, len(names), squeeze=False)[0]
    for axes, data in zip(panels, names, strict=True):
        for record in records:
            if record["data"] != data:
                continue
            method, free = METHODS[record["method"]], METHODS[record["method"]].untuned
            bits = record["bits_before"] + record["bits_per_step"] * np.asarray(
                record["steps"], float
            )
            values = np.asarray(record["errors"], float)
            best = record["tuned"] or free is None
            axes.plot(
                bits[1:],
                values[1:],
                color=method.color,
                linestyle="-" if free is None else "--" if best else ":",
                linewidth=2.5 if record["method"] == "PowerGossip" else 1.2,
                label=record["method"] if best else None,
            )
        axes.axhline(GOAL, color="gray", linewidth=0.5)
        axes.set(xscale="log", yscale="log", ylim=(1e-8, 10), title=data)
        axes.set_xlabel("bits sent by a worker")
        axes.grid(alpha=0.3)
    panels[0].set_ylabel("error / initial error")
    figure.legend(
        *panels[0].get_legend_handles_labels(),
        loc="outside right center",
        fontsize=8,
        title="dashed: tuned, dotted: untuned,\nsolid: nothing to tune",
        title_fontsize=8,
    )
    return figure


def main(arguments: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """The command line.

    Args:
      arguments: by default those of the process.
    """
    config = figures.configure(__file__, __doc__, arguments)
    if config.smoke:
        problems = {"photographs": (photographs(16), 12)}
        few = ["uncompressed gossip", "PowerGossip", "CHOCO, top-k", "DCD, QSGD 8 bits"]
        methods = {k: METHODS[k]._replace(grid=METHODS[k].grid[::9]) for k in few}
    else:
        problems = {
            "normal matrices": (normal_matrices(100), 5000),
            "photographs": (photographs(64), 3000),
        }
        methods = METHODS
    records = compute(problems, methods)
    tables = [make_table(data, records) for data in problems]
    figures.publish(__file__, config, records, tables, draw(records))
    return records


if __name__ == "__main__":
    main()
