"""Trajectories of the published implementations, see golden/README.md."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

GOLDEN = pathlib.Path(__file__).parent / "golden"
QUAD16 = np.load(GOLDEN / "relay_quad16.npz")
DISTRIBUTED8 = np.load(GOLDEN / "relay_distributed8.npz")


def trajectory(optimizer, communicator, problem, unflatten, flatten):
    """Runs the problem in float64; returns `x [kept steps, worker, coordinate]`."""
    kept = problem["kept_steps"]

    def worker(matrix, offset, x):
        def step(carry, _):
            params, state = carry
            x = flatten(params)
            gradient = unflatten(matrix.T @ (matrix @ x - offset))
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), flatten(params)

        carry = unflatten(x), optimizer.init(unflatten(x))
        _, xs = jax.lax.scan(step, carry, length=int(kept.max()))
        return jnp.concatenate([x[None], xs])

    size = communicator.size
    x0 = np.broadcast_to(problem["x0"], (size, problem["x0"].shape[-1]))
    run = jax.jit(communicator.spmd(worker))
    xs = run(*map(jnp.asarray, (problem["A"], problem["b"], x0)))
    return np.asarray(xs).swapaxes(0, 1)[kept]


def assert_close(actual, expected):
    """Within 1e-9 of the largest coordinate of the same step."""
    scale = np.abs(expected).max(axis=(1, 2))
    error = np.abs(actual - expected).max(axis=(1, 2))
    assert (error <= 1e-9 * scale).all()


def graph_of(name: str) -> djax.Topology:
    """The topology under its name in the golden files."""
    builders = {
        "ring16": lambda: topologies.ring(16),
        "ring16_w": lambda: topologies.ring(16, weights=1 / 3 - 0.01),
        "chain16": lambda: topologies.chain(16),
        "star16": lambda: topologies.star(16),
        "bintree16": lambda: topologies.binary_tree(16),
        "bintree16_rev": lambda: topologies.double_binary_trees(16)[1],
        "tree3_16": lambda: topologies.regular_tree(16, 3),
        "hypercube16": lambda: topologies.hypercube(16),
        "full16": lambda: topologies.complete(16),
        "torus16": lambda: topologies.torus(16),
    }
    return builders[name]()


def sgd_of(name: str) -> optax.GradientTransformation:
    """The reference's momentum averages gradients, m <- 0.9 m + 0.1 g."""
    sgd = optax.sgd(float(QUAD16["lr"]))
    if "mom0.9" not in name:
        return sgd
    return optax.chain(optax.ema(0.9, debias=False), sgd)


@pytest.mark.parametrize("case", [k for k in QUAD16 if k.startswith("x__")])
def test_mechanisms_follow_the_simulator(case):
    _, algorithm, graph = case.split("__")
    communicator, overlap = communicators.simulated(16), "overlap" in algorithm
    if algorithm.startswith("gossip"):
        topology = graph_of(f"{graph}_w" if "w0.3233" in algorithm else graph)
        mechanism = djax.gossip(topology, communicator, overlap=overlap)
    else:
        mechanism = djax.all_reduce(communicator, overlap=overlap)
    with jax.enable_x64(True):
        optimizer = optax.chain(sgd_of(algorithm), mechanism)
        actual = trajectory(optimizer, communicator, QUAD16, lambda x: x, lambda x: x)
    assert_close(actual, QUAD16[case])


@pytest.mark.parametrize("case", [k for k in DISTRIBUTED8 if k.startswith("x__")])
def test_aliases_follow_the_distributed_code(case):
    _, algorithm, graph = case.split("__")
    communicator = communicators.simulated(8)
    momentum = 0.9 if "mom0.9" in algorithm else None
    options = dict(
        momentum=momentum, nesterov=bool(momentum), overlap="overlap" in algorithm
    )
    learning_rate = float(DISTRIBUTED8["lr"])
    if algorithm.startswith("gossip"):
        names = {"fully-connected": "complete"}
        topology = getattr(topologies, names.get(graph, graph))(8)
        optimizer = djax.dpsgd(learning_rate, topology, communicator, **options)
    else:
        topology = topologies.complete(8)
        optimizer = djax.all_reduce_sgd(learning_rate, communicator, **options)

    def unflatten(x):
        return {"a": x[:4].reshape(2, 2), "b": x[4:]}

    def flatten(params):
        return jnp.concatenate([params["a"].ravel(), params["b"]])

    with jax.enable_x64(True):
        actual = trajectory(optimizer, communicator, DISTRIBUTED8, unflatten, flatten)
        params = unflatten(jnp.zeros(6))
        cost = djax.communication_cost(optimizer, params, topology)
    assert_close(actual, DISTRIBUTED8[case])
    # The reference reports the worst worker; its last step sent a whole message.
    bytes_sent = DISTRIBUTED8[case.replace("x__", "bytes__")]
    assert cost.max_bytes == (bytes_sent[:, -1] - bytes_sent[:, -2]).max()
