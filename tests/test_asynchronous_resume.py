"""Runs that are resumed after a worker was lost, or with nothing left to compute."""

import numpy as np
import pytest
from test_asynchronous_mpi import leaves, load, run_ranks

from djax.asynchronous.runtime._resume import describe_used_budget, find_lost


@pytest.mark.parametrize(
    ("counts", "budget", "used"),
    [
        ([1900, 237, 1880], 4017, True),
        ([1900, 1800], 3701, False),
        ([1900, 1000], None, False),
        ([0, 0], 10, False),
    ],
)
def test_a_used_budget_is_named(counts, budget, used):
    """Survivors of a lost worker have used up the budget that it had a share of."""
    text = describe_used_budget(counts, budget)
    assert ("none is left to compute" in text) == used


@pytest.mark.parametrize(
    ("named", "lost"),
    [
        ([[], [], []], []),
        ([[1], [], [1]], [1]),
        ([[], [], [1]], [1]),  # Worker 0 was killed before it saved again.
        ([[1, 2], [], []], [1, 2]),
        ([[1], [0, 2], [1]], [1]),  # A network was cut in two.
        ([[1, 2], [0], [0]], [1, 2]),
    ],
)
def test_who_was_lost_is_what_the_others_say(named, lost):
    assert find_lost([1900, 237, 1880], named) == lost


LOSE = """
momentum = djax.acid(
    optax.sgd(1.0, momentum=0.5), djax.acid_constants(ring)._replace(alpha_tilde=0.7)
)

first = len(sys.argv) == 2

def die(turn):
    if first and rank == 1 and turn == 30:
        os.kill(os.getpid(), signal.SIGKILL)

def resume(gradients):
    checkpoints = asynchronous.Checkpoints(folder / "all", every=0.02, resume=True)
    walk = Walk({"x": np.full(3, rank, "f4"), "y": np.ones(2, "f4")}, 4e-3, die)
    return run(
        momentum, walk, gradients, rate=4, checkpoints=checkpoints, transport="zmq",
        timeout=8.0 if first else 20.0,
    )

if first:
    dump("first", resume(150))
else:
    dump("again", resume(100))
    dump("second", resume(200))
"""


@pytest.mark.xdist_group("mpi")
@pytest.mark.timeout(400)
def test_a_lost_worker_goes_on_from_a_survivors_state(tmp_path):
    """Neither its old model nor its old momentum is averaged with the others'."""
    run_ranks(tmp_path, 2, LOSE, guarded=True, fails=True)
    (first,) = load(tmp_path, "first", [0])
    assert list(first["report"].lost) == [1]
    result = run_ranks(tmp_path, 2, LOSE, "again")
    (line,) = [x for x in result.stderr.splitlines() if "was lost in the run" in x]
    assert "worker 1 was" in line and "the state of worker 0" in line
    assert result.stderr.count("none is left to compute") == 1
    again, second = (load(tmp_path, name, range(2)) for name in ("again", "second"))
    for outcome in again:
        assert not outcome["report"].gradient_counts.any()
        for ours, theirs in zip(
            leaves(outcome["workers"]), leaves(first["workers"]), strict=True
        ):
            np.testing.assert_array_equal(ours, theirs)
    before = second[0]["report"].gradients_before
    assert before[0] > 120 and 0 < before[1] < 30
    batches = second[1]["metrics"]["batch"][0]
    np.testing.assert_array_equal(batches, before[1] + np.arange(len(batches)))
