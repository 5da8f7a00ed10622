"""Eight devices on the CPU, and no promotion that nobody asked for."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8"
    + " --xla_backend_optimization_level=0"  # Programs that run once compile faster.
)
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import jax
import pytest

jax.config.update("jax_numpy_dtype_promotion", "strict")
jax.config.update("jax_numpy_rank_promotion", "raise")

hypothesis.settings.register_profile("djax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("djax")


@pytest.fixture
def as_users():
    """Promotion as users have it: experiments and optax's optimizers rely on it."""
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
