r"""Figure 9 (appendix): distributed mean estimation, RelaySum against gossip.

Vogels et al., RelaySum, 2021, https://arxiv.org/abs/2110.04175.

    python -m experiments.relaysgd.fig9_mean_estimation           # n up to 128
    python -m experiments.relaysgd.fig9_mean_estimation --smoke   # seconds

In each of T steps each of n workers draws a number from N(1, 1), and all workers
estimate the mean. On a chain :func:`djax.relay` sums the samples and counts them, and
the estimate is their ratio. On a ring :func:`djax.gossip` averages running means. With
all samples at once, the mean squared error would be 1 / (n T).

Expect the errors that delays and eigenvalues predict, up to the scatter of 40 runs,
about 20 %. The error of RelaySum comes close to 1 / (n T) as soon as samples from all
workers have arrived; only the samples on their way are missing. The error of gossip is
several times 1 / (n T) on large rings, where samples spread slowly. The run takes 15
seconds on 2 cores.
"""

import itertools
from collections.abc import Callable, Iterator, Sequence

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax
from tqdm import tqdm

import djax
from djax import Communicator, Topology, theory

from ..lib import figures
from .methods import graph

MEAN = 1.0
SIZES, STEPS, RUNS = (8, 16, 32, 64, 128), 400, 40


def relay_estimates(
    samples: jax.Array, tree: Topology, communicator: Communicator
) -> jax.Array:
    """Divides the sum of the samples `[T]` that have arrived by their number `[T]`."""
    relay = djax.on_updates(djax.relay(tree, communicator))

    def step(carry, sample):
        sums, state = carry
        updates, state = relay.update((sample, jnp.ones_like(sample)), state)
        sums = optax.apply_updates(sums, updates)
        return (sums, state), sums

    zeros = (jnp.zeros_like(samples[0]),) * 2
    _, (totals, counts) = jax.lax.scan(step, (zeros, relay.init(zeros)), samples)
    return totals / counts


def gossip_estimates(
    samples: jax.Array, topology: Topology, communicator: Communicator
) -> jax.Array:
    """Averages running means over the neighbourhood in each step, `[T]`."""
    gossip = djax.gossip(topology, communicator)

    def step(carry, sample):
        x, state, count = carry
        update, state = gossip.update((sample - x) / count, state, x)
        x = optax.apply_updates(x, update)
        return (x, state, count + 1), x

    zero = jnp.zeros_like(samples[0])
    _, estimates = jax.lax.scan(step, (zero, gossip.init(zero), zero + 1), samples)
    return estimates


def predict_relay(tree: Topology, steps: int) -> np.ndarray:
    """Predicts the error: the mean over workers of 1 / (number of arrived samples)."""
    elapsed = np.arange(1, steps + 1)[:, None, None]
    counts = np.maximum(elapsed - theory.relay_delays(tree), 0).sum(-1)
    return (1 / counts).mean(-1)


def predict_gossip(topology: Topology, steps: int) -> np.ndarray:
    r"""Predicts the error: the mean over workers of the variance of their estimates.

    The estimates are :math:`\frac1T \sum_k W^k s^{T-k}`. The mean of their variances is
    :math:`\frac1{n T^2} \sum_{k=1}^T \sum_l \lambda_l^{2k}`, with the eigenvalues
    :math:`\lambda_l` of W.
    """
    elapsed = np.arange(1, steps + 1)
    eigenvalues = np.linalg.eigvalsh(topology.mixing_matrix)
    powers = (eigenvalues ** (2 * elapsed[:, None])).mean(-1)
    return powers.cumsum() / elapsed**2


METHODS = {
    "RelaySum": ("chain", relay_estimates, predict_relay),
    "Gossip": ("ring", gossip_estimates, predict_gossip),
}
"""For each method the graph, and the functions that compute a worker's estimates and
the expected mean squared error after each of T steps."""


def measure(
    compute_estimates: Callable, topology: Topology, steps: int, runs: int
) -> np.ndarray:
    """Measures the mean squared error over all workers and runs after each step.

    Samples depend on the number of workers only, so that all methods see the same.
    """
    n = topology.size
    communicator = djax.communicators.simulated(n)

    @communicator.spmd
    def estimate(samples):
        return compute_estimates(samples, topology, communicator)

    @jax.jit
    def run(key):
        samples = MEAN + jax.random.normal(key, (runs, n, steps))
        return jnp.square(jax.vmap(estimate)(samples) - MEAN).mean((0, 1))

    return np.asarray(run(jax.random.key(n)))


def compute(sizes: Sequence[int], steps: int, runs: int) -> Iterator[figures.Record]:
    """Measures every method, and predicts its error."""
    jobs = list(itertools.product(METHODS, sizes))
    for name, n in tqdm(jobs, desc="figure 9", unit="line"):
        kind, estimate, predict = METHODS[name]
        topology = graph(kind, n)
        yield {
            "method": name,
            "topology": kind,
            "n": n,
            "mse": figures.rounded(measure(estimate, topology, steps, runs), 5),
            "predicted": figures.rounded(predict(topology, steps), 5),
        }


def make_tables(records: list[figures.Record]):
    """Shows the last errors, their predictions, and the error with all samples."""
    rows, steps = [], len(records[0]["mse"])
    for r in records:
        mse, predicted, ideal = r["mse"][-1], r["predicted"][-1], 1 / (r["n"] * steps)
        row = [f"{r['method']}, {r['topology']}", str(r["n"]), ideal, predicted, mse]
        change = figures.deviation(mse, predicted)
        rows.append([*row, change, f"{predicted / ideal:.2f}", f"{mse / ideal:.2f}"])
    columns = ["method", "n", "1/(nT)", "predicted", "ours", ""]
    columns += ["predicted · nT", "ours · nT"]
    title = f"Figure 9: mean squared error after T = {steps} steps"
    caption = (
        "The paper shows curves, no numbers. predicted: the expectation, computed from "
        "delays and eigenvalues."
    )
    return [figures.table(title, columns, rows, caption)]


def draw(records: list[figures.Record]):
    """Draws errors against steps, in a panel for each method and one for 1 / (n T)."""
    figure, (panels,) = figures.panels((8, 3.2), 1, 3, sharex=True, sharey=True)
    sizes = figures.distinct(records, "n")
    shades = matplotlib.colormaps["viridis"](np.linspace(0.9, 0, len(sizes)))
    colors = dict(zip(sizes, shades, strict=True))
    elapsed = np.arange(1, len(records[0]["mse"]) + 1)
    for n in sizes:
        panels[0].plot(elapsed, 1 / (n * elapsed), color=colors[n])
    panels[0].set(title="all samples: $1 / (nT)$", ylabel="mean squared error")
    for axes, (name, (kind, *_)) in zip(panels[1:], METHODS.items(), strict=True):
        for r in figures.select(records, method=name):
            axes.plot(elapsed, r["mse"], color=colors[r["n"]], lw=1.2)
            axes.plot(elapsed, r["predicted"], "k:", lw=0.8)
        axes.set_title(f"{name}, {kind}")
    for axes in panels:
        axes.set(yscale="log", xlim=(0, elapsed[-1]), ylim=(1e-5, 1))
        axes.set_xlabel("steps $T$")
    handles = [figures.handle(f"$n = {n}$", color=colors[n]) for n in sizes]
    handles.append(figures.handle("predicted", color="k", ls=":", lw=0.8))
    figure.legend(handles=handles, loc="outside right center", fontsize=8)
    return figure


main = figures.script(
    __name__, full=(SIZES, STEPS, RUNS), smoke=((4,), 20, 4), x64=True
)

if __name__ == "__main__":
    main()
