"""Arguments that would draw for ever are refused; NumPy's numbers are numbers."""

import time

import numpy as np
import pytest

from djax import topologies
from djax.asynchronous import Events, draw_events, draw_rounds, edge_rates
from djax.asynchronous.runtime._settings import Settings

RING = topologies.ring(4)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"gradients": 100, "variation": 1e5}, "variation must be"),
        ({"gradients": 100, "variation": 1e300}, "variation must be"),
        ({"gradients": 100, "variation": np.inf}, "variation must be"),
        ({"gradients": 100, "variation": np.nan}, "variation must be"),
        ({"gradients": 100, "variation": 1e-200}, "variation must be"),
        ({"gradients": 100, "rate": 1e12}, "events are asked for"),
        ({"duration": 1.0, "rate": 1e300}, "events are asked for"),
        ({"gradients": 10**15}, "events are asked for"),
        ({"duration": 1e300}, "events are asked for"),
        ({"duration": 1.0, "speeds": 1e300}, "events are asked for"),
        ({"gradients": 100, "speeds": 1e-300}, "events are asked for"),
        ({"gradients": 100, "speeds": [1, 1, 1, 1e-300]}, "while the slowest"),
        ({"gradients": 100, "speeds": np.nan}, "speeds must be"),
        ({"duration": np.nan}, "duration must be"),
        ({"duration": np.inf}, "duration must be"),
        ({"duration": 1.0, "rate": np.nan}, "rate must be"),
        ({"duration": 1.0, "seed": -1}, "seed must be"),
    ],
)
def test_endless_draws_are_refused_at_once(options, says):
    began = time.perf_counter()
    with pytest.raises(ValueError, match=says):
        draw_events(RING, **options)
    assert time.perf_counter() - began < 5


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"steps": 10**12}, "gradients are asked for"),
        ({"variation": 1e5}, "variation must be"),
        ({"speeds": [1, 1, 1, 1e-300]}, "while the slowest"),
        ({"size": 0}, "size must be"),
    ],
)
def test_endless_rounds_are_refused_at_once(options, says):
    with pytest.raises(ValueError, match=says):
        draw_rounds(**({"size": 4, "steps": 10} | options))


@pytest.mark.parametrize("variation", [0, 1e-6, 5.0, 10.0])
def test_all_variations_that_are_taken_end(variation):
    for seed in range(5):
        events = draw_events(RING, gradients=100, variation=variation, seed=seed)
        assert events.gradient_counts.sum() == 100


def test_numbers_of_numpy_are_numbers():
    i, f = np.int64, np.float32
    given = draw_rounds(i(4), i(10), speeds=f(2), variation=f(0.5), seed=i(3))
    plain = draw_rounds(4, 10, speeds=2.0, variation=0.5, seed=3)
    np.testing.assert_array_equal(given.finish, plain.finish)
    given = draw_events(RING, f(2), gradients=i(30), variation=f(0.5), seed=np.uint8(3))
    plain = draw_events(RING, 2.0, gradients=30, variation=0.5, seed=3)
    np.testing.assert_array_equal(given.time, plain.time)
    assert len(draw_events(RING, i(1), duration=i(3))) == len(
        draw_events(RING, 1.0, duration=3.0)
    )
    assert Events(i(2), [0.5], [0], [1], i(1)).pair_counts.tolist() == [[0, 1], [1, 0]]
    settings(gradients=i(5), max_backlog=np.int32(2), seed=i(0), timeout=f(5))


@pytest.mark.parametrize("value", [True, np.True_])
def test_booleans_are_no_numbers(value):
    for options in (
        {"gradients": value},
        {"duration": value},
        {"duration": 1.0, "rate": value},
        {"duration": 1.0, "speeds": value},
        {"duration": 1.0, "variation": value},
        {"duration": 1.0, "seed": value},
    ):
        with pytest.raises((TypeError, ValueError), match="must be"):
            draw_events(RING, **options)
    for options in ({"size": value}, {"steps": value}):
        with pytest.raises((TypeError, ValueError), match="must be"):
            draw_rounds(**({"size": 4, "steps": 10} | options))
    with pytest.raises(TypeError, match="rate must be a number"):
        edge_rates(RING, value)
    with pytest.raises(ValueError, match="size must be"):
        Events(value, [], [], [], 1.0)
    for name in ("gradients", "seconds", "max_backlog", "snapshots", "timeout", "seed"):
        with pytest.raises(TypeError, match=f"{name} must be"):
            settings(**{name: value})


def settings(rate=1.0, **options):
    defaults = {
        "gradients": 10,
        "seconds": None,
        "pairing": "edge_clocks",
        "random_times": True,
        "max_backlog": None,
        "snapshots": 2,
        "keep_snapshots": False,
        "transport": "mpi",
        "timeout": 5.0,
        "seed": 0,
    }
    return Settings(RING, rate, **(defaults | options))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"rate": 1e12}, "averagings per gradient are more"),
        ({"timeout": 1e300}, "timeout must be at most"),
        ({"seconds": np.inf}, "seconds must be"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of"),
    ],
)
def test_endless_runs_are_refused(options, says):
    with pytest.raises(ValueError, match=says):
        settings(**options)
