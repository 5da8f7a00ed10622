"""Steps of simulated workers: what every mechanism adds to the gradients.

    python -m benchmarks.simulator               # all that follows but the reference
    python -m benchmarks.simulator --reference   # against a NumPy loop

1. An MLP of 101,770 parameters learned by 32 workers, each with its own batch of 32, all
   workers under one `vmap` and all steps under one `lax.scan`: the time of a step with
   each mechanism on a ring (relay: on a chain), over that of a step without any. Aim: at
   most 1.5.
2. The same ratio's parts on the random quadratics of 10 dimensions, and on the MLP with
   small batches, for 8 to 1,024 workers on sparse graphs. Aim: the cost per worker is flat
   in the number of workers.
3. With `--reference`, relay for 64 workers on the quadratics against a loop over workers
   and edges in NumPy, which finds the same trajectory. Aim: at least 200 times faster.
"""

import dataclasses
import functools
import itertools
import pathlib
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
import tyro

import djax
from djax import communicators, compressors, simulation, topologies
from experiments.common.quadratics import random_quadratics

from . import contest

DIM = 10  # Of the quadratics.
LAYERS = (784, 128, 10)  # 101,770 parameters.
AIM = 1.5
FLAT = 1.5
FASTER = 200.0


@dataclasses.dataclass(frozen=True)
class Config:
    """What is measured."""

    reference: bool = False
    """Measure the NumPy loop in place of everything else."""
    workers: int = 32
    """Of the first table."""
    sizes: tuple[int, ...] = (8, 32, 128, 512, 1024)
    """Numbers of workers of the second."""
    batch_size: int = 32
    """Samples of a gradient of the MLP."""
    steps: int = 20
    """Of the MLP in one run; of the quadratics 25 times as many."""
    repeats: int = 7
    """How often, all contestants in turns."""
    output: pathlib.Path = contest.RESULTS
    """Where the JSON goes."""


def mechanisms(n: int) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    """What makes each mechanism of a communicator of `n` workers, by name.

    Those that averages go around are on a ring, relay on a chain.
    """
    ring, chain = topologies.ring(n), topologies.chain(n)
    fine, bits = compressors.top_k(0.01), compressors.quantize(8)
    sign = compressors.sign()
    gossip = functools.partial(djax.gossip, ring)
    return {
        "none": lambda c: optax.identity(),
        "all_reduce": djax.all_reduce,
        "gossip": gossip,
        "relay": functools.partial(djax.relay, chain),
        "push_sum": functools.partial(
            djax.push_sum, topologies.one_peer_exponential(n)
        ),
        "d2(gossip)": lambda c: djax.d2(gossip(c)),
        "gradient_tracking(gossip)": lambda c: djax.gradient_tracking(gossip(c)),
        "power_gossip, rank 1": functools.partial(djax.power_gossip, ring),
        "power_gossip, rank 4": lambda c: djax.power_gossip(ring, c, 4),
        "choco_gossip, sign": lambda c: djax.choco_gossip(ring, c, sign, 0.1),
        "choco_gossip, top 1 %": lambda c: djax.choco_gossip(ring, c, fine, 0.1),
        "deep_squeeze, sign": lambda c: djax.deep_squeeze(ring, c, sign, 0.1),
        "moniqua, 8 bits": lambda c: djax.moniqua(ring, c, 1.0, 0.5, bits=8),
        "dcd, 8 bits": lambda c: djax.dcd(ring, c, bits),
        "ecd, 8 bits": lambda c: djax.ecd(ring, c, bits),
    }


def sparse(n: int) -> dict[str, Callable[[Any], optax.GradientTransformation]]:
    """The mechanisms whose cost has to be flat in `n`, by their graphs."""
    graphs = {
        "ring": topologies.ring(n),
        "torus": topologies.torus(n),
        "binary tree": topologies.binary_tree(n),
    }
    made = {"none": lambda c: optax.identity()}
    for name, graph in graphs.items():
        made[f"gossip, {name}"] = functools.partial(djax.gossip, graph)
        made[f"power_gossip, {name}"] = functools.partial(djax.power_gossip, graph)
    for name, graph in {"chain": topologies.chain(n), **graphs}.items():
        if graph.is_tree:
            made[f"relay, {name}"] = functools.partial(djax.relay, graph)
    return made


def mlp(config: Config, n: int) -> tuple[Any, Callable, Any]:
    """Initial parameters, gradient function, and batches `[n, steps, ...]`."""
    keys = jax.random.split(jax.random.key(0), 4)
    params = [
        {"w": jax.random.normal(key, shape) / shape[0] ** 0.5, "b": jnp.zeros(shape[1])}
        for key, shape in zip(keys[:2], itertools.pairwise(LAYERS), strict=True)
    ]
    lead = (n, config.steps, config.batch_size)
    images = jax.random.normal(keys[2], (*lead, LAYERS[0]))
    labels = jax.random.randint(keys[3], lead, 0, LAYERS[-1])

    def loss(params, images, labels):
        hidden = jax.nn.relu(images @ params[0]["w"] + params[0]["b"])
        logits = hidden @ params[1]["w"] + params[1]["b"]
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean()

    def gradient(params, model_state, batch):
        value, grads = jax.value_and_grad(loss)(params, *batch)
        return grads, model_state, {"loss": value}

    return params, gradient, (images, labels)


def quadratics(config: Config, n: int) -> tuple[Any, Callable, Any]:
    """The same of the random quadratics; the batches are the workers' problems."""
    steps = 25 * config.steps
    problem = random_quadratics(n, DIM, 1.0)
    params = jnp.zeros(DIM)
    data = tuple(
        jnp.broadcast_to(jnp.asarray(x, "f4")[:, None], (n, steps, *x.shape[1:]))
        for x in (problem.matrices, problem.offsets)
    )

    def gradient(x, model_state, batch):
        matrix, offset = batch
        return matrix.T @ (matrix @ x - offset), model_state, ()

    return params, gradient, data


def race(
    config: Config, problem: tuple[Any, Callable, Any], n: int, field: dict[str, Any]
) -> dict[str, np.ndarray]:
    """Seconds of a step of all workers, with each of the mechanisms."""
    params, gradient, batches = problem
    communicator = communicators.simulated(n)
    steps = jax.tree.leaves(batches)[0].shape[1]

    def contestant(make):
        optimizer = optax.chain(optax.sgd(0.01), make(communicator))
        start = communicators.replicate(communicator, params)
        workers = simulation.init_workers(optimizer, communicator, start)
        program = simulation.make_steps(gradient, optimizer, communicator)

        def run():
            nonlocal workers
            workers, _ = program(workers, batches)
            return workers.params

        return run

    runs = {name: contestant(make) for name, make in field.items()}
    times = contest.in_turns(runs, config.repeats)
    return {name: seconds / steps for name, seconds in times.items()}


def main() -> None:
    config = tyro.cli(Config)
    t = race(config, mlp(config, config.workers), config.workers, mechanisms(config.workers))
    for k, v in t.items():
        r = v / t["none"]
        print(f"{k:30s} {1e3*np.median(v):.2f} ms ratio {contest.spread(r)}")


if __name__ == "__main__":
    main()
