"""A worker's own time, and when in it the worker wants to average."""

import collections
import math

import numpy as np
from asynchronous_parts import clock_of, make_settings

from djax import topologies
from djax.asynchronous.runtime import _own_time
from djax.asynchronous.runtime._own_time import OwnTime
from djax.asynchronous.runtime._settings import Clocks


def test_own_time_counts_gradients_and_the_share_of_the_current_one(monkeypatch):
    clock = clock_of(_own_time, monkeypatch)
    own = OwnTime(finished=3)
    own.begin()
    clock.now += 50
    assert own() == 3  # Nobody knows how long the first one takes.
    assert own.until(4) == 1
    clock.now -= 48
    own.end()
    assert (own.finished, own.duration, own()) == (4, 2, 4)
    clock.now += 9
    assert own() == 4  # Between two gradients.
    own.begin()
    clock.now += 0.5
    assert own() == 4.25
    assert own.until(4.75) == 1
    assert own.until(4) == -0.5
    clock.now += 1000
    assert own() == 5  # Who stalls ages by one gradient.


def test_durations_are_averaged_with_halving_weights(monkeypatch):
    clock = clock_of(_own_time, monkeypatch)
    own = OwnTime()
    for seconds, mean in ((4, 4), (8, 6), (2, 4), (2, 3)):
        own.begin()
        clock.now += seconds
        own.end()
        assert own.duration == mean


def make_clocks(rates, random=False, seed=0, start=0.0):
    return Clocks(rates, start, random, np.random.default_rng(seed))


def test_constant_clocks_tick_in_order():
    clocks = make_clocks({7: 1 / 2, 3: 1 / 5, 1: 0.0}, start=10.0)
    assert clocks.next == 12
    assert clocks.ticks(11.9) == []
    assert clocks.ticks(18.5) == [7, 7, 3, 7, 7]  # At 12, 14, 15, 16 and 18.
    assert clocks.next == 20
    assert clocks.ticks(18.5) == []
    assert sorted(clocks.ticks(20)) == [3, 7]
    assert make_clocks({0: 0.0}).next == math.inf


def tick_times(clocks, count):
    times = []
    for _ in range(count):
        times.append(clocks.next)
        assert len(clocks.ticks(clocks.next)) == 1
    return times


def test_random_clocks_are_poisson():
    times = tick_times(make_clocks({0: 2.0}, random=True), 4000)
    gaps = np.diff(times, prepend=0)
    np.testing.assert_allclose(gaps.mean(), 0.5, rtol=5 / np.sqrt(4000))
    np.testing.assert_allclose(gaps.std() / gaps.mean(), 1, atol=0.1)
    np.testing.assert_allclose((gaps > 0.5).mean(), np.exp(-1), atol=0.04)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.08
    again = tick_times(make_clocks({0: 2.0}, random=True), 50)
    other = tick_times(make_clocks({0: 2.0}, random=True, seed=1), 50)
    assert again == times[:50] and other != again


def test_each_clock_has_its_own_rate():
    rates = {0: 2.0, 5: 0.5, 2: 0.0}
    counts = collections.Counter(make_clocks(rates, random=True).ticks(1000.0))
    assert counts.keys() == {0, 5}
    for key, count in counts.items():
        assert abs(count - 1000 * rates[key]) < 5 * np.sqrt(1000 * rates[key])


def test_each_end_of_a_pair_has_half_of_its_clock():
    settings = make_settings(topologies.star(4), 1.5)  # Of an edge: 0.5.
    for rank, peers in ((0, {1, 2, 3}), (2, {0})):
        clocks = settings.make_clocks(rank, 5.0, np.random.default_rng(rank))
        counts = collections.Counter(clocks.ticks(5.0 + 4000))
        assert counts.keys() == peers
        assert all(abs(count - 1000) < 5 * np.sqrt(1000) for count in counts.values())


def test_other_pairings_have_one_clock():
    rng = np.random.default_rng(0)
    settings = make_settings(rate=4, pairing="first_free", random_times=False)
    clocks = settings.make_clocks(1, 2.0, rng)
    assert clocks.ticks(3.1) == [None] * 4 and clocks.next == 3.25
    alone = make_settings(topologies.complete(1), 4, pairing="first_free")
    assert alone.make_clocks(0, 0.0, rng).next == math.inf
