"""Wrong arguments of the communicators are named at once, with what is right."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from djax import communicators, topologies

each_maker = pytest.mark.parametrize(
    "make", [communicators.simulated, communicators.mesh]
)
each_with_losses = pytest.mark.parametrize(
    "make",
    [
        lambda **losses: communicators.simulated(2, **losses),
        lambda **losses: communicators.mesh(2, **losses),
        lambda **losses: communicators.mpi(**losses),
    ],
)


@each_maker
@pytest.mark.parametrize(
    "size",
    [
        *(np.nan, np.inf, 2.5, 4.0, True, 0, -1, "4", None, np.bool_(True)),
        *(np.array([3]), jnp.float32(4), jnp.ones(2), [4]),
    ],
)
def test_a_size_is_a_positive_integer(make, size):
    match = f"^{make.__name__}: size must be an integer of at least 1, got .*pass the"
    with pytest.raises(ValueError, match=match):
        make(size)


@each_maker
@pytest.mark.parametrize(
    "size",
    [
        topologies.ring(3),
        topologies.one_peer_exponential(3),
        communicators.simulated(3),
    ],
)
def test_what_has_a_size_is_not_one(make, size):
    remedy = rf"pass its size, as in {make.__name__}\(3\)\.$"
    with pytest.raises(ValueError, match=remedy):
        make(size)


@each_maker
@pytest.mark.parametrize("size", [2, np.int64(2), np.array(2), jnp.int32(2)])
def test_integers_of_all_kinds_are_sizes(make, size):
    assert type(make(size).size) is int and make(size) == make(2)


@each_with_losses
@pytest.mark.parametrize(
    "probability",
    [
        *("0.1", None, True, np.nan, np.inf, -0.1, 1, 1.0, 10**400, 0.1j),
        *([0.1], np.array([0.1]), jnp.zeros(2), jnp.bool_(False)),
        jax.random.key(0),
    ],
)
def test_a_drop_probability_is_one_number(make, probability):
    match = r"drop_probability must be one number in \[0, 1\).*, got "
    with pytest.raises(ValueError, match=match):
        make(drop_probability=probability)


@each_with_losses
@pytest.mark.parametrize("seed", [True, 2.5, "3", None, -1, 2**32, jnp.zeros(2)])
def test_a_drop_seed_is_one_integer(make, seed):
    with pytest.raises(ValueError, match="drop_seed must be "):
        make(drop_seed=seed)


@each_maker
def test_losses_of_numpy_and_jax_become_those_of_python(make):
    plain = make(2, drop_probability=0.5, drop_seed=3)
    for probability, seed in (
        (np.float32(0.5), np.int64(3)),
        (np.array(0.5), np.uint8(3)),
        (jnp.float32(0.5), jnp.int32(3)),
    ):
        communicator = make(2, drop_probability=probability, drop_seed=seed)
        assert communicator == plain and hash(communicator) == hash(plain)
        step = communicator.spmd(lambda key, c=communicator: c.arrived((1, 0), key))
        assert jax.jit(step)(jax.random.split(jax.random.key(0), 2)).shape == (2,)
    assert make(2, drop_probability=0).drop_probability == 0.0


def test_a_traced_probability_is_refused():
    def program(probability):
        return communicators.simulated(2, drop_probability=probability).size

    with pytest.raises(ValueError, match="known before programs are compiled"):
        jax.jit(program)(0.5)


@each_maker
@pytest.mark.parametrize("source", [1, None, np.array(1), np.ones((2, 2)), ["a", 0]])
def test_the_source_of_a_permutation_is_a_sequence(make, source):
    communicator = make(2)
    step = communicator.spmd(lambda x: communicator.permute(x, source))
    with pytest.raises(
        TypeError, match="permute: source must be a sequence of 2 ranks"
    ):
        step(jnp.zeros(2))


@each_maker
@pytest.mark.parametrize("fn", [3, None, jnp.zeros(2)])
def test_spmd_says_at_once_that_it_needs_a_function(make, fn):
    with pytest.raises(TypeError, match="spmd needs the function that one worker runs"):
        make(2).spmd(fn)
