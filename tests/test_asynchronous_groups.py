"""Asynchronous runs in which a worker of the graph is a group of ranks."""

import pickle

import numpy as np
import pytest
from launch import mpirun

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(300)]

# Four ranks are two groups. The gradients of quadratics are known, and whole numbers.
PROGRAM = """
import os, pathlib, pickle, sys
import jax, jax.numpy as jnp, numpy as np, optax
import djax
from djax import asynchronous, topologies

workers = djax.communicators.mpi()
rank, folder = workers.rank(), pathlib.Path(sys.argv[1])
local, across = djax.communicators.grouped(workers, 2)
pair, found = topologies.ring(2), {}
start = {"b": np.float32(rank), "w": np.arange(15, dtype=np.float32).reshape(5, 3)}

def constant(params, state, batch):
    '''A gradient that says which rank made it, and nothing of the model.'''
    grads = jax.tree.map(lambda x: jnp.full_like(x, batch), params)
    return grads, state, {"rank": batch}

def towards(params, state, batch):
    grads = jax.tree.map(lambda x: x - batch, params)
    return grads, state, {}

def run(gradient_fn, gradients, algorithm=djax.adpsgd(optax.sgd(0.25)), batches=None,
        **options):
    rows = np.full((1, 4), rank, np.float32) if batches is None else batches
    outcome = asynchronous.run(
        algorithm, gradient_fn, lambda epoch: rows, across, pair,
        jax.tree.map(lambda x: np.asarray(x)[None], start), local=local,
        gradients=gradients, **options,
    )
    return jax.tree.map(np.asarray, outcome._replace(report=None)), outcome.report

found["alone"] = run(constant, 8, rate=0.0)
found["not jitted"] = run(constant, 4, rate=0.0, jit=False)
# The 15 entries are not the same everywhere: what one group gains the other one loses.
found["mixed"] = run(constant, 40, rate=2.0)
acid = djax.acid(optax.sgd(0.1), djax.acid_constants(pair))
found["acid"] = run(towards, 300, acid, keep_snapshots=True)
turns = [0]

def third():
    turns[0] += 1
    return rank == 3 and turns[0] >= 5

found["stopped"] = run(constant, None, seconds=60.0, stop=third)
for nonfinite in ("skip", "raise"):
    rows = np.full((1, 4), rank, np.float32)
    rows[0, 2] = np.nan if rank == 3 else rank
    try:
        found[nonfinite] = run(constant, 8, batches=rows, rate=0.0, nonfinite=nonfinite)
    except asynchronous.NonFiniteError as error:
        found[nonfinite] = str(error)
saved = djax.training.Checkpoints(folder / "saved", resume=True)
found["begun"] = run(constant, 4, rate=0.0, checkpoints=saved)
found["resumed"] = run(constant, 8, rate=0.0, checkpoints=saved)
mistakes = [
    dict(local=None), dict(local=across), dict(transport="zmq"),
]
found["mistakes"] = []
for wrong in mistakes:
    try:
        asynchronous.run(
            acid, constant, lambda epoch: rows, across, pair, np.zeros((1, 3)),
            **{"local": local, "gradients": 1, **wrong},
        )
    except ValueError as error:
        found["mistakes"].append(str(error))
(folder / f"found {rank}").write_bytes(pickle.dumps(found))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """What each of four ranks has found."""
    folder = tmp_path_factory.mktemp("groups")
    result = mpirun(4, "-c", PROGRAM, str(folder), timeout=200)
    assert result.returncode == 0, result.stdout + result.stderr
    return [pickle.loads((folder / f"found {r}").read_bytes()) for r in range(4)]


def models(ranks, name):
    return [rank[name][0].workers.params for rank in ranks]


@pytest.mark.parametrize("name", ["alone", "not jitted", "resumed"])
def test_a_group_makes_the_steps_of_its_mean_gradient(ranks, name):
    """All start from the model of rank 0, and step along 0.5 or along 2.5."""
    for rank, model in enumerate(models(ranks, name)):
        report = ranks[rank][name][1]
        steps = report.gradient_counts[rank // 2]
        if name == "resumed":
            steps = steps + ranks[rank]["begun"][1].gradient_counts[rank // 2]
        moved = 0.25 * steps * (0.5, 2.5)[rank // 2]
        np.testing.assert_array_equal(model["b"], [-moved])
        whole = np.arange(15).reshape(1, 5, 3) - moved
        np.testing.assert_array_equal(model["w"], whole)


@pytest.mark.parametrize("name", ["alone", "mixed", "acid", "stopped", "skip"])
def test_members_of_a_group_have_the_same_model(ranks, name):
    found = models(ranks, name)
    for first, second in (found[:2], found[2:]):
        for x, y in zip(first.values(), second.values(), strict=True):
            np.testing.assert_array_equal(x, y)


def test_averaging_keeps_the_sum_of_the_groups(ranks):
    """Each share is averaged at times of its own, and none is lost."""
    counts = ranks[0]["mixed"][1].gradient_counts
    moved = 0.25 * (0.5 * counts[0] + 2.5 * counts[1])
    first, _, second, _ = models(ranks, "mixed")
    total = first["w"] + second["w"]
    np.testing.assert_allclose(total, 2 * np.arange(15).reshape(1, 5, 3) - moved)
    assert ranks[0]["mixed"][1].averaging_counts.sum() > 0


def test_acid_finds_the_optimum_of_all_ranks(ranks):
    for rank in ranks:
        mean = rank["acid"][0].params
        np.testing.assert_allclose(mean["w"], 1.5, atol=0.3)
        np.testing.assert_array_equal(mean["w"], ranks[0]["acid"][0].params["w"])


def test_snapshots_have_whole_models(ranks):
    for rank in ranks:
        snapshots = rank["acid"][0].snapshots
        assert snapshots
        assert all(each.params["w"].shape == (1, 5, 3) for each in snapshots)
    for members in (ranks[:2], ranks[2:]):
        kept = [rank["acid"][0].snapshots for rank in members]
        for one, two in zip(*kept, strict=True):
            np.testing.assert_array_equal(one.params["w"], two.params["w"])


def test_all_stop_if_one_member_does(ranks):
    for rank in ranks:
        assert (rank["stopped"][1].gradient_counts < 10_000).all()


def test_a_gradient_that_is_not_finite_concerns_its_group(ranks):
    """Rank 3 has one, which its group leaves out, or which ends the run for all."""
    for rank in range(4):
        counts = ranks[rank]["skip"][1].gradient_counts
        lost = counts[1] // 4 + (counts[1] % 4 > 2)
        if rank >= 2:
            moved = 0.25 * 2.5 * (counts[1] - lost)
            np.testing.assert_allclose(models(ranks, "skip")[rank]["b"], [-moved])
        assert "worker 1" in ranks[rank]["raise"]


def test_mistakes_are_named_before_anything_starts(ranks):
    for rank in ranks:
        one, two, zmq = rank["mistakes"]
        assert "pass local=" in one and "one call of djax.communicators" in two
        assert "transport='mpi'" in zmq
