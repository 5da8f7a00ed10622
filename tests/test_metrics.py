"""Tests of the metrics."""

import jax.numpy as jnp
import numpy as np
import pytest

import djax
from djax import communicators, metrics

SIZE = 5
RNG = np.random.default_rng(0)
PARAMS = {"a": RNG.normal(size=(SIZE, 2, 3)), "b": RNG.normal(size=(SIZE,))}
FLAT = np.concatenate([PARAMS["a"].reshape(SIZE, -1), PARAMS["b"][:, None]], 1)
CENTERED = FLAT - FLAT.mean(0)


def on_workers(metric, dtype=jnp.float32):
    communicator = communicators.simulated(SIZE)
    params = {name: jnp.asarray(x, dtype) for name, x in PARAMS.items()}
    return communicator.spmd(lambda p: metric(p, communicator))(params)


def test_mean_params():
    mean = on_workers(metrics.mean_params)
    np.testing.assert_allclose(
        mean["a"], np.broadcast_to(PARAMS["a"].mean(0), (SIZE, 2, 3)), rtol=1e-5
    )


def test_distances():
    squares = (CENTERED**2).sum(1)
    np.testing.assert_allclose(on_workers(metrics.worker_distance), squares, rtol=1e-5)
    np.testing.assert_allclose(
        on_workers(metrics.consensus_distance), np.full(SIZE, squares.mean()), rtol=1e-5
    )


def test_half_precision_is_measured_in_single():
    distance = on_workers(metrics.consensus_distance, jnp.bfloat16)
    assert distance.dtype == jnp.float32
    np.testing.assert_allclose(distance, (CENTERED**2).sum(1).mean(), rtol=2e-2)


# Scores on held-out data: a line through points, y = slope x + shift.

HELD_OUT = {
    "x": np.linspace(-1, 1, 70, dtype=np.float32),
    "y": np.linspace(2, -1, 70, dtype=np.float32) ** 2,
}
LINES = {
    "slope": RNG.normal(size=SIZE).astype(np.float32),
    "shift": RNG.normal(size=SIZE).astype(np.float32),
}
SIMULATED = communicators.simulated(SIZE)


def evaluate_line(line, batch):
    errors = line["slope"] * batch["x"] + line["shift"] - batch["y"]
    return {"close": jnp.mean(jnp.abs(errors) < 1), "loss": jnp.mean(errors**2)}


def cut(*ends):
    """Batches of the held-out data, which end at these samples."""
    starts = (0, *ends[:-1])
    return [
        {name: x[start:end] for name, x in HELD_OUT.items()}
        for start, end in zip(starts, ends, strict=True)
    ]


def expected_scores(slope, shift):
    errors = np.multiply.outer(slope, HELD_OUT["x"]) - HELD_OUT["y"]
    errors = errors + np.asarray(shift)[..., None]
    return {"close": (np.abs(errors) < 1).mean(-1), "loss": (errors**2).mean(-1)}


def check_lines(scores):
    """Compares the scores of all workers with those that NumPy computes."""
    workers = expected_scores(LINES["slope"], LINES["shift"])
    averaged = expected_scores(LINES["slope"].mean(), LINES["shift"].mean())
    assert scores.keys() == workers.keys()
    for name, worst in (("close", np.min), ("loss", np.max)):
        found = scores[name]
        assert found.workers.dtype == np.float64
        np.testing.assert_allclose(found.workers, workers[name], rtol=1e-5)
        np.testing.assert_allclose(found.mean, workers[name].mean(), rtol=1e-5)
        np.testing.assert_allclose(found.worst, worst(workers[name]), rtol=1e-5)
        np.testing.assert_allclose(found.averaged, averaged[name], rtol=1e-5)
    assert not np.isclose(scores["loss"].averaged, scores["loss"].mean, rtol=0.01)


@pytest.mark.parametrize("ends", [(70,), (32, 64, 70)])
@pytest.mark.parametrize("dispatch", [False, True])
@pytest.mark.parametrize("make", [communicators.simulated, communicators.mesh])
def test_scores_are_those_of_numpy(make, dispatch, ends):
    """Also if the last batch is shorter. Those over MPI are in mpi/test_common_mpi."""
    communicator = make(SIZE)
    found = metrics.evaluate(
        evaluate_line, LINES, iter(cut(*ends)), communicator, dispatch=dispatch
    )
    check_lines(found)


def test_lower_may_be_better_for_any_score():
    found = metrics.evaluate(
        evaluate_line, LINES, cut(70), SIMULATED, lower_is_better=["close"]
    )
    assert found["close"].worst == found["close"].workers.max()
    assert found["loss"].worst == found["loss"].workers.min()


def test_a_score_that_is_not_a_number_is_the_worst():
    lines = {**LINES, "shift": np.where(np.arange(SIZE) == 2, np.nan, LINES["shift"])}
    found = metrics.evaluate(evaluate_line, lines, cut(70), SIMULATED)
    assert np.isnan(found["loss"].worst) and np.isnan(found["loss"].averaged)
    assert np.isfinite(np.delete(found["loss"].workers, 2)).all()


def test_an_averaged_model_has_averaged_statistics():
    def evaluate_fn(model, batch):
        params, statistics = model
        return {"product": params * statistics["mean"] * jnp.mean(batch)}

    model = jnp.asarray([1.0, 3.0]), {"mean": jnp.asarray([10.0, 20.0])}
    communicator, data = communicators.simulated(2), [jnp.asarray([1.0, 2.0])]
    found = metrics.evaluate(evaluate_fn, model, data, communicator)["product"]
    np.testing.assert_allclose(found.workers, [15, 90])
    assert found.averaged == 2 * 15 * 1.5 and found.worst == 15


def test_a_problem_without_data_is_evaluated_once():
    def evaluate_fn(x, batch):
        assert batch == ()
        return {"loss": (x - 1) ** 2}

    found = metrics.evaluate(evaluate_fn, jnp.arange(5.0), [()], SIMULATED)
    np.testing.assert_allclose(found["loss"].workers, [1, 0, 1, 4, 9])


@pytest.mark.parametrize("dispatch", [False, True])
def test_programs_are_compiled_once(dispatch):
    traced = 0

    def evaluate_fn(line, batch):
        nonlocal traced
        traced += 1
        return evaluate_line(line, batch)

    for _ in range(3):
        metrics.evaluate(evaluate_fn, LINES, cut(35, 70), SIMULATED, dispatch=dispatch)
    assert traced == 1 + (not dispatch)  # The averaged model, and all under one vmap.


def returns(scores):
    return {"evaluate_fn": lambda line, batch: scores}


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (returns(jnp.zeros(())), TypeError, "must return a dictionary of scalars"),
        (returns({}), TypeError, "with at least one name"),
        (returns({"loss": jnp.zeros(3)}), TypeError, r"'loss' of shape \(3,\) .*mean"),
        (returns({"loss": jnp.zeros((), "complex64")}), TypeError, "complex64"),
        (returns({"loss": "low"}), TypeError, "'loss' as 'low'"),
        ({"evaluate_fn": 3}, TypeError, r"must be a function \(params, batch\)"),
        ({"params": {"slope": np.ones(3)}}, ValueError, r"params\['slope'\] has shape"),
        ({"params": {"slope": np.ones(())}}, ValueError, "axis of the 5 workers"),
        ({"params": np.arange(5)}, TypeError, "params is int"),
        ({"batches": []}, ValueError, "batches is empty"),
        ({"batches": iter(())}, ValueError, "batches is empty"),
        ({"batches": HELD_OUT}, TypeError, r"pass a list, such as \[data\]"),
        ({"batches": HELD_OUT["x"]}, TypeError, r"pass a list, such as \[data\]"),
        ({"batches": None}, TypeError, "iterable of batches, got None"),
        (
            {"batches": [HELD_OUT | {"y": np.ones(3, np.float32)}]},
            ValueError,
            r"batches\[0\]\['x'\] has shape \(70,\), batches\[0\]\['y'\] has sh",
        ),
        ({"batches": [*cut(35), {"x": 1.0}]}, ValueError, r"batches\[1\]\['x'\] has"),
        ({"batches": [{"x": np.ones(0)}]}, ValueError, "positive length"),
        ({"batches": ["text"]}, TypeError, r"batches\[0\] is 'text', which is no arr"),
        ({"lower_is_better": "loss"}, ValueError, r"write \('loss',\)"),
        (
            {"lower_is_better": ["perplexity"]},
            ValueError,
            "'perplexity', but evaluate_fn returns 'close', 'loss'",
        ),
        ({"dispatch": 1}, ValueError, "dispatch must be True or False"),
        ({"communicator": 5}, TypeError, "evaluate needs a communicator"),
    ],
)
def test_what_cannot_be_evaluated_is_explained(change, error, message):
    arguments = {
        "evaluate_fn": evaluate_line,
        "params": LINES,
        "batches": cut(70),
        "communicator": SIMULATED,
    }
    with pytest.raises(error, match=message):
        metrics.evaluate(**arguments | change)


def test_a_loss_need_not_be_returned():
    found = djax.metrics.evaluate(
        lambda line, batch: {"slope": line["slope"]}, LINES, cut(70), SIMULATED
    )
    np.testing.assert_allclose(found["slope"].workers, LINES["slope"], rtol=1e-6)
