"""Compositions that lose what a mechanism is for, and what stands in for them."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

N = 4
RING, WORKERS = topologies.ring(N), communicators.simulated(N)
LOW_RANK = djax.compressors.low_rank(1)
GOSSIP = djax.gossip(RING, WORKERS)

COMPRESS_MATRICES = {
    "power_gossip": djax.power_gossip(RING, WORKERS),
    "choco_gossip": djax.choco_gossip(RING, WORKERS, LOW_RANK, 0.1),
    "deep_squeeze": djax.deep_squeeze(RING, WORKERS, LOW_RANK, 0.1),
    "beer": djax.beer(0.1, RING, WORKERS, LOW_RANK, 0.1),
    "every": djax.every(2, djax.power_gossip(RING, WORKERS)),
}


@pytest.mark.parametrize("name", COMPRESS_MATRICES)
def test_interleave_refuses_what_compresses_matrices(name):
    """It deals out their coordinates: everything would be sent, without a word."""
    mechanism = COMPRESS_MATRICES[name]
    dealt = djax.interleave([GOSSIP, mechanism])
    init = WORKERS.spmd(dealt.init)
    with pytest.raises(ValueError, match="compresses matrices.*without interleave"):
        init({"w": jnp.zeros((N, 3, 2)), "b": jnp.zeros((N, 2))})
    init({"b": jnp.zeros((N, 2))})  # There is no matrix that could be cut.
    WORKERS.spmd(mechanism.init)({"b": jnp.zeros((N, 2))})


def test_interleave_of_no_parameters_does_nothing():
    mechanism = djax.interleave([GOSSIP, GOSSIP])

    def worker(_):
        return mechanism.update({}, mechanism.init({}), {})[0]

    assert WORKERS.spmd(worker)(jnp.zeros(N)) == {}


def test_interleave_takes_a_list():
    with pytest.raises(TypeError, match="interleave takes a list"):
        djax.interleave(GOSSIP)
    with pytest.raises(TypeError, match=r"mechanisms\[1\]: expected .* got .*gossip"):
        djax.interleave([GOSSIP, djax.gossip])


@pytest.mark.parametrize("params", [(), {}, {"a": None}])
def test_no_parameters_are_at_no_distance(params):
    for metric in (djax.metrics.worker_distance, djax.metrics.consensus_distance):
        distance = WORKERS.spmd(lambda _, m=metric: m(params, WORKERS))(jnp.zeros(N))
        np.testing.assert_array_equal(distance, np.zeros(N))


STATIC = {
    "power_gossip": (
        ("rank", "iterations", "rows_axis"),
        lambda f: f(RING, WORKERS, rank=1),
    ),
    "power_gossip_sgd": (
        ("rank", "iterations", "rows_axis"),
        lambda f: f(0.1, RING, WORKERS, rank=1),
    ),
    "moniqua": (("bits",), lambda f: f(RING, WORKERS, 1.0, 0.1)),
    "push_sum": (
        ("rounds",),
        lambda f: f(topologies.one_peer_exponential(N), WORKERS),
    ),
    "sgp": (
        ("rounds",),
        lambda f: f(0.1, topologies.one_peer_exponential(N), WORKERS),
    ),
    "every": (("k",), lambda f: f(2, GOSSIP)),
    "sparse": (("fraction",), lambda f: f(GOSSIP, 0.5)),
    "led": (("period",), lambda f: f(2, GOSSIP, 0.1)),
    "k_gt": (("period",), lambda f: f(2, GOSSIP)),
    "prox_skip": (("probability", "key"), lambda f: f(0.5, GOSSIP, 0.1)),
    "demo": (("k", "chunk"), lambda f: f(0.1, WORKERS, k=2, chunk=8)),
}


@pytest.mark.parametrize("name", STATIC)
def test_integers_of_a_program_are_static(name):
    """The error says by which option of optax, with all names at once."""
    names, make = STATIC[name]
    wanted = re.escape(f"optax.inject_hyperparams({name}, static_args={names!r})")
    params = jnp.zeros((N, 2, 2))
    for compiled in (lambda f: f, jax.jit):
        injected = make(optax.inject_hyperparams(getattr(djax, name)))
        with pytest.raises(ValueError, match=wanted):
            compiled(WORKERS.spmd(injected.init))(params)
    remedied = make(optax.inject_hyperparams(getattr(djax, name), static_args=names))

    def step(params):
        return remedied.update(params, remedied.init(params), params)[0]

    jax.jit(WORKERS.spmd(step))(params)


def test_d2_accepts_under_inject_hyperparams_what_it_accepts():
    """The smallest eigenvalue of a ring of 4 is exactly the smallest allowed one."""
    params = jnp.zeros(N)
    injected = optax.inject_hyperparams(djax.d2_sgd)(0.1, RING, WORKERS)
    djax.d2_sgd(0.1, RING, WORKERS, consensus_rate=jnp.float32(1))
    state = WORKERS.spmd(injected.init)(params)
    jax.jit(WORKERS.spmd(injected.update))(params, state, params)
    with pytest.raises(ValueError, match="d2_sgd diverges"):
        djax.d2_sgd(0.1, topologies.ring(N, weights=0.45), WORKERS)


def test_gossip_belongs_inside_of_schedule_free():
    """Its evaluation point is read off the iterates, which nobody else may move."""
    inner = optax.chain(optax.sgd(0.1), GOSSIP)
    optimizer = optax.contrib.schedule_free(inner, 0.1)
    target = jnp.asarray([0.0, 1.0, 2.0, 5.0])  # The optimum of the mean loss is 2.

    def worker(target):
        def step(carry, _):
            x, state = carry
            updates, state = optimizer.update(x - target, state, x)
            return (x + updates, state), None

        x = jnp.zeros_like(target)
        carry, _ = jax.lax.scan(step, (x, optimizer.init(x)), length=2000)
        return optax.contrib.schedule_free_eval_params(carry[1], carry[0])

    with jax.numpy_dtype_promotion("standard"):
        models = jax.jit(WORKERS.spmd(worker))(target)
    np.testing.assert_allclose(models.mean(), 2.0, atol=0.02)
    assert np.abs(np.asarray(models) - 2).max() < 0.5
