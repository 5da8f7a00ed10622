"""Each code keeps what its docstring promises: class, constant, bytes."""

import functools
import math

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import djax
from djax import communicators, compressors
from djax._arrays import bits as _bits

SHAPES = {"conv": (3, 3, 4, 6), "w": (10, 7), "b": (5,), "s": ()}
CODES = {
    "identity": compressors.identity(),
    "top_k": compressors.top_k(0.2),
    "top_k_rank": compressors.top_k(rank=2),
    "top_k_groups": compressors.top_k(0.2, approximate=True),
    "random_k": compressors.random_k(0.2),
    "sign": compressors.sign(),
    "low_rank": compressors.low_rank(2),
    "dct": compressors.dct(3, chunk=8),
    "quantize": compressors.quantize(4, bucket_size=16),
    "quantize_contraction": compressors.quantize(3, bucket_size=16, unbiased=False),
}
each_code = pytest.mark.parametrize("name", CODES)


def tree(seed, dtype=jnp.float32):
    """Entries of very different sizes."""
    rng = np.random.default_rng(seed)
    return {
        name: jnp.asarray(rng.standard_normal(shape) * np.exp(rng.normal()), dtype)
        for name, shape in SHAPES.items()
    }


@functools.partial(jax.jit, static_argnums=0)
def through(code, x):
    """Compresses and decompresses once."""
    message, _ = code.compress(x, code.init(x))
    return code.decompress(message, x)


def errors(x, y):
    """Of each leaf, the squared error relative to its squared norm."""
    return {k: float(((x[k] - y[k]) ** 2).sum() / (x[k] ** 2).sum()) for k in x}


@pytest.mark.parametrize(
    ("name", "delta"),
    [
        ("identity", lambda x: 1.0),
        ("top_k", lambda x: max(1, int(0.2 * x.size)) / x.size),
        ("top_k_rank", lambda x: _like_rank(x, 2) / x.size),
        ("top_k_groups", lambda x: 1 / math.ceil(x.size / max(1, int(0.2 * x.size)))),
        ("sign", lambda x: float(abs(x).sum() ** 2 / (x.size * (x**2).sum()))),
        ("low_rank", lambda x: min(2, *_matrix(x)) / min(_matrix(x))),
        ("dct", lambda x: {216: 3 / 36, 70: 3 / 35, 5: 3 / 5, 1: 1.0}[x.size]),
    ],
)
def test_deterministic_codes_contract(name, delta):
    @hypothesis.given(seed=st.integers(0, 10**6))
    @hypothesis.settings(max_examples=20)
    def check(seed):
        x = tree(seed)
        for leaf, error in errors(x, through(CODES[name], x)).items():
            assert error <= 1 - delta(x[leaf]) + 1e-6

    check()


def _like_rank(x, rank):
    return max(1, min(rank, *_matrix(x)) * sum(_matrix(x)) // 4)


def _matrix(x):
    return (x.shape[-1], x.size // x.shape[-1]) if x.ndim > 1 else (x.size, 1)


def many_times(code, x, times=4000):
    """`[times, ...]`: what arrives, in as many steps."""

    def step(state, _):
        message, state = code.compress(x, state)
        return state, code.decompress(message, x)

    return jax.jit(lambda: jax.lax.scan(step, code.init(x), length=times)[1])()


def test_random_k_contracts_by_exactly_its_share():
    x = tree(1)
    for leaf, y in many_times(CODES["random_k"], x).items():
        kept = max(1, int(0.2 * x[leaf].size)) / x[leaf].size
        error = ((y - x[leaf][None]) ** 2).sum(tuple(range(1, y.ndim)))
        deviation = float(error.std()) / math.sqrt(len(y))
        expected = (1 - kept) * float((x[leaf] ** 2).sum())
        assert abs(float(error.mean()) - expected) <= 4 * deviation + 1e-6


@pytest.mark.parametrize(
    ("code", "omega"),
    [
        (
            compressors.random_k(0.2, unbiased=True),
            lambda d: d / max(1, int(0.2 * d)) - 1,
        ),
        (CODES["quantize"], lambda d: min(d, 16) ** 0.5 / 7),
        (compressors.quantize(8), lambda d: min(d, 512) / 127**2),
        (compressors.quantize(2), lambda d: min(d, 512) ** 0.5),
    ],
)
def test_unbiased_codes_are_right_on_average(code, omega):
    x = tree(2)
    for leaf, y in many_times(code, x).items():
        deviation = np.asarray(y.std(0)) / math.sqrt(len(y))
        bias = np.abs(np.asarray(y, np.float64).mean(0) - np.asarray(x[leaf]))
        assert (bias <= 5 * deviation + 1e-5 * np.abs(x[leaf]).max()).all()
        error = ((y - x[leaf][None]) ** 2).sum(tuple(range(1, y.ndim))).mean()
        assert error <= omega(x[leaf].size) * (x[leaf] ** 2).sum() * 1.05 + 1e-9


def test_quantize_as_a_contraction():
    x = tree(3)
    for leaf, y in many_times(CODES["quantize_contraction"], x).items():
        width = min(16, x[leaf].size)
        delta = 1 / (1 + min(width / 9, math.sqrt(width) / 3))
        error = ((y - x[leaf][None]) ** 2).sum(tuple(range(1, y.ndim))).mean()
        assert error <= (1 - delta) * (x[leaf] ** 2).sum() * 1.05


@each_code
@pytest.mark.parametrize("nothing", [{}, {"w": jnp.zeros((0, 3)), "b": jnp.zeros(0)}])
def test_nothing_is_compressed_to_nothing(name, nothing):
    received = through(CODES[name], nothing)
    assert jax.tree.map(jnp.shape, received) == jax.tree.map(jnp.shape, nothing)


@pytest.mark.parametrize("size", [1e30, 1e-30])
def test_quantize_keeps_numbers_whose_squares_are_none(size):
    x = jnp.asarray([size, -size, 0.0, size])
    y = through(compressors.quantize(8), x)
    np.testing.assert_allclose(y, x, rtol=0.02)


@pytest.mark.parametrize("name", ["sign", "quantize"])
def test_complex_parameters_are_refused(name):
    with pytest.raises(TypeError, match=f"{name} is for real arrays.* complex64"):
        CODES[name].init({"z": jnp.ones(3, jnp.complex64)})


@each_code
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_keeps_shapes_and_dtypes_under_jit_and_vmap(name, dtype):
    code, x = CODES[name], tree(4, dtype)
    many = jax.tree.map(lambda leaf: jnp.stack([leaf, 2 * leaf]), x)
    received = jax.jit(jax.vmap(lambda x: through(code, x)))(many)
    for leaf, y in received.items():
        assert y.shape == (2, *x[leaf].shape) and y.dtype == dtype


@pytest.mark.parametrize(
    "name", ["identity", "top_k", "random_k", "sign", "low_rank", "dct"]
)
def test_what_has_been_compressed_passes_unchanged(name):
    once = through(CODES[name], tree(5))
    twice = through(CODES[name], once)
    for leaf, y in twice.items():
        np.testing.assert_allclose(y, once[leaf], rtol=1e-5, atol=1e-5)


@each_code
def test_zeros_stay_zeros(name):
    x = jax.tree.map(jnp.zeros_like, tree(6))
    for y in jax.tree.leaves(through(CODES[name], x)):
        np.testing.assert_array_equal(y, 0)


D = sum(math.prod(shape) for shape in SHAPES.values())


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("identity", 4 * D),
        ("top_k", 8 * (43 + 14 + 1 + 1)),
        ("top_k_rank", 8 * (2 * 42 // 4 + 2 * 17 // 4 + 6 // 4 + 1)),
        ("random_k", 4 * (43 + 14 + 1 + 1) + 4),
        ("sign", math.ceil(D / 8) + 4 * len(SHAPES)),
        ("low_rank", 4 * (2 * (6 + 36) + 2 * (7 + 10) + 5 + 1)),
        ("dct", (4 + 1) * (6 * 3 + 2 * 3 + 3 + 1)),
        ("quantize", math.ceil(4 * D / 8) + 4 * (14 + 5 + 1 + 1)),
    ],
)
def test_a_message_has_as_many_bytes_as_promised(name, expected):
    x = tree(7)
    assert compressors.message_bytes(CODES[name], x) == expected
    message, _ = CODES[name].compress(x, CODES[name].init(x))
    assert sum(leaf.nbytes for leaf in jax.tree.leaves(message)) == expected


@pytest.mark.slow
@hypothesis.given(
    bits=st.integers(1, 8), count=st.integers(0, 70), seed=st.integers(0, 99)
)
@hypothesis.settings(max_examples=30)
def test_packing_loses_no_bit_and_wastes_none(bits, count, seed):
    codes = np.random.default_rng(seed).integers(0, 2**bits, count, np.uint8)

    @jax.jit
    def both_ways(codes):
        packed = _bits.pack(codes, bits)
        return packed, _bits.unpack(packed, bits, count)

    packed, unpacked = both_ways(codes)
    assert packed.size == math.ceil(bits * count / 8)
    np.testing.assert_array_equal(unpacked, codes)


@pytest.mark.parametrize("bits", [1, 3, 4])
def test_leaves_that_start_within_a_byte_are_unpacked_too(bits):
    sizes = [16, 3, 0, 5, 8, 1]
    rng = np.random.default_rng(bits)
    leaves = [rng.integers(0, 2**bits, size, np.uint8) for size in sizes]

    @jax.jit
    def both_ways(leaves):
        return _bits.unpack_leaves(_bits.pack_leaves(leaves, bits), bits, leaves)

    for found, leaf in zip(both_ways(leaves), leaves, strict=True):
        np.testing.assert_array_equal(found, leaf)


def test_random_k_takes_all_workers_indices_from_one_seed():
    communicator, code = communicators.simulated(3), CODES["random_k"]
    x = jnp.ones((3, 40))
    sent = communicator.spmd(lambda x: through(code, x))(x)
    np.testing.assert_array_equal(sent, np.tile(sent[0], (3, 1)))
    assert sent[0].sum() == 8
    other = through(compressors.random_k(0.2, key=jax.random.key(1)), x[0])
    assert (other != sent[0]).any()


@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize(("size", "count"), [(1, 1), (24, 24), (24, 7), (1000, 9)])
def test_top_k_approximately_sends_the_largest_entry_of_each_group(size, count, dtype):
    x = np.random.default_rng(size).normal(size=size).astype(dtype)
    groups = math.ceil(size / math.ceil(size / count))
    best = [max(range(j, size, groups), key=lambda i: abs(x[i])) for j in range(groups)]
    code = compressors.top_k(count / size, approximate=True)
    message, _ = code.compress(jnp.asarray(x), code.init(x))
    np.testing.assert_array_equal(message.indices, best)
    np.testing.assert_array_equal(message.values, x[best])
    sent = compressors.message_bytes(code, x)
    assert sent == groups * (4 + x.itemsize)
    assert sent <= compressors.message_bytes(compressors.top_k(count / size), x)


def test_top_k_approximately_sends_nan_and_the_first_of_equal_entries():
    code = compressors.top_k(0.25, approximate=True)
    x = jnp.asarray([0.0, 1.0, 0.0, jnp.inf, 0.0, -1.0, 0.0, jnp.nan])
    message, _ = code.compress(x, code.init(x))
    assert message.indices.tolist() == [0, 7]
    assert code.compress(jnp.zeros(0), code.init(x))[0].values.shape == (0,)


def test_words_are_those_that_jax_draws():
    for seed, count in ((0, 1), (7, 1000), (2**31 + 5, 33)):
        key = jax.random.key(seed, impl="threefry2x32")
        expected = jax.random.bits(key, (count,), jnp.uint32)
        np.testing.assert_array_equal(_bits.random_words(key, count), expected)


def test_a_worker_rounds_with_noise_of_its_own():
    communicator = communicators.simulated(3)
    ring = djax.topologies.ring(3)
    for key in (None, jax.random.key(1), jax.random.PRNGKey(1)):
        code = compressors.quantize(4, unbiased=False, key=key)
        mechanism = djax.choco_gossip(ring, communicator, code, 0.5)
        state = communicator.spmd(mechanism.init)({"w": jnp.ones((3, 4))})
        keys = jax.random.key_data(state.compressor_state.key)
        assert len({tuple(key) for key in np.asarray(keys)}) == 3


def test_low_rank_is_the_best_of_its_rank_whichever_axis_has_the_rows():
    x = tree(8)["conv"]
    for axis in range(-4, 4):
        y = through(compressors.low_rank(2, rows_axis=axis), x)
        matrix = np.moveaxis(np.asarray(x), axis, 0).reshape(x.shape[axis], -1)
        s = np.linalg.svd(matrix, compute_uv=False)
        np.testing.assert_allclose(((x - y) ** 2).sum(), (s[2:] ** 2).sum(), rtol=1e-4)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: compressors.top_k(0.0), r"fraction must be in \(0, 1\], got 0.0"),
        (lambda: compressors.top_k(), "either a fraction or a rank"),
        (lambda: compressors.top_k(0.1, rank=2), "either a fraction or a rank"),
        (lambda: compressors.random_k(1.5), r"random_k: fraction must be in \(0, 1\]"),
        (lambda: compressors.random_k(rank=0), "random_k: rank must be an integer"),
        (lambda: compressors.low_rank(0), "low_rank: rank must be an integer"),
        (lambda: compressors.dct(0), "dct: k must be an integer of at least 1, got 0"),
        (lambda: compressors.dct(2, chunk=0.5), "dct: chunk must be an integer"),
        (lambda: compressors.quantize(1), "bits must be 2 to 8, got 1"),
        (lambda: compressors.quantize(4.0), "bits must be 2 to 8, got 4.0"),
        (
            lambda: compressors.random_k(0.1, key=jax.random.key(0, impl="rbg")),
            "differ between workers under vmap",
        ),
        (
            lambda: compressors.top_k(rank=1, rows_axis=3).init(tree(0)),
            r"rows_axis=3, but params\['w'\] has 2 dimensions",
        ),
        (lambda: compressors.quantize(4, bucket_size=0), "bucket_size must be"),
        (
            lambda: compressors.low_rank(1, rows_axis=2).init(tree(0)),
            r"rows_axis=2, but params\['w'\] has 2 dimensions",
        ),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
