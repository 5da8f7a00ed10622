"""Tests of what tests other people's mechanisms: it finds what is wrong with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from launch import mpirun

import djax
import djax.testing
from djax import communicators, testing, topologies

N = 4
RING = topologies.ring(N)


def averaging(graph, communicator, rate=1.0):
    """Gossip over the step's matrix, as a user would write it."""

    def init(params):
        return np.int32(0)

    def mix(model, step):
        move = djax.mixing.displacement(model, graph, communicator, step=step)
        return jax.tree.map(lambda x: rate * x, move), step + 1

    return djax.mechanism(init, mix, communicator, graph)


def reference(gradient, x, learning_rate, steps, matrices):
    for t in range(steps):
        x = matrices[t % len(matrices)] @ (x - learning_rate * gradient(x))
    return x


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("graph", [RING, topologies.one_peer_exponential(N)])
def test_a_right_mechanism_matches_everywhere(graph, dtype):
    """Also on a mesh, since there are as many devices."""
    assert [type(c).__name__[:4] for c in testing._all_of(graph, None)] == [
        "Simu",
        "Mesh",
    ]
    testing.assert_matches(averaging, reference, graph, dtype=dtype)


def test_a_wrong_mechanism_is_shown_with_its_communicator():
    def wrong(graph, communicator):
        on_mesh = not communicator.shares_device
        return averaging(graph, communicator, rate=0.99 if on_mesh else 1.0)

    testing.assert_matches(wrong, reference, RING, [communicators.simulated(N)])
    with pytest.raises(AssertionError, match=r"(?s)on mesh.*after 20 steps"):
        testing.assert_matches(wrong, reference, RING)


def test_the_learning_rate_and_the_steps_are_those_of_the_reference():
    testing.assert_matches(averaging, reference, RING, steps=3, learning_rate=0.3)
    problem = testing.quadratics(N)
    found = testing.run(averaging(RING, W := communicators.simulated(N)), W, steps=1)
    wanted = RING.mixing_matrix @ (
        problem.start - 0.1 * problem.gradient(problem.start)
    )
    np.testing.assert_allclose(found, wanted, rtol=1e-5, atol=1e-6)


def test_a_problem_of_ones_own():
    """From the optimum of the mean, which all-reduce does not leave."""
    problem = testing.quadratics(N)
    problem = problem._replace(start=np.tile(problem.optimum, (N, 1)))
    workers = communicators.simulated(N)
    found = testing.run(djax.all_reduce(workers), workers, problem=problem)
    np.testing.assert_allclose(found, problem.start, atol=0.05)


def test_a_mean_that_moves_is_found():
    def uneven(graph, communicator):
        def mix(model, state):
            move = djax.mixing.displacement(model, graph, communicator)
            share = (communicator.rank() + 1) / N
            return jax.tree.map(lambda x: share * x, move), state

        return djax.mechanism(lambda params: (), mix, communicator, graph)

    testing.assert_keeps_mean(averaging, RING)
    testing.assert_equal_models_stay_equal(uneven, RING)
    with pytest.raises(AssertionError, match="the mean on simulated"):
        testing.assert_keeps_mean(uneven, RING)


def test_equal_models_that_part_are_found():
    def drifting(graph, communicator):
        def mix(model, state):
            rank = communicator.rank()
            return jax.tree.map(lambda x: jnp.full_like(x, rank), model), state

        return djax.mechanism(lambda params: (), mix, communicator, graph)

    testing.assert_equal_models_stay_equal(averaging, RING)
    with pytest.raises(AssertionError, match="equal models on simulated"):
        testing.assert_equal_models_stay_equal(drifting, RING)


@pytest.mark.xdist_group("mpi")
def test_the_same_tests_run_over_mpi():
    program = """
import djax, djax.testing
from test_testing import averaging, reference
ring = djax.topologies.ring(2)
assert len(djax.testing._all_of(ring, None)) == 2
djax.testing.assert_matches(averaging, reference, ring, dtype="float64")
djax.testing.assert_keeps_mean(averaging, ring)
djax.testing.assert_equal_models_stay_equal(averaging, ring)
print("passed")
"""
    result = mpirun(2, "-c", program, timeout=200, PYTHONPATH="tests")
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("passed") == 2
