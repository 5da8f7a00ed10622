"""The template of a mechanism, and at the same time a template of its tests.

The first three tests are what each mechanism should have; they use public names alone.
"""

import functools

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_common
from conformance import Algorithm
from launch import mpirun

import djax
import djax.testing
from djax import communicators, topologies
from experiments import skeleton_mechanism
from experiments.skeleton_mechanism import fastest_momentum, momentum_gossip, reference

MOMENTUM = 0.3
make = functools.partial(momentum_gossip, momentum=MOMENTUM)
twin = functools.partial(reference, momentum=MOMENTUM)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize(
    "graph", [topologies.star(4), topologies.base_graph(6)], ids=["fixed", "in time"]
)
def test_does_what_the_twin_does(graph, dtype):
    """In simulation and on a mesh, since there are enough devices."""
    djax.testing.assert_matches(make, twin, graph, dtype=dtype)


def test_keeps_the_mean_and_equal_models():
    djax.testing.assert_keeps_mean(make, topologies.star(4))
    djax.testing.assert_equal_models_stay_equal(make, topologies.star(4))


def test_without_momentum_it_is_gossip():
    """The limit case."""
    ring, workers = topologies.ring(6), communicators.simulated(6)
    found = djax.testing.run(momentum_gossip(ring, workers, 0.0), workers)
    expected = djax.testing.run(djax.gossip(ring, workers), workers)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


def test_with_overlap_messages_do_not_depend_on_the_gradients():
    ring, workers = topologies.ring(4), communicators.simulated(4)
    mechanism = momentum_gossip(ring, workers, MOMENTUM, overlap=True)
    problem = djax.testing.quadratics(4)
    x, displacement = problem.start, 0.0
    for _ in range(20):
        displacement = ring.mixing_matrix @ x - x + MOMENTUM * displacement
        x = x - 0.1 * problem.gradient(x) + displacement
    found = djax.testing.run(mechanism, workers)
    np.testing.assert_allclose(found, x, rtol=1e-5, atol=1e-6)


def test_differences_decay_at_the_rate_that_is_stated():
    ring = topologies.ring(16)
    workers = communicators.simulated(16)
    with jax.enable_x64(True):

        def distance(steps):
            mechanism = momentum_gossip(ring, workers, fastest_momentum(ring))
            options = {"learning_rate": 0.0, "dtype": "float64"}
            x = djax.testing.run(mechanism, workers, steps=steps, **options)
            return np.linalg.norm(x - x.mean(0))

        # Two equal roots: t times their power, which the factor 50 / 100 takes out.
        found = (distance(100) / distance(50) * 50 / 100) ** (1 / 50)
    np.testing.assert_allclose(found, 1 - ring.spectral_gap**0.5, rtol=0.01)


PROPERTIES = {
    test_common.test_every_worker_reaches_the_optimum: [()],
    test_common.test_same_in_simulation_and_on_a_mesh: [("float32",), ("bfloat16",)],
    test_common.test_one_worker_is_the_base_optimizer: [()],
    test_common.test_preserves_dtypes_and_carries_a_stable_state: [("bfloat16",)],
    test_common.test_ignores_unknown_extra_args: [()],
    test_common.test_compiles_once: [()],
    test_common.test_needs_parameters: [()],
    test_common.test_says_where_it_must_run: [()],
    test_common.test_refuses_integers: [()],
    test_common.test_updates_keep_their_own_dtype: [()],
}


@pytest.mark.parametrize(
    ("test", "options"),
    [(test, options) for test, cases in PROPERTIES.items() for options in cases],
)
def test_conforms(test, options, monkeypatch):
    """What the library asks of its own mechanisms holds for the template, too."""
    row = Algorithm(lambda topology, c: make(topology, c), twin, exact=False)
    monkeypatch.setitem(conformance.ALGORITHMS, "skeleton", row)
    test("skeleton", *options)


def test_its_momentum_may_be_injected_and_is_checked():
    ring, workers = topologies.ring(4), communicators.simulated(4)
    injected = optax.inject_hyperparams(
        momentum_gossip, static_args=("topology", "communicator", "overlap")
    )(ring, workers, momentum=MOMENTUM)
    found = djax.testing.run(injected, workers)
    expected = djax.testing.run(make(ring, workers), workers)
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    for momentum in (-0.1, 1, 1.5):
        with pytest.raises(ValueError, match=r"momentum must be in \[0, 1\)"):
            momentum_gossip(ring, workers, momentum)


def test_it_goes_into_corrections_and_over_narrow_messages():
    workers = communicators.simulated(4, message_dtype="bfloat16")
    averaging = djax.gradient_tracking(make(topologies.ring(4), workers))
    optimizer = optax.chain(optax.sgd(0.1), averaging)
    djax.check(optimizer, workers, jnp.zeros(3))
    cost = djax.communication_cost(optimizer, jnp.zeros(1000), workers)
    assert cost.mean_bytes == 2 * 2 * 2000  # Two neighbours; models and updates.


def test_its_training_reaches_what_it_promises(capsys):
    results = skeleton_mechanism.main(skeleton_mechanism.Config())
    found = {name: round(result.worst, 2) for name, result in results.items()}
    assert found == {"gossip": 0.5, "with momentum": 0.25}
    assert {result.bytes for result in results.values()} == {48}
    printed = capsys.readouterr().out
    assert all(name in printed for name in results)
    for number in (f"{x:.2f}" for x in found.values()):
        assert f" {number}" in (skeleton_mechanism.__doc__ or "")


@pytest.mark.xdist_group("mpi")
def test_it_does_the_same_over_mpi():
    program = f"""
import djax, djax.testing
from {__name__} import make, skeleton_mechanism, twin
ring = djax.topologies.ring(2)
workers = [djax.communicators.mpi()]
djax.testing.assert_matches(make, twin, ring, workers, dtype="float64")
skeleton_mechanism.main(skeleton_mechanism.Config(workers=2, steps=3))
"""
    result = mpirun(2, "-c", program, timeout=200, PYTHONPATH="tests")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("with momentum") == 1  # One process prints.
