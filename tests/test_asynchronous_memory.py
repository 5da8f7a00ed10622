"""What asynchronous training keeps in memory."""

import gc
import os
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_asynchronous_mpi import load, run_ranks

import djax
from djax.asynchronous import draw_events, simulate
from djax.asynchronous.runtime._history import History


def resident():
    """Bytes of this process."""
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


linux = pytest.mark.skipif(
    not pathlib.Path("/proc/self/statm").exists(), reason="needs /proc"
)


@pytest.mark.slow
@linux
def test_algorithms_made_anew_do_not_pile_up():
    """Each has compiled programs, of several megabytes, which have to go with it."""
    ring = djax.topologies.ring(4)
    events = draw_events(ring, gradients=8)

    def gradient_fn(x, state, target):
        return x - target, state, {}

    def go():
        algorithm = djax.acid(optax.sgd(0.1), djax.acid_constants(ring))
        *_, last = simulate(
            algorithm, events, jnp.ones(4), gradient_fn, lambda e: jnp.ones((4, 1))
        )
        jax.block_until_ready(last.params)

    for _ in range(5):
        go()
    before = resident()
    for _ in range(7):
        go()
    assert resident() - before < 30e6  # It was about 9 MB each.


def test_equal_algorithms_are_one():
    ring, base = djax.topologies.ring(4), optax.sgd(0.1)
    make = djax.acid_constants
    first = djax.acid(base, make(ring))
    assert djax.acid(base, make(ring)) is first
    assert djax.adpsgd(base) is djax.adpsgd(base)
    assert djax.acid(base, make(ring, 2.0)) is not first
    assert djax.acid(base, djax.AcidConstants(*make(ring))) is not first
    assert djax.acid(optax.sgd(0.1), make(ring)) is not first


def test_a_history_is_what_was_appended():
    history = History()
    assert history.stacked() == ()
    for k in range(2500):
        history.append({"loss": jnp.float32(k), "pair": np.full(2, k)})
    found = history.stacked()
    assert found["loss"].dtype == np.float32 and found["pair"].shape == (1, 2500, 2)
    np.testing.assert_array_equal(found["loss"], np.arange(2500)[None])


MANY = """
import gc

def resident():
    gc.collect()
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")

def gradient_fn(x, state, target):
    return x - target, state, {"loss": jnp.sum(x), "norm": jnp.sum(x * x)}

seen = {}
def progress(gradients):
    count = seen["count"] = seen.get("count", 0) + 1
    if count in (500, 2000):
        seen[count] = resident()

asynchronous.run(
    adpsgd, gradient_fn, lambda epoch: jnp.ones((1, 4, 100)), MPI, ring,
    jnp.zeros((1, 100)), seconds=120.0, rate=0.2, progress=progress, snapshots=4,
    stop=lambda: seen["count"] >= 2000,
)
dump("each", (seen.get(2000, seen[500]) - seen[500]) / 1500)
"""


@linux
@pytest.mark.xdist_group("mpi")
@pytest.mark.timeout(400)
def test_a_gradient_leaves_nothing_but_its_record_and_metrics(tmp_path):
    """JAX's array of a metric holds kilobytes, of which its value is four."""
    run_ranks(tmp_path, 2, MANY)
    assert max(load(tmp_path, "each", range(2))) < 1500  # About 60 were measured.
