r"""Figure 6 (appendix): the factor by which RelaySGD needs a larger learning rate.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig6_learning_rate_factor           # n up to 80
    python -m experiments.relaysgd.fig6_learning_rate_factor --smoke   # seconds

All workers start at 0 and make one update of 1. With all-reduce, their models would
then be 1. With :func:`djax.relay` they agree on a smaller value, because its averages
contain older models. The factor is 1 divided by this value, which is measured once the
standard deviation of the workers' models is below 1e-4.

Expect all digits of the reference. Expect a difference of at most 0.1 % from the
theory, :func:`djax.relay_learning_rate_factor`, since the workers still differ a
little. The paper's rule of thumb, tau_max / 2, is half as much again for long chains,
and too small for large binary trees. The run takes 10 seconds on 2 cores.
"""

import itertools
from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import Topology

from ..lib import figures
from .methods import COLORS, graph

SIZES = (2, 5, 10, 20, 30, 40, 50, 60, 70, 80)
REFERENCE = {
    "chain": (1.0, 1.79994, 3.39944, 6.70242, 10.02279, 13.34148),
    "binary tree": (1.0, 1.63996, 2.52021, 3.77514, 4.66607, 5.30639),
}
"""Factors measured with the published code, for the first six of `SIZES`."""
STYLES = {"chain": "-", "binary tree": "--"}
AGREEMENT = 1e-4
MAX_STEPS = 10_000


def measure(tree: Topology) -> tuple[float, int]:
    """Lets all workers make one update of 1, and averages until they agree.

    The result is the factor, and the number of steps after which the workers agreed.
    """
    communicator = djax.communicators.simulated(tree.size)
    relay = djax.relay(tree, communicator)

    @communicator.spmd
    def average(x, state, update):
        update, state = relay.update(update, state, x)
        return optax.apply_updates(x, update), state

    def apart(carry):
        x, _, step = carry
        return (step == 0) | ((jnp.std(x, ddof=1) >= AGREEMENT) & (step < MAX_STEPS))

    def advance(carry):
        x, state, step = carry
        impulse = jnp.broadcast_to((step == 0).astype(x.dtype), x.shape)
        return *average(x, state, impulse), step + 1

    @jax.jit
    def run():
        x = jnp.zeros(tree.size)
        carry = x, communicator.spmd(relay.init)(x), 0
        x, _, step = jax.lax.while_loop(apart, advance, carry)
        return 1 / x.mean(), step

    factor, step = run()
    return float(factor), int(step)


def compute(sizes: Sequence[int]) -> Iterator[figures.Record]:
    """Measures the factors of all trees with these numbers of workers."""
    jobs = list(itertools.product(REFERENCE, sizes))
    for name, n in tqdm(jobs, desc="figure 6", unit="tree"):
        tree = graph(name, n)
        factor, steps = measure(tree)
        yield {
            "topology": name,
            "n": n,
            "factor": factor,
            "steps": steps,
            "theory": djax.relay_learning_rate_factor(tree),
            "half_diameter": tree.diameter / 2,
        }


def make_tables(records: list[figures.Record]):
    """Shows the reference, our factor, theory and rule of thumb, for every tree."""
    rows = []
    for name, factors in REFERENCE.items():
        reference = dict(zip(SIZES, factors, strict=False))
        for r in figures.select(records, topology=name):
            paper, factor, theory = reference.get(r["n"]), r["factor"], r["theory"]
            row = [f"{name}, {r['n']}", paper and f"{paper:.5f}", f"{factor:.5f}"]
            row += [figures.deviation(factor, paper), f"{theory:.5f}"]
            error = f"{factor / theory - 1:+.1e}"
            rows.append([*row, error, r["half_diameter"], str(r["steps"])])
    columns = ["tree", "reference", "ours", "", "theory", "ours to it", "τ_max/2"]
    caption = "reference: the published code, run up to n = 40."
    title = "Figure 6: factor of the learning rate"
    return [figures.table(title, [*columns, "steps"], rows, caption)]


def draw(records: list[figures.Record]):
    """Draws the factors against the number of workers."""
    figure, ((axes,),) = figures.panels((6.4, 3.4))
    color = COLORS["RelaySGD"]
    for key, label, shade in (
        ("half_diameter", r"$\tau_{\max} / 2$", "gray"),
        ("theory", "theory", color),
    ):
        for name, style in STYLES.items():
            n, values = (figures.column(records, k, topology=name) for k in ("n", key))
            text = f"{label}, {name}"
            axes.plot(n, values, style, color=shade, lw=1, label=text)
    n, factors = (figures.column(records, key) for key in ("n", "factor"))
    axes.plot(n, factors, ".", color=color, ms=6, label="measured")
    known = [x for line in REFERENCE.values() for x in zip(SIZES, line, strict=False)]
    circles = {"color": color, "mfc": "none", "ms": 7, "label": "measured, reference"}
    axes.plot(*np.transpose(known), "o", **circles)
    axes.set(xlim=(0, 82), ylim=(0, 40))
    axes.set(xlabel="number of workers $n$", ylabel="factor of the learning rate")
    figure.legend(loc="outside right center", fontsize=8)
    return figure


main = figures.script(__name__, full=(SIZES,), smoke=(SIZES[:3],), x64=True)

if __name__ == "__main__":
    main()
