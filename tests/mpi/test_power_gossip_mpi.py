"""What PowerGossip's two ends of an edge agree on, over real MPI."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

MPI = communicators.mpi()
SIZE, (RANK,) = MPI.size, MPI.local_ranks


@pytest.mark.parametrize("graph", ["ring", "star"])
def test_both_ends_hold_the_same_bits_after_a_thousand_steps(graph):
    """On a star, where most workers are silent in most rounds."""
    topology = getattr(topologies, graph)(SIZE)
    power = djax.power_gossip(topology, MPI, rank=2, iterations=1)
    x = {
        "w": jnp.ones((1, 6, 9)),
        "conv": jnp.ones((1, 3, 3, 4, 5)),
        "b": jnp.ones((1, 7)),
    }

    def worker(x):
        noise = jax.random.key(RANK)

        def step(carry, t):
            x, state = carry
            u = optax.tree.random_like(jax.random.fold_in(noise, t), x)
            u, state = power.update(u, state, x)
            return (optax.apply_updates(x, u), state), None

        return jax.lax.scan(step, (x, power.init(x)), jnp.arange(1000))[0]

    x, state = jax.jit(MPI.spmd(worker))(x)
    for r, source in enumerate(topology.rounds):
        mine = jax.tree.map(lambda f, r=r: f[0, r], (state.left, state.right))
        theirs = jax.jit(lambda tree, s=source: MPI.permute(tree, s))(mine)
        for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            assert np.asarray(a).tobytes() == np.asarray(b).tobytes()
            assert np.isfinite(a).all()
