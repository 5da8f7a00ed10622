"""Orders of links that go wrong in silence, as seen while steps are traced."""

import warnings

import jax
import jax.numpy as jnp
import optax
import pytest

import djax
from djax import communicators, simulation, topologies

N = 4
RING, WORKERS = topologies.ring(N), communicators.simulated(N)
GOSSIP = djax.gossip(RING, WORKERS)
BOTH = {"b": True, "w": True}
ONE = {"b": True, "w": False}

WRONG = {
    "behind": optax.chain(GOSSIP, optax.sgd(0.1)),
    "masked behind": optax.chain(optax.masked(GOSSIP, ONE), optax.sgd(0.1)),
    "clipped": optax.chain(optax.sgd(0.1), GOSSIP, optax.clip(0.1)),
    "clipped within": djax.decentralized(
        optax.sgd(0.1), optax.chain(GOSSIP, optax.clip(0.1))
    ),
    "clipped outside": optax.chain(
        djax.decentralized(optax.sgd(0.1, 0.9), GOSSIP, average_state=True),
        optax.clip(0.1),
    ),
    "corrected behind": optax.chain(
        djax.d2(djax.gossip(RING, WORKERS, consensus_rate=0.5)), optax.sgd(0.1)
    ),
}
RIGHT = {
    "last": optax.chain(optax.sgd(0.1), GOSSIP),
    "masked": optax.chain(optax.sgd(0.1), optax.masked(GOSSIP, ONE)),
    "only": optax.chain(optax.sgd(0.1), djax.only(ONE, GOSSIP)),
    "every": optax.chain(optax.sgd(0.1), djax.every(2, GOSSIP)),
    "every masked": optax.chain(
        optax.sgd(0.1), djax.every(2, optax.masked(GOSSIP, ONE))
    ),
    "interleave": optax.chain(optax.sgd(0.1), djax.interleave([GOSSIP, GOSSIP])),
    "on updates": optax.chain(djax.on_updates(GOSSIP), optax.adam(0.1)),
    "every on updates": optax.chain(
        djax.every(2, djax.on_updates(djax.all_reduce(WORKERS))), optax.adam(0.1)
    ),
    "quasi-global": djax.quasi_global_momentum(0.1, GOSSIP),
    "averaged state": djax.decentralized(
        optax.adam(0.1), GOSSIP, average_state=djax.every(2, djax.all_reduce(WORKERS))
    ),
    "momentum tracking": djax.momentum_tracking(0.1, RING, WORKERS),
    "beer": djax.beer(0.1, RING, WORKERS, djax.compressors.sign(), 0.1),
    "gut": djax.gut(0.1, RING, WORKERS),
    "injected": optax.inject_hyperparams(djax.dpsgd, static_args=["nesterov"])(
        0.1, RING, WORKERS
    ),
    "several steps": optax.MultiSteps(optax.chain(optax.sgd(0.1), GOSSIP), 2),
    "partition": optax.partition(
        {0: optax.chain(optax.sgd(0.1), GOSSIP), 1: optax.adam(0.1)}, {"b": 0, "w": 1}
    ),
    "schedule free": optax.contrib.schedule_free(
        optax.chain(optax.sgd(0.1), GOSSIP), 0.1
    ),
    "flat": optax.flatten(optax.chain(optax.sgd(0.1), GOSSIP)),
    "flat within every": optax.chain(
        optax.sgd(0.1), djax.every(2, optax.flatten(GOSSIP))
    ),
    "alone": optax.sgd(0.1),
}


def train(optimizer, dispatch=False):
    def gradient_fn(x, state, batch):
        return jax.tree.map(lambda v: v - batch, x), state, {}

    x = {"b": jnp.zeros((N, 2)), "w": jnp.ones((N, 2, 2))}
    workers = simulation.init_workers(optimizer, WORKERS, x)
    steps = simulation.make_steps(gradient_fn, optimizer, WORKERS, dispatch=dispatch)
    with jax.numpy_dtype_promotion("standard"):  # Adam needs it.
        return steps(workers, jnp.zeros((N, 3)))


@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("name", WRONG)
def test_links_behind_a_mechanism_are_told(name, dispatch):
    with pytest.warns(UserWarning, match="make_steps: check: the optimizer has 1 prob"):
        train(WRONG[name], dispatch)


@pytest.mark.parametrize("name", RIGHT)
def test_right_orders_pass(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        train(RIGHT[name])


def test_an_optimizer_inside_of_every_is_told():
    rarely = djax.every(4, optax.chain(optax.sgd(0.1), GOSSIP))
    with pytest.warns(UserWarning, match="raw gradients are added to them. Give every"):
        train(rarely)


def test_make_steps_measures_codes_that_say_nothing():
    """A code of one's own that is no contraction, which CHOCO would diverge with."""
    twice = djax.Compressor(
        lambda params: (),
        lambda tree, state: (jax.tree.map(lambda x: 3 * x, tree), state),
        lambda message, like: message,
    )
    with pytest.raises(
        ValueError, match="make_steps: choco_gossip needs a contraction"
    ):
        train(djax.choco_sgd(0.1, RING, WORKERS, twice, 0.1))
    same = twice._replace(compress=lambda tree, state: (tree, state))
    train(djax.choco_sgd(0.1, RING, WORKERS, same, 0.1))
