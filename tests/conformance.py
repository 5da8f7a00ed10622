"""The table of algorithms, and the problem on which all of them are tried.

A new algorithm gets all tests of `test_common.py` and `mpi/test_common.py` by one line
in `ALGORITHMS`.
"""

import dataclasses
import re
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest
import references
from launch import ROOT

import djax
from djax import communicators, compressors, testing


class Algorithm(NamedTuple):
    """A mechanism under test.

    Attributes:
      make: from a topology and a communicator.
      reference: its oracle in `references.py`.
      graph: what becomes of the topology first.
      exact: whether it equals all-reduce on a complete graph.
      converges: whether all workers reach the optimum of the mean objective.
      averages_models: whether it needs parameters, and draws those together.
      keeps_mean: whether the mean over workers stays, also of different starts.
      alone_is_base: whether an only worker runs the base optimizer.
      keeps_dtypes: whether updates keep their dtypes beside parameters of another one,
        which momentum of optax does not.
      message_dtype: to which messages are rounded: two programs that differ by rounding
        errors of the models may round a message to different numbers.
    """

    make: Callable[[djax.Topology, djax.Communicator], Any]
    reference: Callable
    graph: Callable[[djax.Topology], djax.Topology] = lambda topology: topology
    exact: bool = True
    converges: bool = True
    averages_models: bool = True
    keeps_mean: bool = True
    alone_is_base: bool = True
    keeps_dtypes: bool = True
    message_dtype: str | None = None


def _reversed(topology):
    """The same graph with its workers numbered backwards."""
    graph = nx.empty_graph(topology.size)
    last = topology.size - 1
    graph.add_edges_from((last - i, last - j) for i, j in topology.graph.edges)
    return djax.topologies.from_networkx(
        graph, weights=topology.mixing_matrix[::-1, ::-1]
    )


def wheel(size: int) -> djax.Topology:
    """A ring around worker 0, who is everybody's neighbour."""
    return djax.topologies.from_networkx(nx.wheel_graph(size), name="wheel")


def directed(size: int) -> djax.Schedule:
    """Everybody sends half to the next worker; in odd steps, to worker 0."""
    own = np.eye(size)
    to_first = own.copy()
    to_first[0] += 1
    matrices = [own + np.roll(own, 1, axis=0), to_first]
    return djax.topologies.from_matrices([m / m.sum(0) for m in matrices])


def in_time(size: int) -> djax.Schedule:
    """Workers meet in pairs, other ones in each step."""
    return djax.topologies.base_graph(size)


def matrices_in_time(size: int) -> np.ndarray:
    """Of :func:`in_time`."""
    return in_time(size).matrices


def narrow(communicator):
    """The same workers, whose messages are of bfloat16."""
    return dataclasses.replace(communicator, message_dtype="bfloat16")


COINS = [True, False, False, True, False]
"""In which steps ProxSkip averages; then again from the start."""


def first_and_others(params):
    """Two fragments of a model, or one if it has a single leaf."""
    leaves, treedef = jax.tree.flatten(params)
    return treedef.unflatten(min(i, 1) for i in range(len(leaves)))


NESTEROV = optax.sgd(0.7, 0.6, nesterov=True)

ALGORITHMS = {
    "gossip": Algorithm(lambda t, c: djax.gossip(t, c), references.gossip),
    "gossip_overlap": Algorithm(
        lambda t, c: djax.gossip(t, c, overlap=True),
        references.gossip_overlap,
        exact=False,
    ),
    "gossip_rate": Algorithm(
        lambda t, c: djax.gossip(t, c, consensus_rate=0.7),
        lambda *args: references.gossip(*args, rate=0.7),
        exact=False,
    ),
    "gossip_in_time": Algorithm(
        lambda t, c: djax.gossip(in_time(t.size), c),
        references.gossip_in_time(matrices_in_time),
        exact=False,
    ),
    "gossip_bfloat16": Algorithm(
        lambda t, c: djax.gossip(t, narrow(c)),
        references.gossip_bfloat16,
        exact=False,
        message_dtype="bfloat16",
    ),
    "gossip_every": Algorithm(
        lambda t, c: djax.every(3, djax.gossip(t, c)), references.gossip_every(3)
    ),
    "gossip_sparse": Algorithm(
        lambda t, c: djax.sparse(djax.gossip(t, c), 0.4),
        references.sparse("random", 0.4),
        exact=False,
    ),
    "gossip_on_updates": Algorithm(
        lambda t, c: djax.on_updates(djax.gossip(t, c)),
        references.gossip_on_updates,
        converges=False,
        averages_models=False,
    ),
    "gossip_interleaved": Algorithm(
        lambda t, c: djax.interleave([djax.gossip(t, c), djax.gossip(_reversed(t), c)]),
        references.gossip_interleaved,
    ),
    "all_reduce": Algorithm(lambda t, c: djax.all_reduce(c), references.all_reduce),
    "all_reduce_overlap": Algorithm(
        lambda t, c: djax.all_reduce(c, overlap=True),
        references.all_reduce_overlap,
        alone_is_base=False,
    ),
    "relay": Algorithm(
        lambda t, c: djax.relay(t, c),
        references.relay,
        graph=djax.topologies.spanning_tree,
        exact=False,
        keeps_mean=False,
    ),
    "relay_overlap": Algorithm(
        lambda t, c: djax.relay(t, c, missing="latest", overlap=True),
        lambda *args: references.relay(*args, missing="latest", overlap=True),
        graph=djax.topologies.spanning_tree,
        exact=False,
        keeps_mean=False,
    ),
    "relay_on_updates": Algorithm(
        lambda t, c: djax.on_updates(djax.relay(t, c)),
        references.relay_on_updates,
        graph=djax.topologies.spanning_tree,
        exact=False,
        converges=False,
        averages_models=False,
    ),
    "d2": Algorithm(
        lambda t, c: djax.d2(djax.gossip(t, c, consensus_rate=0.5)),
        references.exact_diffusion,
        exact=False,
    ),
    "d2_in_time": Algorithm(
        lambda t, c: djax.d2(djax.gossip(in_time(t.size), c, consensus_rate=0.5)),
        references.exact_diffusion_in_time(matrices_in_time),
        exact=False,
    ),
    "gradient_tracking_in_time": Algorithm(
        lambda t, c: djax.gradient_tracking(djax.gossip(in_time(t.size), c)),
        references.gradient_tracking_in_time(matrices_in_time),
        exact=False,
    ),
    "gradient_tracking": Algorithm(
        lambda t, c: djax.gradient_tracking(djax.gossip(t, c)),
        references.gradient_tracking,
    ),
    "led": Algorithm(
        lambda t, c: djax.led(3, djax.gossip(t, c), 0.25),
        references.led(3, 0.25),
    ),
    "k_gt": Algorithm(
        lambda t, c: djax.k_gt(3, djax.gossip(t, c), 0.8),
        references.k_gt(3, 0.8),
        alone_is_base=False,  # At a rate below 1 a period counts in part.
    ),
    "prox_skip": Algorithm(
        lambda t, c: djax.prox_skip(COINS, djax.gossip(t, c), 0.3, chi=1.5),
        references.prox_skip(COINS, 0.3, 1.5),
        exact=False,
    ),
    "push_sum": Algorithm(
        lambda t, c: djax.push_sum(directed(t.size), c),
        references.push_sum(lambda n: directed(n).matrices),
        exact=False,
        converges=False,  # As the table takes its gradients at the parameters.
    ),
    "push_sum_rounds": Algorithm(
        lambda t, c: djax.push_sum(
            djax.topologies.one_peer_exponential(t.size), c, rounds=2, overlap=True
        ),
        references.push_sum(
            lambda n: djax.topologies.one_peer_exponential(n).matrices,
            rounds=2,
            overlap=True,
        ),
        exact=False,
    ),
    "quasi_global_momentum": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0),
            djax.quasi_global_momentum(1.0, djax.gossip(t, c), momentum=0.5),
        ),
        references.quasi_global_momentum,
        alone_is_base=False,
    ),
    "quasi_global_adam": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0), djax.quasi_global_adam(0.05, djax.gossip(t, c))
        ),
        references.quasi_global_adam,
        converges=False,  # With a constant step size.
        keeps_mean=False,  # Its steps have a length of their own.
        alone_is_base=False,
    ),
    "demo": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0), djax.demo(0.05, c, decay=0.9, k=1, weight_decay=0.1)
        ),
        references.demo,
        exact=False,
        converges=False,  # Its steps are signs of a constant size.
        keeps_mean=False,  # The weights decay.
        alone_is_base=False,
    ),
    "outer": Algorithm(
        lambda t, c: djax.outer(3, NESTEROV, djax.gossip(t, c)),
        references.outer(lambda W, x: lambda y: W @ y, 3, 0.7, 0.6),
        exact=False,
        alone_is_base=False,
    ),
    "outer_relay": Algorithm(
        lambda t, c: djax.outer(3, NESTEROV, djax.relay(t, c)),
        references.outer(references.relay_average, 3, 0.7, 0.6),
        graph=djax.topologies.spanning_tree,
        exact=False,
        keeps_mean=False,
        alone_is_base=False,
    ),
    "outer_power_gossip": Algorithm(
        lambda t, c: djax.outer(2, NESTEROV, djax.power_gossip(t, c)),
        references.outer(
            lambda W, x: references.power_gossip_average([W]), 2, 0.7, 0.6
        ),
        exact=False,
        alone_is_base=False,
    ),
    "outer_streaming": Algorithm(
        lambda t, c: djax.outer(
            *(6, NESTEROV, djax.all_reduce(c)),
            fragments=first_and_others,
            delay=2,
            blend=0.75,
        ),
        references.streaming(3, (slice(0, 2), slice(2, 6)), 2, 0.75, 0.7, 0.6),
        exact=False,
        alone_is_base=False,
    ),
    "noloco": Algorithm(
        lambda t, c: djax.noloco(
            optax.identity(),
            c,
            period=2,
            consensus_rate=0.5,
            schedule=djax.topologies.random_matchings(t.size, seed=1),
        ),
        references.noloco(
            lambda n: djax.topologies.random_matchings(n, seed=1).matrices,
            *(2, 0.7, 0.5, 0.5),
        ),
        exact=False,
        alone_is_base=False,
    ),
    "momentum_tracking": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0), djax.momentum_tracking(1.0, t, c, momentum=0.5)
        ),
        references.momentum_tracking,
        exact=False,
        alone_is_base=False,
    ),
    "momentum_tracking_in_time": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0),
            djax.momentum_tracking(
                1.0, in_time(t.size), c, momentum=0.5, first_mean=False
            ),
        ),
        references.momentum_tracking_in_time(matrices_in_time),
        exact=False,
        alone_is_base=False,
    ),
    "beer": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0), djax.beer(1.0, t, c, compressors.top_k(0.5), 0.4)
        ),
        references.beer,
        exact=False,
    ),
    "gut": Algorithm(
        lambda t, c: optax.chain(optax.scale(-1.0), djax.gut(1.0, t, c, scaling=0.5)),
        references.gut,
    ),
    "gut_momentum": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0),
            djax.gut(
                *(1.0, t, c),
                momentum=0.5,
                nesterov=True,
                scaling=0.1,
                consensus_rate=0.9,
            ),
        ),
        lambda *args: references.gut(*args, mu=0.1, m=0.5, nesterov=True, rate=0.9),
        exact=False,
        alone_is_base=False,
    ),
    "decentralized": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0),
            djax.decentralized(
                optax.sgd(1.0, momentum=0.5), djax.gossip(t, c), average_state=True
            ),
        ),
        references.momentum_averaged(),
        alone_is_base=False,
        keeps_dtypes=False,
    ),
    "decentralized_rarely": Algorithm(
        lambda t, c: optax.chain(
            optax.scale(-1.0),
            djax.decentralized(
                optax.sgd(1.0, momentum=0.5),
                djax.gossip(t, c),
                average_state=djax.every(3, djax.all_reduce(c)),
            ),
        ),
        references.momentum_averaged(3),
        alone_is_base=False,
        keeps_dtypes=False,
    ),
    "power_gossip": Algorithm(
        lambda t, c: djax.power_gossip(t, c),
        references.power_gossip(),
        exact=False,
    ),
    "power_gossip_in_time": Algorithm(
        lambda t, c: djax.power_gossip(in_time(t.size), c),
        references.power_gossip(matrices=matrices_in_time),
        exact=False,
    ),
    "power_gossip_iterations": Algorithm(
        lambda t, c: djax.power_gossip(t, c, iterations=4, consensus_rate=0.5),
        references.power_gossip(iterations=4, rate=0.5),
        exact=False,
    ),
    "power_gossip_overlap": Algorithm(
        lambda t, c: djax.power_gossip(t, c, rank=2, overlap=True),
        references.power_gossip(rank=2, overlap=True),
        exact=False,
    ),
    "choco_gossip": Algorithm(
        lambda t, c: djax.choco_gossip(t, c, compressors.top_k(0.5), 0.4),
        references.choco,
        exact=False,
    ),
    "choco_gossip_bfloat16": Algorithm(
        lambda t, c: djax.choco_gossip(t, narrow(c), compressors.top_k(0.5), 0.4),
        lambda *args: references.choco(*args, sent=references.bfloat16),
        exact=False,
        message_dtype="bfloat16",
    ),
    "choco_gossip_overlap": Algorithm(
        lambda t, c: djax.choco_gossip(t, c, compressors.top_k(0.5), 0.4, overlap=True),
        lambda *args: references.choco(*args, overlap=True),
        exact=False,
    ),
    "choco_gossip_dct": Algorithm(
        lambda t, c: djax.choco_gossip(t, c, compressors.dct(1), 0.2),
        lambda *args: references.choco(
            *args, rate=0.2, code=references.largest_coefficient
        ),
        exact=False,
    ),
    "deep_squeeze": Algorithm(
        lambda t, c: djax.deep_squeeze(t, c, compressors.sign(), 0.05),
        references.deep_squeeze,
        exact=False,
        converges=False,  # What the signs leave out stays of the size of the model.
    ),
    "moniqua": Algorithm(
        lambda t, c: djax.moniqua(t, c, 8.0, 0.1, bits=8),
        references.moniqua,
        exact=False,
        converges=False,  # Up to the distance between two levels.
    ),
    "dcd": Algorithm(
        # The reference has a code that is biased: it is passed without saying so.
        lambda t, c: djax.dcd(t, c, compressors.top_k(0.5)._replace(unbiased=None)),
        references.dcd,
        exact=False,
        keeps_mean=False,
        alone_is_base=False,
    ),
    "ecd": Algorithm(
        lambda t, c: djax.ecd(t, c, compressors.identity()),
        references.ecd,
        exact=False,
    ),
}
"""All mechanisms; the corrections appear around `gossip`."""

OWN_MECHANISM = ROOT / "docs" / "tutorials" / "own_mechanism.md"


def own_mechanism() -> Callable[[djax.Communicator], djax.Mechanism]:
    """The mechanism that a tutorial writes, of a communicator."""
    cells = re.findall(r"```{code-cell} .*?\n(.*?)```", OWN_MECHANISM.read_text(), re.S)
    (cell,) = [cell for cell in cells if "def random_matching_gossip" in cell]
    definition, _, _ = cell.partition("\nworkers = ")
    namespace: dict[str, Any] = {}
    exec(compile(definition, str(OWN_MECHANISM), "exec"), namespace)
    return namespace["random_matching_gossip"]


DIM = 6


@jax.tree_util.register_dataclass
@dataclasses.dataclass
class Layer:
    """Parameters that are a tree and can be called, as modules of Equinox."""

    b: jax.Array
    w: jax.Array

    def __call__(self, x):
        return self.w @ x + self.b


def make(name: str, topology: djax.Topology, communicator: djax.Communicator):
    """The mechanism under its name in the table."""
    algorithm = ALGORITHMS[name]
    return algorithm.make(algorithm.graph(topology), communicator)


each_algorithm = pytest.mark.parametrize("name", ALGORITHMS)

EVERY_DTYPE = "gossip relay push_sum power_gossip choco_gossip all_reduce".split()
"""Algorithms with which each communicator is tested in half precision as well.

What it does with a dtype does not depend on the algorithm.
"""

each_way = pytest.mark.parametrize(
    ("make", "dispatch"),
    [
        (communicators.simulated, False),
        (communicators.simulated, True),
        (communicators.mesh, False),
        (communicators.mesh, True),
    ],
)
"""Workers in one process, with both ways in which they compute their gradients."""


def quadratics(size: int):
    """Hessians and targets, `[size, DIM]`, and the optimum `[DIM]` of their mean."""
    problem = testing.quadratics(size)
    return problem.hessian, problem.target, problem.optimum


def start(size: int) -> np.ndarray:
    """Different starts, `[size, DIM]`."""
    return testing.quadratics(size).start


def every_dtype(seed: int) -> dict[str, jax.Array]:
    """Arrays of all kinds that may have to travel."""
    x = np.random.default_rng(seed).normal(size=(3, 5)) * 10
    narrow = ["bfloat16", "float16", "float8_e4m3fn", "int8", "bool"]
    tree = {dtype: jnp.asarray(x, dtype) for dtype in [*narrow, "float32", "int32"]}
    tree["nan"] = jnp.asarray([np.nan, -0.0, seed], jnp.bfloat16)
    tree["scalar"] = jnp.float32(seed)
    tree["empty"] = jnp.zeros((0, 4))
    tree["large"] = jnp.full((512, 513), float(seed))
    return tree


def assert_same_bits(actual, expected):
    """Equality of dtypes, shapes and bits, NaN and signed zeros included."""
    assert actual.keys() == expected.keys()
    for name, leaf in expected.items():
        assert actual[name].dtype == leaf.dtype and actual[name].shape == leaf.shape
        assert np.asarray(actual[name]).tobytes() == np.asarray(leaf).tobytes(), name


def assert_same(name, dtype, actual, expected):
    """Equality to a few units in the last place: XLA fuses each program its own way."""
    rounded = ALGORITHMS[name].message_dtype
    assert_close_in(dtype if rounded is None else rounded, actual, expected)


def assert_close_in(dtype, actual, expected):
    """Equality to a few units in the last place of a dtype."""
    tolerance = 16 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(
        actual.astype(np.float32),
        expected.astype(np.float32),
        rtol=tolerance,
        atol=tolerance,
    )


def average(mechanism, communicator, params, steps, read=lambda params, state: params):
    """Averages models without gradients.

    Args:
      mechanism: the mechanism, or an optimizer that contains it.
      communicator: connects the workers.
      params: initial models, leaves `[local workers, ...]`.
      steps: number of averaging steps.
      read: makes what is returned of a worker's model and state after a step.

    Returns:
      What `read` returns of each worker and step, leaves `[local workers, steps, ...]`.
    """

    def worker(params):
        def step(carry, _):
            params, state = carry
            zeros = jax.tree.map(jnp.zeros_like, params)
            updates, state = mechanism.update(zeros, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), read(params, state)

        carry = params, mechanism.init(params)
        return jax.lax.scan(step, carry, length=steps)[1]

    return jax.jit(communicator.spmd(worker))(params)


def train(mechanism, communicator, *, trace=False, **options):
    """Runs all steps in one scan, or only traces them; `[local workers, DIM]`."""
    if not trace:
        return testing.run(mechanism, communicator, **options)
    optimizer = optax.chain(optax.sgd(0.1), mechanism)
    program = testing._program(optimizer, communicator, options["steps"])
    return jax.eval_shape(program, *testing._arrays(communicator, options["dtype"]))


def expected(name: str, topology, **options) -> np.ndarray:
    """What the dense oracle says, `[size, DIM]`."""
    algorithm = ALGORITHMS[name]

    def reference(gradient, x, learning_rate, steps, matrices):
        return algorithm.reference(gradient, x, learning_rate, steps, matrices[0])

    return testing._expected(reference, algorithm.graph(topology), **options)
