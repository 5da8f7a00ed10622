"""Directed and time-varying communication."""

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from djax import topologies


def check_schedule(schedule):
    assert schedule.matrices.shape == (schedule.period, schedule.size, schedule.size)
    np.testing.assert_allclose(schedule.matrices.sum(axis=1), 1, rtol=0, atol=1e-12)
    assert len(schedule.rounds) == len(schedule.round_weights) == schedule.period
    workers = np.arange(schedule.size)
    for matrix, rounds, weights in zip(
        schedule.matrices, schedule.rounds, schedule.round_weights, strict=True
    ):
        carried = np.diag(np.diag(matrix))
        assert weights.shape == (len(rounds), schedule.size)
        for source, weight in zip(rounds, weights, strict=True):
            assert sorted(source) == list(range(schedule.size))
            np.testing.assert_array_equal(weight[workers == source], 0)
            carried[workers, source] += weight
        np.testing.assert_array_equal(carried, matrix)
        links = (matrix > 0) & ~np.eye(schedule.size, dtype=bool)
        busiest = max(links.sum(axis=0).max(), links.sum(axis=1).max())
        if (matrix == matrix.T).all():  # As a topology's, in pairs.
            assert all(
                source[j] == i for source in rounds for i, j in enumerate(source)
            )
            assert busiest <= len(rounds) <= busiest + 1
        else:
            assert len(rounds) == busiest


@st.composite
def column_stochastic(draw):
    """Some matrices that contain a one-way ring, so that all is connected."""
    size, period = draw(st.integers(1, 7)), draw(st.integers(1, 3))
    entries = st.sampled_from([0.0, 0.0, 1.0, 2.0])
    drawn = [draw(entries) for _ in range(period * size * size)]
    matrices = np.array(drawn).reshape(period, size, size)
    matrices[0] += np.roll(np.eye(size), 1, axis=0)
    matrices += np.eye(size)
    return matrices / matrices.sum(axis=1, keepdims=True)


@given(column_stochastic())
def test_rounds_carry_each_message_once(matrices):
    check_schedule(topologies.from_matrices(matrices))


@pytest.mark.parametrize("size", range(1, 18))
def test_one_peer_exponential_halves_with_shifted_workers(size):
    schedule = topologies.one_peer_exponential(size)
    check_schedule(schedule)
    x = np.random.default_rng(0).normal(size=size)
    assert schedule.period == (int(np.log2(size - 1)) + 1 if size > 1 else 1)
    for k, matrix in enumerate(schedule.matrices):
        np.testing.assert_allclose(matrix @ x, (x + np.roll(x, 2**k)) / 2, atol=1e-15)
    if size > 1:
        assert all(len(rounds) == 1 for rounds in schedule.rounds)
        assert schedule.rounds[0] == (tuple(np.roll(range(size), 1)),)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_one_peer_exponential_averages_exactly_in_a_period(size):
    product = np.eye(size)
    for matrix in topologies.one_peer_exponential(size).matrices:
        product = matrix @ product
    np.testing.assert_allclose(product, np.full((size, size), 1 / size), atol=1e-15)


def test_messages_that_fill_up_a_permutation_have_no_weight():
    # Workers 0 and 1 are alone idle as receiver and as sender in a round, and the
    # message from 1 to 0 is another round's.
    links = np.array([[0, 1, 0, 0], [0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 1, 0]], float)
    schedule = topologies.from_matrices([links / links.sum(axis=0)])
    check_schedule(schedule)
    ((first, second),) = schedule.rounds
    assert first[0] == second[0] == 1


def test_a_silent_worker_hears_itself():
    to_the_next = np.array([[0.5, 0.0, 0.0], [0.5, 1.0, 0.0], [0.0, 0.0, 1.0]])
    back = np.array([[1.0, 0.0, 0.5], [0.0, 0.5, 0.0], [0.0, 0.5, 0.5]])
    schedule = topologies.from_matrices([to_the_next, back])
    assert schedule.rounds == (((1, 0, 2),), ((2, 0, 1),))
    assert schedule.round_weights[0].tolist() == [[0.0, 0.5, 0.0]]
    assert schedule.round_weights[1].tolist() == [[0.5, 0.0, 0.5]]
