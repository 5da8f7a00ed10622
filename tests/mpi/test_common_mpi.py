"""Every algorithm gives over MPI what it gives in simulation."""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import each_algorithm, make, train

import djax
from djax import communicators, data, metrics, testing, topologies

MPI = communicators.mpi()
SIZE, RANKS = MPI.size, np.asarray(MPI.local_ranks)
SIMULATED = communicators.simulated(SIZE)


def in_simulation(make_mechanism, communicator=SIMULATED, **options):
    """The models of all workers; one rank finds them, as all would find the same."""
    if 0 in MPI.local_ranks:
        final = train(make_mechanism(communicator), communicator, **options)
    else:
        final = None
    return MPI.host_comm.bcast(final)


def both_ways(name, topology, **options):
    reference = in_simulation(lambda c: make(name, topology, c), **options)
    over_mpi = train(make(name, topology, MPI), MPI, **options)
    return over_mpi, reference[RANKS]


@pytest.mark.parametrize(
    ("name", "dtype"),
    [(name, "float32") for name in conformance.ALGORITHMS]
    + [(name, "bfloat16") for name in conformance.EVERY_DTYPE],
)
def test_same_as_in_simulation(name, dtype):
    topology = topologies.star(SIZE)
    over_mpi, reference = both_ways(name, topology, dtype=dtype)
    assert over_mpi.dtype == reference.dtype
    conformance.assert_same(name, dtype, over_mpi, reference)


# These make differences by rounding larger, step by step.
UNSTABLE = ["power_gossip", "power_gossip_iterations"]


@each_algorithm
def test_same_to_rounding_in_double_precision(name):
    """As the dense reference, or as the simulation, which rounds as MPI does."""
    topology, steps = topologies.chain(SIZE), 200
    with jax.enable_x64(True):
        if name in UNSTABLE:
            over_mpi, reference = both_ways(
                name, topology, steps=steps, dtype="float64"
            )
        else:
            over_mpi = train(
                make(name, topology, MPI), MPI, steps=steps, dtype="float64"
            )
            reference = conformance.expected(name, topology, steps=steps)[RANKS]
    np.testing.assert_allclose(over_mpi, reference, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", ["gossip", "relay", "all_reduce", "power_gossip"])
def test_a_step_in_place_is_the_step_of_the_chain(name):
    base = optax.sgd(0.1, 0.9)
    with jax.enable_x64(True):
        arrays = testing._arrays(MPI, "float64")
        mechanism = make(name, topologies.chain(SIZE), MPI)
        ours, chain = (
            jax.jit(testing._program(optimizer, MPI, 20))(*arrays)
            for optimizer in (
                djax.decentralized(base, mechanism),
                optax.chain(base, mechanism),
            )
        )
    np.testing.assert_allclose(ours, chain, rtol=1e-9)


def test_a_mechanism_of_ones_own_is_the_same_as_in_simulation():
    """The one that a tutorial writes."""
    make = conformance.own_mechanism()
    reference = in_simulation(make)
    (mine,) = MPI.local_ranks
    np.testing.assert_allclose(
        train(make(MPI), MPI)[0], reference[mine], rtol=1e-5, atol=1e-6
    )


def test_the_same_messages_are_lost():
    topology = topologies.ring(SIZE)
    options = {"drop_probability": 0.3, "drop_seed": 5}
    lossy = communicators.mpi(**options)
    reference = in_simulation(
        lambda c: make("gossip", topology, c), communicators.simulated(SIZE, **options)
    )
    without_loss = conformance.expected("gossip", topology)
    (mine,) = MPI.local_ranks
    actual = train(make("gossip", topology, lossy), lossy)
    np.testing.assert_allclose(actual[0], reference[mine], rtol=1e-5)
    assert np.abs(actual[0] - without_loss[mine]).max() > 1e-3


def evaluate_fn(model, batch):
    return {"loss": jnp.mean((model * batch["x"] - batch["y"]) ** 2)}


HELD_OUT = [
    {"x": np.linspace(0, 1, count), "y": np.full(count, 2.0)} for count in (7, 3)
]
MODELS = np.random.default_rng(0).normal(size=SIZE)


@pytest.mark.parametrize("dispatch", [False, True])
def test_every_rank_gets_the_scores_of_a_simulation(dispatch):
    with jax.enable_x64(True):
        found, expected = (
            metrics.evaluate(evaluate_fn, models, HELD_OUT, where, dispatch=dispatch)
            for models, where in ((MODELS[RANKS], MPI), (MODELS, SIMULATED))
        )
    ours, theirs = found["loss"], expected["loss"]
    assert ours.workers.shape == (SIZE,)
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine, other, rtol=1e-12)
    communicators.check_agreement(MPI, "the scores", [ours])


def test_ranks_with_different_held_out_data_are_refused():
    mine = HELD_OUT[: 1 + (0 in MPI.local_ranks)]
    with pytest.raises(ValueError, match=r"different numbers of samples, \[7, 10\]"):
        metrics.evaluate(evaluate_fn, np.float32(MODELS[RANKS]), mine, MPI)


def test_each_rank_makes_the_batches_of_its_worker():
    labels = np.arange(100) % 7
    shares = data.dirichlet(labels, SIZE, 0.5)
    ours, everyones = (
        data.batches(np.arange(100), shares, where, 4, epoch=3)
        for where in (MPI, SIMULATED)
    )
    np.testing.assert_array_equal(ours, everyones[RANKS])
