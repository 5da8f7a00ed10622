"""Workers whose gradients are not finite, in simulation: no NaN reaches a neighbour."""

import pickle

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax._arrays.finite import all_finite
from djax.asynchronous import Events, NonFiniteError, draw_events, simulate

RING = djax.topologies.ring(8)
TARGETS = jnp.arange(8.0)
SICK = 2
ALGORITHMS = {
    "acid": lambda base: djax.acid(base, djax.acid_constants(RING)),
    "adpsgd": djax.adpsgd,
}

every_algorithm = pytest.mark.parametrize("name", ALGORITHMS)
every_program = pytest.mark.parametrize("dispatch", [False, True])


def pulled(x, count, target):
    """Towards a target; NaN at worker 2's third gradient, and whenever it says so."""
    bad = (jnp.abs(target - SICK) < 0.5) & (count == 2)
    grads = jnp.where(bad, jnp.nan, x - target)
    return grads, count + 1, {"loss": 0.5 * jnp.sum((x - target) ** 2)}


def run(name, nonfinite, dispatch=False, gradient_fn=pulled, base=None, **options):
    events = draw_events(RING, gradients=160, variation=0.3)
    return list(
        simulate(
            ALGORITHMS[name](base or optax.sgd(0.1)),
            events,
            jnp.zeros((8, 3)),
            gradient_fn,
            lambda epoch: TARGETS[:, None],
            model_state=jnp.zeros(8, jnp.int32),
            dispatch=dispatch,
            nonfinite=nonfinite,
            **options,
        )
    )


@every_algorithm
@every_program
def test_an_error_names_the_worker_and_its_gradient(name, dispatch):
    with pytest.raises(NonFiniteError, match="gradient 3 of worker 2 is not finite"):
        run(name, "raise", dispatch)
    assert issubclass(NonFiniteError, FloatingPointError)


def test_raising_is_the_default():
    events = Events(2, [1.0, 1.5], [1, 0], [-1, 1], 2.0)

    def gradient_fn(x, state, batch):
        return x / 0, state, {}

    moments = simulate(
        djax.adpsgd(optax.sgd(1.0)), events, jnp.ones(2), gradient_fn,
        lambda epoch: jnp.zeros((2, 1)),
    )  # fmt: skip
    with pytest.raises(FloatingPointError, match="gradient 1 of worker 1"):
        next(moments)


def test_moments_before_the_error_are_seen():
    events = draw_events(RING, gradients=160, variation=0)
    moments = simulate(
        ALGORITHMS["acid"](optax.sgd(0.1)),
        events,
        jnp.zeros((8, 3)),
        pulled,
        lambda epoch: TARGETS[:, None],
        model_state=jnp.zeros(8, jnp.int32),
        times=[2.5],
    )
    assert np.isfinite(next(moments).params).all()
    with pytest.raises(NonFiniteError, match="gradient 3 of worker 2"):
        next(moments)


@every_algorithm
@every_program
def test_a_skipped_gradient_changes_nothing_but_the_count(name, dispatch):
    """The same as a gradient of zero, for an optimizer without memory."""

    # The model state of worker 2 stays at 2: all of its later gradients are NaN, too.
    (sick,) = run(name, "skip", dispatch)
    assert np.isfinite(sick.params).all()
    counts = draw_events(RING, gradients=160, variation=0.3).gradient_counts
    assert sick.model_state[SICK] == 2
    healthy = np.arange(8) != SICK
    np.testing.assert_array_equal(sick.model_state[healthy], counts[healthy])
    assert sick.metrics["loss"].shape == (160,)

    def silent(x, count, target):
        grads, after, metrics = pulled(x, count, target)
        bad = jnp.isnan(grads).any()
        return jnp.where(bad, 0, grads), jnp.where(bad, count, after), metrics

    (expected,) = run(name, "raise", dispatch, silent)
    np.testing.assert_allclose(sick.params, expected.params, atol=1e-6)


@every_algorithm
def test_a_skipped_gradient_is_not_seen_by_the_optimizer(name):
    base = optax.chain(optax.trace(0.5), optax.scale_by_schedule(lambda count: -0.1))
    (moment,) = run(name, "skip", base=base)
    momentum, schedule = moment.state.base_state
    counts = draw_events(RING, gradients=160, variation=0.3).gradient_counts
    assert schedule.count[SICK] == 2 and schedule.count[3] == counts[3]
    assert np.isfinite(momentum.trace).all()


@every_algorithm
@every_program
def test_an_isolated_worker_harms_nobody(name, dispatch):
    (moment,) = run(name, "isolate", dispatch)
    finite = np.isfinite(moment.params).all(1)
    assert finite.tolist() == [i != SICK for i in range(8)]
    alive = np.asarray(moment.params)[finite]
    variance = ((alive - alive.mean(0)) ** 2).sum(1).mean()
    np.testing.assert_allclose(moment.consensus_distance, variance, rtol=1e-5)


@every_algorithm
@pytest.mark.parametrize("nonfinite", ["raise", "skip", "isolate"])
def test_sums_of_the_finite_are_kept(name, nonfinite):
    """Without gradients: a model that starts as NaN or inf is averaged with nobody."""
    events = draw_events(RING, duration=20.0, speeds=0)
    for bad in (np.nan, np.inf, -np.inf):
        x = np.random.default_rng(0).standard_normal((8, 5))
        x[SICK, 1] = bad
        with jax.enable_x64(True):
            (moment,) = simulate(
                ALGORITHMS[name](optax.sgd(0.1)), events, x, nonfinite=nonfinite
            )
        healthy = np.arange(8) != SICK
        np.testing.assert_allclose(
            np.asarray(moment.params)[healthy].sum(0), x[healthy].sum(0), atol=1e-12
        )
        assert np.asarray(moment.params)[healthy].var(0).max() < 0.2
        if name == "acid":
            copies = np.asarray(moment.state.momentum)[healthy]
            np.testing.assert_allclose(copies.sum(0), x[healthy].sum(0), atol=1e-12)


def test_a_step_that_overflows_is_not_finite():
    """The gradient is finite, and the model is not that it leads to."""
    events = Events(2, [1.0, 2.0], [0, 1], [-1, -1], 2.0)

    def gradient_fn(x, state, batch):
        return jnp.full_like(x, batch), state, {}

    def go(nonfinite):
        return simulate(
            djax.adpsgd(optax.sgd(10.0)), events, jnp.ones(2), gradient_fn,
            lambda epoch: jnp.asarray([[0.0], [3e38]]), nonfinite=nonfinite,
        )  # fmt: skip

    with pytest.raises(NonFiniteError, match="model of worker 1 after its gradient 1"):
        next(go("raise"))
    assert next(go("skip")).params.tolist() == [1, 1]


def test_finite_runs_are_the_same_in_all_three_ways():
    def fine(x, count, target):
        return x - target, count + 1, {"loss": jnp.sum(x)}

    moments = [run("acid", kind, gradient_fn=fine)[-1] for kind in ("raise", "isolate")]
    (skipping,) = run("acid", "skip", gradient_fn=fine)
    np.testing.assert_array_equal(moments[0].params, moments[1].params)
    np.testing.assert_allclose(moments[0].params, skipping.params, rtol=1e-6)


@pytest.mark.parametrize("value", ["ignore", None, True, ("raise",)])
def test_unknown_ways_are_refused(value):
    events = draw_events(RING, duration=1.0, speeds=0)
    with pytest.raises(ValueError, match="nonfinite must be one of"):
        simulate(djax.adpsgd(optax.sgd(1.0)), events, jnp.ones(8), nonfinite=value)


def test_there_is_one_error_for_both_kinds_of_training():
    """Who catches one of them need not know which training it came from."""
    assert NonFiniteError is djax.simulation.NonFiniteError
    with pytest.raises(djax.simulation.NonFiniteError) as caught:
        run("acid", "raise")
    assert (caught.value.ranks, caught.value.step) == ((SICK,), 2)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.ranks) == (str(caught.value), (SICK,))


SHAPES = [(), (7,), (0,), (0, 3), (3, 0), (5, 4), (130, 140), (3, 3, 64, 64)]


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float16", "complex64"])
@pytest.mark.parametrize("shape", SHAPES)
def test_what_is_not_finite_is_found_in_any_array(shape, dtype):
    check = jax.jit(lambda x: all_finite({"a": x, "steps": jnp.arange(3)}))
    most = float(jnp.finfo(dtype).max)
    fine = np.full(shape, most * (1 + 1j) if dtype == "complex64" else -most)
    assert check(jnp.asarray(fine, dtype))
    places = [-1] if fine.size else []
    for bad in (np.nan, np.inf, -np.inf):
        for place in places:
            spoilt = fine.copy()
            spoilt.flat[place] = bad
            assert not check(jnp.asarray(spoilt, dtype))
            stacked = jnp.stack([jnp.asarray(x, dtype) for x in (fine, spoilt)])
            assert jax.vmap(check)(stacked).tolist() == [True, False]


def test_leaves_without_fractions_are_finite():
    leaves = [jnp.arange(3), jnp.asarray(True), 7, jax.random.key(0), ()]
    assert all_finite(leaves) and all_finite({}) and not all_finite([np.nan, 1])
