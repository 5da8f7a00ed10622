"""The verbs over real MPI."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies
from djax.transport import _packing

MPI = communicators.mpi()
SIZE, (RANK,) = MPI.size, MPI.local_ranks

# A 3-cycle with everybody else silent, or what there is of one.
CYCLE = (2, 0, 1, *range(3, SIZE)) if SIZE >= 3 else tuple(reversed(range(SIZE)))


def test_permute_receives_from_the_source_whatever_the_dtype():
    mine = conformance.every_dtype(RANK)
    received = jax.jit(lambda tree: MPI.permute(tree, CYCLE))(mine)
    conformance.assert_same_bits(received, conformance.every_dtype(CYCLE[RANK]))


def test_permute_of_more_elements_than_mpi_can_count(monkeypatch):
    monkeypatch.setattr(_packing, "MAX_COUNT", 1000)
    x = jnp.arange(2500.0) + RANK
    received = jax.jit(lambda x: MPI.permute(x, CYCLE))(x)
    np.testing.assert_array_equal(received, np.arange(2500.0) + CYCLE[RANK])


def test_mean_and_broadcast():
    x = {"a": jnp.float32(RANK), "b": jnp.full((2, 2), 256 + RANK, jnp.bfloat16)}
    mean = jax.jit(MPI.mean)(x)
    assert mean["b"].dtype == jnp.bfloat16
    np.testing.assert_allclose(mean["a"], (SIZE - 1) / 2)
    rounded = np.asarray([jnp.bfloat16(256 + r) for r in range(SIZE)], np.float32)
    np.testing.assert_array_equal(mean["b"][0, 0], jnp.bfloat16(rounded.mean()))
    with pytest.raises(TypeError, match="int32"):
        MPI.mean(jnp.int32(RANK))
    first = jax.jit(MPI.broadcast)(conformance.every_dtype(RANK))
    conformance.assert_same_bits(first, conformance.every_dtype(0))


def test_gather_and_local_ranks():
    assert MPI.gather([RANK**2]) == [rank**2 for rank in range(SIZE)]
    assert MPI.rank() == RANK


def test_spmd_strips_and_adds_the_worker_axis():
    double = jax.jit(MPI.spmd(lambda x: {"y": 2 * x, "rank": MPI.rank()}))
    out = double(jnp.ones((1, 3)))
    np.testing.assert_array_equal(out["y"], np.full((1, 3), 2))
    np.testing.assert_array_equal(out["rank"], [RANK])
    with pytest.raises(ValueError, match="leading axis"):
        double(jnp.ones(3))


def test_communication_inside_scan_and_cond():
    ring = topologies.ring(SIZE)
    mechanism = djax.every(2, djax.gossip(ring, MPI))

    start = jnp.full(1, float(RANK))
    x = conformance.average(mechanism, MPI, start, 4)[:, -1]
    mixed = np.linalg.matrix_power(ring.mixing_matrix, 2) @ np.arange(float(SIZE))
    np.testing.assert_allclose(x, mixed[RANK : RANK + 1], rtol=1e-5)


def test_differences_are_named_on_every_rank():
    same = {"seed": 1, "w": jnp.ones(2)}
    communicators.check_agreement(MPI, "the settings", [same])
    mine = {"seed": 1 if RANK == 0 else 2, "w": jnp.ones(2)}
    others = ", ".join(map(str, range(1, SIZE)))
    with pytest.raises(ValueError, match=rf"\['seed'\] of ranks? {others} is not"):
        communicators.check_agreement(MPI, "the settings", [mine])


NOT_ONCE = {
    "power_gossip_iterations": "a loop is traced once, and runs several times",
    "momentum_tracking": "the first step alone sends an exact average",
    "noloco": "a matching is traced once, and used several times in a period",
    "decentralized_rarely": "two mechanisms have periods of their own",
}
"""Algorithms that do not send once in a period all that is traced, and why."""


@pytest.mark.parametrize(
    "name", [name for name in conformance.ALGORITHMS if name not in NOT_ONCE]
)
def test_communication_cost_is_what_is_handed_to_mpi(name, handed_to_mpi):
    """Counts what reaches mpi4jax while a period of steps is traced."""
    topology = topologies.star(SIZE)
    mechanism = conformance.make(name, topology, MPI)
    params = {
        "w": jnp.ones((300, 1000)),
        "b": jnp.ones(7),
        "h": jnp.ones(5, "bfloat16"),
    }
    cost = djax.communication_cost(mechanism, params, topology)
    updates, state = params, jax.eval_shape(mechanism.init, params)
    handed_to_mpi.clear()  # Of what `init` compares between the ranks.
    # The branch of `every` that communicates is traced once, and taken once a period.
    jax.make_jaxpr(mechanism.update)(updates, state, params)
    taken = sum(conformance.COINS) if name == "prox_skip" else 1
    assert taken * sum(handed_to_mpi) == cost.bytes_per_period[RANK]
    assert taken * len(handed_to_mpi) == cost.messages_per_period[RANK]


def test_a_training_step_donates_and_keeps_its_order():
    """Two exchanges in one program, and two programs, do not mix their messages."""
    optimizer = optax.chain(
        djax.gossip(topologies.star(SIZE), MPI), djax.all_reduce(MPI)
    )

    def step(x, state):
        updates, state = optimizer.update(jnp.zeros_like(x), state, x)
        return x + updates, state

    x = jnp.full((1, 4), float(RANK))
    state = jax.jit(MPI.spmd(optimizer.init))(x)
    program = jax.jit(MPI.spmd(step), donate_argnums=(0, 1))
    for _ in range(20):
        x, state = program(x, state)
    np.testing.assert_allclose(x, np.full((1, 4), (SIZE - 1) / 2), rtol=1e-5)


def test_one_bad_gradient_is_skipped_by_the_base_optimizer_alone():
    """Around SGD alone, `apply_if_finite` leaves no message out."""
    optimizer = optax.chain(
        optax.apply_if_finite(optax.sgd(1.0), 5),
        djax.gossip(topologies.ring(SIZE), MPI),
    )

    def step(x, state, gradient):
        updates, state = optimizer.update(gradient, state, x)
        return x + updates, state

    x, program = jnp.full(1, float(RANK)), jax.jit(MPI.spmd(step))
    state = jax.jit(MPI.spmd(optimizer.init))(x)
    expected = np.arange(float(SIZE))
    for sick in (0, None, SIZE - 1):
        gradient = jnp.full(1, np.nan if sick == RANK else -1.0)
        x, state = program(x, state, gradient)
        moved = np.asarray([0.0 if sick == rank else 1.0 for rank in range(SIZE)])
        expected = topologies.ring(SIZE).mixing_matrix @ (expected + moved)
    np.testing.assert_allclose(x, expected[RANK : RANK + 1], rtol=1e-5)
    assert int(state[0].total_notfinite[0]) == (RANK in (0, SIZE - 1))
