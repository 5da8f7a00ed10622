"""Eight devices on the CPU, and no promotion that nobody asked for."""

import os

from launch import QUICK_COMPILATION

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count=8 {QUICK_COMPILATION}"
)
os.environ["MPLBACKEND"] = "agg"

import hypothesis
import jax
import pytest


def set_promotion(dtype, rank):
    """In all threads, other than JAX's own context managers."""
    jax.config.update("jax_numpy_dtype_promotion", dtype)
    jax.config.update("jax_numpy_rank_promotion", rank)


set_promotion("strict", "raise")

hypothesis.settings.register_profile("djax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("djax")


@pytest.fixture
def as_users():
    """Promotion as users have it: experiments and optax's optimizers rely on it."""
    set_promotion("standard", "allow")
    yield
    set_promotion("strict", "raise")
