"""Steps of many rounds: in simulation they are a matrix product, or a loop."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import djax
from djax import communicators, compressors, mixing, topologies

N = 16
WORKERS = communicators.simulated(N)
COMPLETE = topologies.complete(N)
RANDOM = np.random.default_rng(0).random((2, N, N))
GRAPHS = {
    "star": topologies.star(N),
    "complete": COMPLETE,
    "directed": topologies.equi_static(N, degree=10, directed=True),
    "in time": topologies.matcha(COMPLETE, 0.6, period=5),
}
# Push-sum takes weights whose rows do not sum to one.
UNBALANCED = topologies.from_matrices(RANDOM / RANDOM.sum(axis=1, keepdims=True))


def models(*, broken: bool = False) -> np.ndarray:
    x = np.random.default_rng(1).normal(size=(N, 3, 2))
    if broken:
        x[0, 0], x[3, 1], x[5, 1, 0], x[:, 2, 1] = np.nan, np.inf, -np.inf, np.nan
    return x


def displacement(graph, x, step=3):
    move = WORKERS.spmd(lambda x: mixing.displacement(x, graph, WORKERS, step=step))
    return np.asarray(jax.jit(move)(jnp.asarray(x)))


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("name", GRAPHS)
def test_the_product_is_the_sum_of_finite_differences(name, broken):
    graph, x = GRAPHS[name], models(broken=broken)
    with np.errstate(invalid="ignore"):
        apart = x[np.newaxis] - x[:, np.newaxis]
    matrix = graph.matrices[3 % graph.period]
    expected = np.einsum(
        "ij,ij...->i...", matrix, np.where(np.isfinite(apart), apart, 0)
    )
    with jax.enable_x64():
        found = displacement(graph, x)
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize("name", ["star", "directed", "in time"])
def test_equal_models_do_not_move(name):
    x = np.broadcast_to(np.float32(models()[0]), (N, 3, 2))
    np.testing.assert_array_equal(displacement(GRAPHS[name], x), 0)


@pytest.mark.parametrize("name", GRAPHS)
def test_nonnegative_values_stay_so(name):
    """Rounding errors of large values do not make a small one negative."""
    x = np.exp(10 * np.random.default_rng(2).normal(size=(N, 50))).astype(np.float32)
    x[0], x[1:4] = x.max(axis=0), 0
    assert (x + displacement(GRAPHS[name], x) >= 0).all()


def test_equal_models_stay_equal_on_a_complete_graph():
    x = np.broadcast_to(np.float32(models()[0]), (N, 3, 2))
    found = displacement(COMPLETE, x)
    np.testing.assert_array_equal(found, np.broadcast_to(found[:1], found.shape))
    np.testing.assert_allclose(found, 0, atol=1e-6)


def test_half_precision_is_summed_in_single():
    x = jnp.asarray(models(), jnp.bfloat16)
    expected = displacement(GRAPHS["star"], x.astype(jnp.float32))
    np.testing.assert_allclose(displacement(GRAPHS["star"], x), expected, atol=1e-6)


def test_runs_of_a_sweep_do_not_disturb_each_other():
    """One of two runs has a model that is not finite."""
    both = np.float32([models(), models(broken=True)])
    move = WORKERS.spmd(lambda x: mixing.displacement(x, GRAPHS["star"], WORKERS))
    found = jax.vmap(move)(jnp.asarray(both))
    for x, y in zip(both, found, strict=True):
        np.testing.assert_allclose(y, displacement(GRAPHS["star"], x), atol=1e-6)


@pytest.mark.parametrize("graph", [GRAPHS["star"], COMPLETE])
@pytest.mark.parametrize("compile_first", [False, True])
def test_the_product_has_a_derivative(graph, compile_first):
    move = WORKERS.spmd(lambda x: mixing.displacement(x, graph, WORKERS))
    move = jax.jit(move) if compile_first else move

    def energy(x):
        return jnp.sum(move(x) ** 2)

    x = jnp.asarray(models()[:, 0].ravel()[:N], jnp.float32)
    laplacian = graph.mixing_matrix - np.eye(N)
    expected = 2 * laplacian.T @ laplacian @ np.asarray(x)
    np.testing.assert_allclose(jax.grad(energy)(x), expected, atol=1e-5)


MECHANISMS = {
    "choco": lambda c: djax.choco_gossip(
        GRAPHS["star"], c, compressors.top_k(0.5), 0.5
    ),
    "push-sum": lambda c: djax.push_sum(UNBALANCED, c),
    "moniqua": lambda c: djax.moniqua(COMPLETE, c, 8.0, 0.5, bits=8),
}


@pytest.mark.parametrize(
    ("name", "broken"),
    [("choco", False), ("choco", True), ("push-sum", False), ("push-sum", True)]
    + [("moniqua", False)],  # It takes numbers that are not finite for finite ones.
)
def test_all_ways_give_the_same(name, broken, monkeypatch):
    found = []
    for way in ("chosen", "rounds", "loop"):
        if way != "chosen":
            choice = {"rounds": lambda count, *_: count, "loop": lambda *_: "loop"}
            monkeypatch.setattr(mixing, "choose", choice[way])
        mechanism = MECHANISMS[name](WORKERS)

        def worker(x, mechanism=mechanism):
            state = mechanism.init(x)
            for _ in range(2):
                updates, state = mechanism.update(jnp.zeros_like(x), state, x)
                x = x + updates
            return x

        x = jnp.asarray(models(broken=broken)[:, :, 0], jnp.float32)
        found.append(jax.jit(WORKERS.spmd(worker))(x))
    for other in found[1:]:
        np.testing.assert_allclose(found[0], other, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["gossip", "moniqua"])
def test_programs_do_not_grow_with_the_rounds(name):
    sizes = []
    for n in (40, 80):
        workers, graph = communicators.simulated(n), topologies.star(n)
        averaging = {
            "gossip": lambda w, g: djax.gossip(g, w),
            "moniqua": lambda w, g: djax.moniqua(g, w, 1.0, 0.1),
        }[name](workers, graph)

        def worker(x, averaging=averaging):
            return averaging.update(x, averaging.init(x), x)[0]

        sizes.append(str(jax.make_jaxpr(workers.spmd(worker))(jnp.ones((n, 2)))))
    assert sizes[0].count("\n") == sizes[1].count("\n")
