"""What the communicator's functions take, over real MPI."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from djax import communicators

MPI = communicators.mpi()
SIZE, (RANK,) = MPI.size, MPI.local_ranks


def test_spmd_passes_keyword_arguments_on():
    program = jax.jit(MPI.spmd(lambda x, *, t: MPI.mean(x) + t))
    x = jnp.full(1, float(RANK))
    out = program(x, t=jnp.full(1, 2.0))
    np.testing.assert_allclose(out, [(SIZE - 1) / 2 + 2], rtol=1e-6)
    with pytest.raises(ValueError, match=r"argument t has shape \(\)"):
        program(x, t=2.0)


def test_there_is_one_value_for_each_local_worker():
    for call in (
        MPI.gather,
        lambda values: communicators.check_agreement(MPI, "the seed", values),
    ):
        with pytest.raises(ValueError, match="each of the 1 local workers.*got 2"):
            call([1, 1])
        with pytest.raises(TypeError, match="needs a list"):
            call({"seed": 1})


def test_random_keys_can_be_compared():
    communicators.check_agreement(MPI, "the keys", [jax.random.key(0)])
    with pytest.raises(ValueError, match="the keys differ"):
        communicators.check_agreement(MPI, "the keys", [jax.random.key(RANK)])
