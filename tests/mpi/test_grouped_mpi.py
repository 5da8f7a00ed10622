"""Groups of ranks, over real MPI."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, testing, topologies

MPI = communicators.mpi()
SIZE, (RANK,) = MPI.size, MPI.local_ranks
pytestmark = pytest.mark.skipif(SIZE != 4, reason="two groups of two ranks")


@pytest.fixture(scope="module")
def levels():
    return communicators.grouped(MPI, 2)


def test_ranks_exchange_within_their_level(levels):
    for level, circle in zip(
        levels,
        [[RANK // 2 * 2, RANK // 2 * 2 + 1], [RANK % 2, RANK % 2 + 2]],
        strict=True,
    ):
        trees = [conformance.every_dtype(rank) for rank in circle]
        mine = conformance.every_dtype(RANK)
        place = circle.index(RANK)
        assert level.rank() == place and level.local_ranks == [RANK]
        received = jax.jit(lambda x, c=level: c.permute(x, (1, 0)))(mine)
        conformance.assert_same_bits(received, trees[1 - place])
        first = jax.jit(level.broadcast)(mine)
        conformance.assert_same_bits(first, trees[0])
        both = jax.jit(level.all_gather)(mine)
        both = [jax.tree.map(lambda x, i=i: x[i], both) for i in range(2)]
        for found, tree in zip(both, trees, strict=True):
            conformance.assert_same_bits(found, tree)
        mean = jax.jit(level.mean)(jnp.float32(RANK))
        np.testing.assert_allclose(mean, np.mean(circle))
    assert levels[0].gather([RANK]) == [0, 1, 2, 3]


def hierarchical(name, communicator):
    local, across = communicators.grouped(communicator, 2)
    if name == "outer":  # Between groups, messages travel during the local steps.
        nesterov = optax.sgd(0.7, 0.6, nesterov=True)
        mechanism = djax.sharded(djax.all_reduce(across), local)
        mechanism = djax.outer(4, nesterov, mechanism, delay=2)
    else:
        mechanism = conformance.make(name, topologies.ring(2), across)
        mechanism = djax.sharded(mechanism, local)
    gradients = djax.on_updates(djax.all_reduce(local))
    return optax.chain(gradients, optax.sgd(0.1), mechanism)


@pytest.mark.parametrize("name", ["gossip", "relay", "power_gossip", "demo", "outer"])
def test_same_as_in_simulation(name):
    """Also where the members of a group start apart, which leaves them apart."""
    with jax.enable_x64(True):
        found, reference = (
            jax.jit(testing._program(hierarchical(name, where), where, 20))(
                *testing._arrays(where, "float64")
            )
            for where in (MPI, communicators.simulated(SIZE))
        )
    np.testing.assert_allclose(found[0], reference[RANK], rtol=1e-12, atol=1e-14)


def test_costs_are_what_is_handed_to_mpi(handed_to_mpi):
    optimizer = hierarchical("gossip", MPI)
    params = {
        "w": jnp.ones((600, 1000)),
        "b": jnp.ones(7),
        "h": jnp.ones(5, "bfloat16"),
    }
    cost = djax.communication_cost(optimizer, params, MPI)
    state = jax.eval_shape(optimizer.init, params)
    handed_to_mpi.clear()  # Of what `init` compares between the ranks.
    jax.make_jaxpr(optimizer.update)(params, state, params)
    assert sum(handed_to_mpi) == cost.bytes_per_step[RANK]
    assert len(handed_to_mpi) == cost.messages_per_step[RANK]
