"""Tests of the metrics."""

import jax.numpy as jnp
import numpy as np

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
