"""What never reaches a consensus is refused; what does is not, in any precision."""

import re

import hypothesis.strategies as st
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
from hypothesis import given

from djax import topologies as t

SWAPPING = "never|for ever|no consensus"
SQUARE = np.array([[0, 1, 0, 1], [1, 0, 1, 0], [0, 1, 0, 1], [1, 0, 1, 0]]) / 2


@pytest.mark.parametrize(
    "build",
    [
        lambda: t.ring(4, weights=0.5),
        lambda: t.ring(4, weights=SQUARE),
        lambda: t.ring(2, weights=1.0),
        lambda: t.chain(2, weights=np.eye(2)[::-1]),
        lambda: t.torus(16, weights=0.25),
        lambda: t.hypercube(8, weights=1 / 3),
        lambda: t.ring(4, weights=np.eye(4)),
        lambda: t.ring(6, weights=np.kron(np.eye(3), np.full((2, 2), 0.5))),
        lambda: t.from_networkx(nx.complete_bipartite_graph(3, 3), weights=1 / 3),
        lambda: t.from_networkx(nx.cycle_graph(4), weights=np.float32(0.5)),
        lambda: t.Topology(nx.cycle_graph(4), SQUARE),
        lambda: t.Topology(nx.cycle_graph(4), SQUARE.astype(np.float32)),
        lambda: t.Topology(nx.path_graph(2), np.eye(2) * (1 - 1e-9) + 1e-9 / 2),
        lambda: t.from_matrices([np.eye(3)[[1, 2, 0]]]),
        lambda: t.from_matrices([np.eye(4)[[1, 0, 3, 2]], np.eye(4)[[3, 2, 1, 0]]]),
        lambda: t.from_matrices([SQUARE]),
        lambda: t.from_matrices([np.eye(2)[::-1], np.eye(2)]),
    ],
)
def test_what_only_moves_around_is_refused(build):
    with pytest.raises(ValueError, match=f"{SWAPPING}|nothing from worker"):
        build()


@pytest.mark.parametrize("weight", [0.5, 0.6, 1, 3.0])
@pytest.mark.parametrize(
    "build",
    [
        lambda w: t.ring(4, weights=w),
        lambda w: t.hypercube(8, weights=w),
        lambda w: t.complete(7, weights=w),
        lambda w: t.star(7, weights=w),
        lambda w: t.exponential(8, weights=w),
    ],
)
def test_the_weight_that_the_error_proposes_reaches_a_consensus(build, weight):
    with pytest.raises(ValueError) as error:
        build(weight)
    proposed = float(re.findall(r"[0-9.]+", str(error.value))[-1])
    assert build(proposed).spectral_gap > 1e-3


def test_the_remedies_for_matrices_reach_a_consensus():
    assert t.ring(4, weights=(SQUARE + np.eye(4)) / 2).spectral_gap > 0.1
    t.from_matrices((np.array([SQUARE]) + np.eye(4)) / 2)


def test_odd_cycles_and_single_own_weights_are_enough():
    assert t.ring(5, weights=0.5).spectral_gap > 0.1
    assert t.complete(3, weights=0.5).spectral_gap == pytest.approx(0.5)
    assert t.star(4, weights=1 / 3).spectral_gap > 0.1
    tail = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.0, 0.0, 1.0]])
    tail = 0.5 * tail + 0.5 * tail[::-1, ::-1]
    assert t.chain(3, weights=tail).spectral_gap > 0.1
    assert t.ring(1, weights=[[1.0]]).size == 1


@st.composite
def doubly_stochastic(draw):
    """Means of a few symmetric permutations, many of them without a consensus."""
    size = draw(st.integers(2, 6))
    matrix = np.zeros((size, size))
    for _ in range(draw(st.integers(1, 4))):
        order = draw(st.permutations(range(size)))
        pairs = draw(st.integers(0, size // 2))
        swap = np.arange(size)
        for i, j in zip(
            order[0 : 2 * pairs : 2], order[1 : 2 * pairs : 2], strict=True
        ):
            swap[i], swap[j] = j, i
        matrix += np.eye(size)[swap]
    return matrix / matrix.sum(axis=1, keepdims=True)


@given(doubly_stochastic())
def test_refused_is_exactly_what_has_no_spectral_gap(matrix):
    eigenvalues = np.linalg.eigvalsh(matrix)
    gap = 1 - np.abs(eigenvalues[:-1]).max()
    if gap > 1e-9:
        assert t.complete(len(matrix), weights=matrix).spectral_gap > 1e-9
    else:
        with pytest.raises(ValueError, match=SWAPPING):
            t.complete(len(matrix), weights=matrix)


@given(st.integers(1, 5), st.integers(1, 3), st.randoms(use_true_random=False))
def test_schedules_are_accepted_exactly_if_push_sum_converges(size, period, random):
    matrices = np.zeros((period, size, size))
    for matrix in matrices:
        for j in range(size):
            for i in random.sample(range(size), random.randint(1, min(2, size))):
                matrix[i, j] = 1
    matrices /= matrices.sum(axis=1, keepdims=True)
    product = np.linalg.multi_dot([np.eye(size), *matrices[::-1]])
    limit = np.linalg.matrix_power(product, 4000)
    # Every worker ends with the same share of what each worker has started with.
    converges = (limit > 1e-9).all() and np.ptp(limit, axis=1).max() < 1e-6
    try:
        t.from_matrices(matrices)
    except ValueError:
        assert not converges
    else:
        assert converges


def test_a_schedule_that_gathers_and_then_scatters_is_accepted():
    """It averages exactly, although most workers keep nothing in between."""
    gather, scatter = np.zeros((4, 4)), np.eye(4)
    gather[0], scatter[:, 0] = 1, 0.25
    schedule = t.from_matrices([gather, scatter])
    np.testing.assert_allclose(schedule.matrices[1] @ schedule.matrices[0], 0.25)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32", "float64"])
@pytest.mark.parametrize("size", [3, 7, 40])
def test_columns_divided_by_their_sum_are_accepted_in_their_own_precision(dtype, size):
    """The remedy that the error names works in the precision of whoever follows it."""
    drawn = np.random.default_rng(0).uniform(0.5, 1, (2, size, size))
    matrices = jnp.asarray(drawn).astype(dtype) if dtype != "float64" else drawn
    matrices = matrices / matrices.sum(axis=1, keepdims=True)
    for given_as in (matrices, np.asarray(matrices), np.asarray(matrices, np.float64)):
        if dtype.endswith("16") and given_as.dtype == np.float64:
            continue  # Their sums miss one by more than rounding.
        schedule = t.from_matrices(given_as)
        assert schedule.matrices.dtype == np.float64
        np.testing.assert_allclose(schedule.matrices.sum(axis=1), 1, atol=1e-14)
        np.testing.assert_allclose(
            schedule.matrices, np.asarray(matrices, np.float64), rtol=0.05
        )


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
@pytest.mark.parametrize("build", [t.ring, t.complete, t.star, t.hypercube])
def test_undirected_weights_of_low_precision_are_repaired(dtype, build):
    exact = build(8).mixing_matrix
    weights = jnp.asarray(exact).astype(dtype)
    for topology in (
        build(8, weights=weights),
        t.Topology(build(8).graph, np.asarray(weights)),
    ):
        matrix = topology.mixing_matrix
        np.testing.assert_array_equal(matrix, matrix.T)
        np.testing.assert_allclose(matrix.sum(axis=1), 1, atol=1e-14)
        np.testing.assert_allclose(matrix, exact, atol=0.02)


def test_workers_without_own_weight_get_none_below_zero_by_rounding():
    weights = np.full((4, 4), np.float32(1 / 3)) * (1 - np.eye(4, dtype=np.float32))
    matrix = t.complete(4, weights=weights).mixing_matrix
    assert (matrix >= 0).all() and np.diag(matrix).max() < 1e-6


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_mistakes_are_no_rounding(dtype):
    ring = t.ring(3).mixing_matrix.astype(dtype)
    wrong = ring.copy()
    wrong[0, 0] += 0.02
    with pytest.raises(ValueError, match=r"row 0 of mixing_matrix sums to 1\.0"):
        t.ring(3, weights=wrong)
    with pytest.raises(ValueError, match=r"column 0 of matrix 0 sums to 1\.0"):
        t.from_matrices([wrong])
    wrong = np.array([[0.98, 0.02], [0.0, 1.0]], dtype)
    with pytest.raises(ValueError, match="make both the same"):
        t.ring(2, weights=wrong)


def test_a_third_to_three_digits_is_a_mistake_in_single_precision():
    with pytest.raises(ValueError, match="sums to 0.999"):
        t.ring(3, weights=np.full((3, 3), 0.333, np.float32))
