"""Trajectories of the published optimizers, see golden/README.md.

Left out are the cases `momtrack_*__irr`. There the authors' code averages with the
uniform weights 1 / (degree + 1) on an irregular graph, whose matrix is not doubly
stochastic: the workers' mean moves, and they meet at a wrong point. No graph of djax
has such weights. These cases are compared with the equations alone.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import pytest
import references

import djax
from djax import communicators, compressors, topologies

GOLDEN = pathlib.Path(__file__).parent / "golden"
RUNS = np.load(GOLDEN / "misc_n8.npz")
CASES = json.loads((GOLDEN / "misc_n8.json").read_text())
LEFT_OUT = {"momtrack_l2_0__irr", "momtrack_l2_default__irr"}
WORKERS = communicators.simulated(8)


def cases(*names):
    return [case for case in CASES if case.startswith(names)]


def gradient(x):
    """The gradients of all workers, `[n, d]`."""
    residual = np.einsum("nkd,nd->nk", RUNS["A"], x) - RUNS["b"]
    return np.einsum("nkd,nk->nd", RUNS["A"], residual)


def graph_of(matrix):
    edges = nx.from_numpy_array((matrix != 0) & ~np.eye(len(matrix), dtype=bool))
    return topologies.from_networkx(edges, weights=matrix)


def largest_entries(count, length):
    return compressors.top_k(count / length)


def optimizer_of(case):
    """djax's optimizer for a case of `misc_n8.json`."""
    told = CASES[case]
    if case.startswith("beer"):
        kind, *count = told["comp"]
        code = largest_entries(*count, 5) if kind == "topk" else compressors.identity()
        graph = graph_of(RUNS[f"W__{told['graph']}"])
        return djax.beer(told["eta"], graph, WORKERS, code, told["gamma"])
    if case.startswith("momtrack"):
        graph = graph_of(RUNS[f"U__{told['graph']}"])
        options = {"momentum": told["beta"], "weight_decay": told["l2"]}
        return djax.momentum_tracking(told["lr"], graph, WORKERS, **options)
    return djax.gut(
        *(told["lr"], topologies.ring(8), WORKERS),
        momentum=told["mom"] or None,
        nesterov=told["nesterov"],
        scaling=told["mu"],
        consensus_rate=told["gamma"],
    )


def trajectory(optimizer, start, steps):
    """Parameters and states after every step, leaves `[worker, step, ...]`."""

    def worker(matrix, offset, x):
        def step(carry, _):
            x, state = carry
            gradient = matrix.T @ (matrix @ x - offset)
            updates, state = optimizer.update(gradient, state, x)
            return (x + updates, state), (x + updates, state)

        return jax.lax.scan(step, (x, optimizer.init(x)), length=steps)[1]

    arrays = map(jnp.asarray, (RUNS["A"], RUNS["b"], start))
    return jax.jit(WORKERS.spmd(worker))(*arrays)


def assert_close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize(
    "case",
    [c for c in cases("beer", "momtrack") if not c.startswith("mom") or "ring" in c],
)
def test_parameters_follow_the_published_code(case):
    expected = RUNS[f"x__{case}"]
    with jax.enable_x64(True):
        found, _ = trajectory(optimizer_of(case), expected[0], len(expected) - 1)
    assert_close(np.asarray(found).swapaxes(0, 1), expected[1:])


@pytest.mark.parametrize("case", cases("gut", "qggut"))
def test_the_models_of_gut_follow_the_published_code(case):
    """Whose gradients are taken at other points than at the models that it records."""
    expected = RUNS[f"x__{case}"]
    with jax.enable_x64(True):
        x, states = trajectory(optimizer_of(case), expected[0], len(expected) - 1)
        found = djax.gut_eval_params(states, x)
    assert_close(np.asarray(found).swapaxes(0, 1), expected[1:])
    assert np.abs(found - x).max() > 1e-2


@pytest.mark.parametrize("case", cases("beer"))
def test_the_copies_of_beer_are_those_of_the_published_code(case):
    """The estimates follow one call later: they need the gradient at the new models."""
    models = RUNS[f"x__{case}"]
    steps = len(models) - 1
    with jax.enable_x64(True):
        _, states = trajectory(optimizer_of(case), models[0], steps + 1)
        states = jax.tree.map(np.asarray, states)
    of_models, of_estimates = states.estimate
    assert_close(of_models[:, steps - 1], RUNS[f"H__{case}"])
    assert_close(of_estimates[:, steps], RUNS[f"G__{case}"])
    estimates = states.correction[:, steps] + gradient(models[-1])
    assert_close(estimates, RUNS[f"V__{case}"])


def momentum_tracking(case, matrix, steps):
    """The equations of Momentum Tracking with another matrix or number of steps."""
    told, start = CASES[case], RUNS[f"x__{case}"][0]
    options = {"beta": told["beta"], "decay": told["l2"]}
    return references.momentum_tracking(
        gradient, start, told["lr"], steps, RUNS[matrix], **options
    )


@pytest.mark.parametrize("case", cases("momtrack"))
def test_the_equations_of_momentum_tracking_are_those_of_the_published_code(case):
    told, expected = CASES[case], RUNS[f"x__{case}"]
    found = momentum_tracking(case, f"U__{told['graph']}", told["steps"])
    assert_close(found, expected[-1])


def test_momentum_tracking_needs_doubly_stochastic_weights():
    """Which the published code has on regular graphs alone."""
    case = "momtrack_l2_0__irr"
    for matrix, least, most in (("U__irr", 0.03, np.inf), ("W__irr", 0, 1e-9)):
        x = momentum_tracking(case, matrix, 3000)
        np.testing.assert_allclose(x, np.tile(x.mean(0), (8, 1)), atol=1e-12)
        assert least <= np.linalg.norm(gradient(x).mean(0)) < most
    with pytest.raises(ValueError, match=r"mixing_matrix\[0, 1\] is 0.2 but"):
        optimizer_of(case)
