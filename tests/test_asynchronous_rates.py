"""Constants of A²CiD², and the rates that they are for."""

import copy
import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import topologies
from djax.asynchronous import Events, draw_events, edge_rates, simulate

RING = topologies.ring(8)
UNEVEN = edge_rates(RING, 1.0).copy()
UNEVEN[0, 1] = UNEVEN[1, 0] = 2.0


def start(constants, events):
    return simulate(djax.acid(optax.sgd(0.1), constants), events, jnp.ones(8))


def events_of(topology, rate=1.0, **options):
    return draw_events(topology, rate, duration=3.0, speeds=0, **options)


@pytest.mark.parametrize(
    ("topology", "rate", "says"),
    [
        (RING, 3.0, "with 3 averagings"),
        (RING, 0.5, "with 0.5 averagings"),
        (RING, 1.01, "with 1.01 averagings"),
        (RING, UNEVEN, "averagings"),
        (topologies.complete(8), 1.0, "complete"),
        (topologies.ring(9), 1.0, "9 workers"),
    ],
)
def test_constants_of_other_rates_are_refused(topology, rate, says):
    constants = djax.acid_constants(topology, rate)
    with pytest.raises(ValueError, match="constants of acid were made for") as error:
        start(constants, events_of(RING))
    assert says in str(error.value) and "with 1 averagings" in str(error.value)
    assert "ring" in str(error.value)


def test_few_events_are_compared_by_what_was_asked():
    """Six events of a ring at rate 1 are no estimate of the rate."""
    for seed in range(5):
        start(djax.acid_constants(RING), events_of(RING, seed=seed))
    start(djax.acid_constants(RING), draw_events(RING, duration=1e-9, speeds=0))
    start(djax.acid_constants(RING, UNEVEN), events_of(RING, UNEVEN))
    # The same rates, as a number and as a matrix, but for rounding.
    start(djax.acid_constants(RING, 0.3), events_of(RING, edge_rates(RING, 0.1) * 3))
    weights = topologies.ring(8, weights="metropolis")
    start(djax.acid_constants(weights, np.float32(0.5)), events_of(RING, 0.5))


def test_what_was_made_by_hand_is_not_compared():
    made = djax.acid_constants(RING, 3.0)
    by_hand = djax.AcidConstants(*made)
    assert made == by_hand and repr(made) == repr(by_hand)
    start(by_hand, events_of(RING))
    start(made._replace(eta=0.0), events_of(RING))
    own = Events(8, [0.5], [0], [1], 1.0)
    start(made, own)


def test_copies_of_constants_are_for_the_same_rates():
    made = djax.acid_constants(RING, 3.0)
    for copied in (copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert copied == made
        with pytest.raises(ValueError, match="made for"):
            start(copied, events_of(RING))


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        (jnp.asarray([0.1, 0.2]), ValueError),
        (np.asarray([0.1]), ValueError),
        (jnp.asarray(-1.0), ValueError),
        (jnp.asarray(np.nan), ValueError),
        (np.float32(np.inf), ValueError),
        (True, ValueError),
        ("0.1", ValueError),
        (None, ValueError),
    ],
)
@pytest.mark.parametrize("name", ["eta", "alpha", "alpha_tilde"])
def test_constants_are_single_finite_numbers(value, kind, name):
    constants = djax.acid_constants(RING)._replace(**{name: value})
    with pytest.raises(kind, match=f"acid: {name} must be"):
        djax.acid(optax.sgd(0.1), constants)


def test_constants_may_be_arrays_and_traced():
    constants = djax.acid_constants(RING)._replace(eta=np.float32(0.5))
    expected = djax.acid(optax.sgd(0.1), constants)
    state = expected.init(jnp.ones(2))
    state = state._replace(momentum=jnp.zeros(2))

    @jax.jit
    def mix(eta):
        traced = djax.acid(optax.sgd(0.1), constants._replace(eta=eta))
        return traced.mix(jnp.ones(2), state, 0.5)[0]

    ours = expected.mix(jnp.ones(2), state, jnp.asarray(0.5))[0]
    np.testing.assert_allclose(mix(jnp.asarray(0.5)), ours, rtol=1e-6)


@pytest.mark.parametrize("name", ["acid", "adpsgd"])
def test_integers_in_the_model_get_a_remedy_that_fits(name):
    base = optax.sgd(0.1)
    made = djax.adpsgd(base)
    if name == "acid":
        made = djax.acid(base, djax.acid_constants(RING))
    with pytest.raises(TypeError, match="model_state") as error:
        made.init({"x": jnp.ones(2), "count": jnp.zeros(2, int)})
    assert "masked" not in str(error.value) and "count" in str(error.value)
