"""How much averaging slows gradients down, in a second thread and between gradients.

    mpirun -n 2 python -m benchmarks.overlap

Two ranks with a network of 10 million parameters compute gradients as fast as they can,
by SGD with momentum. They do so in three ways: without averaging; with one averaging
per gradient in a second thread (`djax.asynchronous.run`); and with the same exchange
between two gradients, during which nothing is computed. A gradient either waits for
50 ms, which stands for a GPU that leaves the CPU free, or is really computed, in about
100 ms on one core.

Aim: averaging in the second thread leaves at least 0.95 of the gradients per second if
gradients wait, and 0.9 if they compute. In the latter case averaging and gradient share
one core.
"""

import dataclasses
import functools
import statistics
import time
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import djax
from djax import asynchronous, communicators, topologies

from . import contest

AIMS = {"wait": 0.95, "compute": 0.9}
LAYERS = (784, 2048, 2048, 2048, 10)


@dataclasses.dataclass(frozen=True)
class Config(contest.Turns):
    """The options of the command line."""

    seconds: float = 6.0
    """Seconds of each run."""
    repeats: int = 5
    """How often each contestant runs, after a first run that compiles."""
    wait: float = 0.05
    """Seconds of a gradient that waits."""
    batch_size: int = 304
    """Samples of a gradient that computes."""


def init() -> list[dict[str, jax.Array]]:
    """The network's parameters, with a leading axis of 1."""
    keys = jax.random.split(jax.random.key(0), len(LAYERS))
    return [
        {"w": jax.random.normal(key, (1, m, n)) / m**0.5, "b": jnp.zeros((1, n))}
        for key, m, n in zip(keys, LAYERS[:-1], LAYERS[1:], strict=False)
    ]


def loss(params, images, labels):
    """Cross entropy of the network."""
    x = images
    for layer in params[:-1]:
        x = jax.nn.relu(x @ layer["w"] + layer["b"])
    logits = x @ params[-1]["w"] + params[-1]["b"]
    return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()


def compute(params, model_state, batch):
    """Computes the gradient of :func:`loss`."""
    value, grads = jax.value_and_grad(loss)(params, *batch)
    return grads, model_state, {"loss": value}


def waiting(params, seconds: float):
    """Makes a gradient function that only waits, and always returns the same values."""
    grads = jax.tree.map(lambda x: 1e-6 * x[0], params)

    def wait(params, model_state, batch):
        time.sleep(seconds)
        return grads, model_state, {"loss": np.float32(0)}

    return wait


class Contest:
    """The contestants, with the model and the data that they share.

    Args:
      config: the options of the command line.
    """

    def __init__(self, config: Config):
        """Draws the model and the data."""
        self.config = config
        self.communicator: Any = communicators.mpi()
        if self.communicator.size != 2:
            raise SystemExit("overlap: mpirun -n 2 python -m benchmarks.overlap")
        self.topology = topologies.complete(2)
        self.params = init()
        rng = np.random.default_rng(self.communicator.rank())
        self.data = (
            jnp.asarray(rng.normal(size=(1, 1, config.batch_size, LAYERS[0])), "f4"),
            jnp.asarray(rng.integers(0, 10, (1, 1, config.batch_size))),
        )
        self.gradients = {"wait": waiting(self.params, config.wait), "compute": compute}
        sgd = optax.sgd(1e-3, momentum=0.9)
        self.algorithms = {
            "A²CiD²": djax.acid(sgd, djax.acid_constants(self.topology)),
            "AD-PSGD": djax.adpsgd(sgd),
        }

    def behind(self, gradient: str, algorithm: str, rate: float) -> dict[str, float]:
        """Averages in a second thread; returns gradients per second, and averagings."""
        outcome = asynchronous.run(
            self.algorithms[algorithm],
            self.gradients[gradient],
            lambda epoch: self.data,
            self.communicator,
            self.topology,
            self.params,
            rate=rate,
            pairing="first_free",
            random_times=False,
            seconds=self.config.seconds,
            snapshots=1,
            jit=gradient == "compute",
        )
        report = outcome.report
        return {
            "gradients": report.gradients_per_second.mean(),
            "averagings": 2 * report.pair_counts[0, 1] / report.gradient_counts.sum(),
        }

    def between(self, gradient: str, algorithm: str) -> dict[str, float]:
        """Averages between gradients; returns gradients per second, and averagings."""
        events, peer = self.algorithms[algorithm], 1 - self.communicator.rank()
        params = jax.tree.map(lambda x: x[0], self.params)
        batch = jax.tree.map(lambda x: x[0, 0], self.data)
        state = events.init(params)
        buffers = jax.tree.map(lambda x: np.empty(x.shape, x.dtype), params)
        fn = self.gradients[gradient]
        fn = jax.jit(fn) if gradient == "compute" else fn

        @jax.jit
        def update(grads, params, state):
            updates, state = events.update(grads, state, params, elapsed=1.0)
            return optax.apply_updates(params, updates), state

        @jax.jit
        def average(theirs, params, state):
            updates, state = events.average(theirs, state, params)
            return optax.apply_updates(params, updates), state

        def step(params, state):
            grads, _, _ = jax.block_until_ready(fn(params, (), batch))
            params, state = update(grads, params, state)
            for ours, theirs in zip(
                *map(jax.tree.leaves, (params, buffers)), strict=True
            ):
                self.communicator.host_comm.Sendrecv(
                    np.asarray(ours), peer, recvbuf=theirs, source=peer
                )
            return jax.block_until_ready(average(buffers, params, state))

        params, state = step(params, state)
        self.communicator.host_comm.Barrier()
        count, start = 0, time.perf_counter()
        while (
            self.communicator.host_comm.allreduce(time.perf_counter() - start)
            < 2 * self.config.seconds
        ):
            params, state = step(params, state)
            count += 1
        return {
            "gradients": count / (time.perf_counter() - start),
            "averagings": 1.0,
        }

    def contestants(self) -> dict[tuple[str, str, str], Any]:
        """The functions that measure, by gradient, algorithm and name."""
        found = {}
        for gradient in self.gradients:
            for algorithm in self.algorithms:
                run = functools.partial(self.behind, gradient, algorithm)
                found[gradient, algorithm, "none"] = functools.partial(run, 0.0)
                found[gradient, algorithm, "in the background"] = functools.partial(
                    run, 1.0
                )
                found[gradient, algorithm, "in between"] = functools.partial(
                    self.between, gradient, algorithm
                )
        return found


def measure(field: Contest) -> list[dict[str, Any]]:
    """Measures all contestants in turns; returns a record for each."""
    found = field.contestants()
    results = {key: [] for key in found}
    for _ in range(field.config.repeats):
        for key, run in found.items():
            results[key].append(run())
    records = []
    for (gradient, algorithm, name), measured in results.items():
        alone = results[gradient, algorithm, "none"]
        records.append(
            {
                "gradient": gradient,
                "algorithm": algorithm,
                "averaging": name,
                "gradients per second": [m["gradients"] for m in measured],
                "averagings per gradient": statistics.fmean(
                    m["averagings"] for m in measured
                ),
                "ratio": statistics.median(
                    m["gradients"] / a["gradients"]
                    for m, a in zip(measured, alone, strict=True)
                ),
                "aim": AIMS[gradient] if name == "in the background" else None,
            }
        )
    return records


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    field = Contest(config)
    records = measure(field)
    if field.communicator.rank():
        return
    rows = [
        [
            record["gradient"],
            record["algorithm"],
            record["averaging"],
            contest.spread(record["gradients per second"]),
            f"{record['ratio']:.3f}",
            record["aim"]
            and contest.verdict(record["ratio"], record["aim"], at_least=True),
            f"{record['averagings per gradient']:.2f}",
        ]
        for record in records
    ]
    count = sum(x.size for x in jax.tree.leaves(field.params))
    title = f"2 workers, {count / 1e6:.1f} million parameters"
    columns = [
        "gradient",
        "",
        "averaging",
        "gradients a second",
        "ratio",
        "aim",
        "rate",
    ]
    contest.publish("overlap", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
