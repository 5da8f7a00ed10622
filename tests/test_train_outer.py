"""Outer optimizers of the command line are those of djax."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from experiments.lib import algorithms, optimizers, ranges
from experiments.lib.errors import UsageError
from experiments.lib.outer import OUTER, Outer, check_outer

COMMUNICATOR, STEPS = djax.communicators.simulated(4), 10
BASE = optimizers.BaseOptimizer(warmup=0.0, decay_at=(0.2,))
"""The learning rate falls after two of the ten steps."""
RATE = optimizers.learning_rate_schedule(BASE, STEPS)
PAIRS = djax.topologies.random_matchings(4, period=256)
MECHANISM = djax.gossip(PAIRS, COMMUNICATOR)

pytestmark = pytest.mark.usefixtures("as_users")


def trajectory(optimizer):
    """Where the workers are after four steps."""
    starts = jnp.arange(12.0).reshape(4, 3)

    def worker(x):
        state = optimizer.init(x)
        for _ in range(4):
            updates, state = optimizer.update(jnp.sin(x), state, x)
            x = optax.apply_updates(x, updates)
        return x

    return jax.jit(COMMUNICATOR.spmd(worker))(starts)


def base():
    return optax.sgd(RATE, momentum=0.9, nesterov=True)


@pytest.mark.parametrize(
    ("outer", "expected"),
    [
        (
            Outer("diloco", outer_period=2),
            djax.diloco(base(), MECHANISM, period=2),
        ),
        (
            Outer("diloco", outer_period=2, outer_nesterov=False, outer_momentum=0.4),
            djax.diloco(
                base(), MECHANISM, period=2, outer_momentum=0.4, nesterov=False
            ),
        ),
        (
            Outer("streaming_diloco", outer_period=4, fragments=1, delay=1, blend=0.3),
            djax.streaming_diloco(
                base(), MECHANISM, period=4, fragments=1, delay=1, blend=0.3
            ),
        ),
        (
            Outer("slowmo", outer_period=2, base_state="reset"),
            djax.slowmo(
                base(), MECHANISM, period=2, learning_rate=RATE, base_state="reset"
            ),
        ),
        (
            Outer("noloco", outer_period=2),
            djax.noloco(base(), COMMUNICATOR, period=2),
        ),
    ],
)
def test_outer_optimizers_are_those_of_djax(outer, expected):
    """Over any mechanism, with the papers' defaults, and the schedule for SlowMo."""
    config = algorithms.Algorithm()
    how = config, BASE, STEPS, (PAIRS,), COMMUNICATOR
    ours = algorithms.make_optimizer(*how, outer)
    np.testing.assert_allclose(trajectory(ours), trajectory(expected), rtol=1e-6)
    plain = algorithms.make_optimizer(*how)
    assert not np.allclose(trajectory(ours), trajectory(plain), rtol=1e-3)


@pytest.mark.parametrize("graph", ["double_binary_trees", "ring"])
def test_all_reduce_averages_models(graph):
    """As it does with local steps, whatever the graph is."""
    graphs = getattr(djax.topologies, graph)(4)
    graphs = graphs if isinstance(graphs, tuple) else (graphs,)
    config = algorithms.Algorithm(algorithm="all_reduce_sgd")
    how = config, BASE, STEPS, graphs, COMMUNICATOR, Outer("diloco", outer_period=4)
    ours = np.asarray(trajectory(algorithms.make_optimizer(*how)))
    expected = djax.diloco(base(), COMMUNICATOR, period=4)
    np.testing.assert_allclose(ours, trajectory(expected), rtol=1e-6)


def test_every_option_belongs_to_an_outer_optimizer():
    unused = set(vars(Outer())) - {"outer"}
    given = {"outer_nesterov": False, "base_state": "reset"}
    for name in OUTER:
        for option in sorted(set(vars(Outer())) - {"outer"}):
            try:
                check_outer(Outer(name, **{option: given.get(option, 1)}))
            except UsageError as error:
                assert f"--outer {name} has no option --" in str(error)
                assert ranges.flag(option) not in str(error).partition("only")[2]
            else:
                unused.discard(option)
    assert not unused
