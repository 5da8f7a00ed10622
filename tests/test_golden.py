"""Trajectories of the published implementations, see golden/README.md."""

import json
import pathlib

import jax
import jax.numpy as jnp
import networkx as nx
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


def weighted(algorithm: str, graph: str) -> str:
    """The graph's name; `_w0.3233` behind an algorithm is an edge weight."""
    return f"{graph}_w" if "_w0.3233" in algorithm else graph


def simulator_algorithm(algorithm, graph, communicator):
    """djax's chain for a case of the simulator."""
    overlap, sgd = "overlap" in algorithm, sgd_of(algorithm)
    if algorithm.startswith("sgp_rounds"):
        schedule, rounds = topologies.one_peer_exponential(16), int(algorithm[10])
        mechanism = djax.push_sum(
            schedule, communicator, rounds=rounds, overlap=overlap
        )
        return optax.chain(sgd, mechanism)
    if algorithm.startswith("all_reduce"):
        return optax.chain(sgd, djax.all_reduce(communicator, overlap=overlap))

    topology = graph_of(weighted(algorithm, graph))
    if algorithm.startswith(("relaysum", "relaysgd")):
        missing = "self" if "readme" in algorithm else "initial"
        relay = djax.relay(topology, communicator, missing=missing, overlap=overlap)
        on_updates = "grad" in algorithm
        return optax.chain(sgd, djax.on_updates(relay) if on_updates else relay)
    if algorithm.startswith("qg"):
        # The simulator's form with overlap lacks the factor 1 / (1 + momentum).
        return djax.quasi_global_momentum(
            float(QUAD16["lr"]),
            djax.gossip(topology, communicator),
            form="heavy_ball" if overlap else "normalized",
            overlap=overlap,
        )
    rate = 0.5 if algorithm.startswith("exact_diffusion") else 1.0
    gossip = djax.gossip(topology, communicator, consensus_rate=rate, overlap=overlap)
    if algorithm.startswith(("d2", "exact_diffusion")):
        gossip = djax.d2(gossip)
    elif algorithm.startswith("gradient_tracking"):
        gossip = djax.gradient_tracking(gossip)
    return optax.chain(sgd, gossip)


@pytest.mark.parametrize("case", [k for k in QUAD16 if k.startswith("x__")])
def test_mechanisms_follow_the_simulator(case):
    _, algorithm, graph = case.split("__")
    communicator = communicators.simulated(16)
    with jax.enable_x64(True):
        optimizer = simulator_algorithm(algorithm, graph, communicator)
        actual = trajectory(optimizer, communicator, QUAD16, lambda x: x, lambda x: x)
    assert_close(actual, QUAD16[case])


def distributed_graph(name):
    builders = {
        "fully-connected": topologies.complete,
        "binary-tree": topologies.binary_tree,
        "3-tree": lambda n: topologies.regular_tree(n, 3),
        "double-binary-trees": topologies.double_binary_trees,
        "chain": topologies.chain,
        "ring": topologies.ring,
        "full": topologies.complete,
        "exponential": topologies.one_peer_exponential,
    }
    return builders[name](8)


def training_schedule(exchanges: int) -> djax.Schedule:
    """The training code's offsets 2**(i (S + j) mod 3) in step i, exchange j of S."""
    offsets = [
        2 ** (i * (exchanges + j) % 3) for i in range(3) for j in range(exchanges)
    ]
    own = np.eye(8)
    return topologies.from_matrices(
        [(own + np.roll(own, offset, axis=0)) / 2 for offset in offsets]
    )


def distributed_algorithm(algorithm, topology, communicator):
    """djax's alias for a case of the distributed code."""
    learning_rate = float(DISTRIBUTED8["lr"])
    momentum = 0.9 if "mom0.9" in algorithm else None
    options = dict(momentum=momentum, nesterov=bool(momentum))
    if algorithm.startswith("quasi-global"):
        mechanism = djax.gossip(topology, communicator)
        return djax.quasi_global_momentum(
            learning_rate, mechanism, momentum=momentum or 0.0
        )
    if algorithm.startswith("push-sum"):
        rounds = int(algorithm[10])
        return djax.sgp(
            learning_rate,
            training_schedule(rounds),
            communicator,
            rounds=rounds,
            **options,
        )
    if algorithm.startswith("d2"):
        return djax.d2_sgd(learning_rate, topology, communicator, **options)
    if algorithm.startswith("gradient-tracking"):
        return djax.gradient_tracking_sgd(
            learning_rate, topology, communicator, **options
        )
    options |= {"overlap": "overlap" in algorithm}
    if algorithm.startswith("relaysum-model"):
        treatments = {"counts": "renormalize", "updref": "latest"}
        missing = treatments.get(algorithm.split("_")[1], "initial")
        options |= {"missing": missing}
        return djax.relay_sgd(learning_rate, topology, communicator, **options)
    if algorithm.startswith("relaysum-grad"):
        return djax.relay_sgd_grad(learning_rate, topology, communicator, **options)
    if algorithm.startswith("gossip"):
        return djax.dpsgd(learning_rate, topology, communicator, **options)
    return djax.all_reduce_sgd(learning_rate, communicator, **options)


@pytest.mark.parametrize("case", [k for k in DISTRIBUTED8 if k.startswith("x__")])
def test_aliases_follow_the_distributed_code(case):
    _, algorithm, graph = case.split("__")
    communicator, topology = communicators.simulated(8), distributed_graph(graph)

    def unflatten(x):
        return {"a": x[:4].reshape(2, 2), "b": x[4:]}

    def flatten(params):
        return jnp.concatenate([params["a"].ravel(), params["b"]])

    with jax.enable_x64(True):
        optimizer = distributed_algorithm(algorithm, topology, communicator)
        actual = trajectory(optimizer, communicator, DISTRIBUTED8, unflatten, flatten)
        params = unflatten(jnp.zeros(6))
        cost = djax.communication_cost(optimizer, params, communicator)
    assert_close(actual, DISTRIBUTED8[case])
    # The reference reports the worst worker; its last step sent a whole message.
    bytes_sent = DISTRIBUTED8[case.replace("x__", "bytes__")]
    theirs = (bytes_sent[:, -1] - bytes_sent[:, -2]).max()
    if "relay" in algorithm:  # Its counts are of 8 bytes, ours of 4.
        trees = len(topology) if isinstance(topology, tuple) else 1
        degree = cost.max_messages / 2  # One of models, one of counts, to each.
        theirs -= 4 * degree
        assert degree == {1: 2, 2: 4}.get(trees) or graph in ("binary-tree", "3-tree")
    assert cost.max_bytes == theirs


NOT_IN_DJAX = {
    "EXTRA": "averages models without this step's updates, as D² with overlap would, "
    "which djax refuses",
    "AugDGM": "averages the sum of estimate and change; gradient_tracking averages the "
    "estimate, and adds the change afterwards",
}
DECENTBENCH = [
    (graph, case, options)
    for graph in ("ring8", "irr8")
    for case, options in json.loads(
        (GOLDEN / f"decentbench_{graph}.json").read_text()
    ).items()
]


def decentbench_mechanism(options, gossip, coins):
    """djax's mechanism for a case, and the number of steps in one of its rounds.

    Args:
      options: the case's options, under decent-bench's names.
      gossip: makes gossip of its keyword arguments.
      coins: in which steps ProxSkip averages; None for other algorithms.
    """
    rate, period = options.get("aux_step_size"), options.get("num_local_steps", 1)
    makers = {
        "LED": lambda: djax.led(period, gossip(), rate),
        "KGT": lambda: djax.k_gt(period, gossip(), rate),
        "ProxSkip": lambda: djax.prox_skip(coins, gossip(), rate, options["chi"]),
        "ED": lambda: djax.d2(gossip(consensus_rate=0.5)),
        "NIDS": lambda: djax.d2(gossip(consensus_rate=0.5)),
        "ATC_Tracking": lambda: djax.gradient_tracking(gossip()),
        "DGD": lambda: gossip(overlap=True),
    }
    return makers[options["alg"]](), period


@pytest.mark.parametrize(
    ("graph", "case", "options"),
    [
        pytest.param(graph, case, options, id=f"{case}-{graph}")
        for graph, case, options in DECENTBENCH
        if options["alg"] not in NOT_IN_DJAX
    ],
)
def test_mechanisms_follow_decentbench(graph, case, options):
    """One entry of a trajectory is a round, which ends with an averaging."""
    data = np.load(GOLDEN / f"decentbench_{graph}.npz")
    weights, expected = data["W"], data[f"x__{case}"]
    if options["alg"] == "NIDS":
        expected = expected[1:]  # Its first step is of SGD; D² starts with the second.
    edges = nx.from_numpy_array((weights > 0) & ~np.eye(8, dtype=bool))
    topology = topologies.from_networkx(edges, weights=weights)
    communicator = communicators.simulated(8)
    with jax.enable_x64(True):
        mechanism, period = decentbench_mechanism(
            options,
            lambda **keywords: djax.gossip(topology, communicator, **keywords),
            data.get(f"coins__{case}"),
        )
        actual = trajectory(
            optax.chain(optax.sgd(options["step_size"]), mechanism),
            communicator,
            {
                "A": data["A"],
                "b": data["b"],
                "x0": expected[0],
                "kept_steps": period * np.arange(len(expected)),
            },
            lambda x: x,
            lambda x: x,
        )
    assert_close(actual, expected)
