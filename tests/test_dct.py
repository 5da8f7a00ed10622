"""The code of cosine transforms: what the published code does, block by block."""

import json

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.fft
from test_golden import GOLDEN

import djax
from djax import communicators, compressors, testing, topologies
from djax.compressors import _dct

ARRAYS = np.load(GOLDEN / "demo_n4.npz")
SPLITS = json.loads((GOLDEN / "demo_n4.json").read_text())["splits"]


@pytest.mark.parametrize("case", SPLITS)
def test_follows_the_published_code(case):
    _, chunk, k = case.split("_")
    chunk, k = int(chunk[1:]), int(k[1:])
    expected = {
        name: ARRAYS[f"dct_{name}__{case}"]
        for name in ("in", "coef", "idx", "val", "back")
    }
    with jax.enable_x64(True):
        x, code = jnp.asarray(expected["in"]), compressors.dct(k, chunk=chunk)
        message, _ = code.compress(x, code.init(x))
        found = {
            "coef": _dct.transform(x, chunk),
            "back": code.decompress(message, x),
        }
        order = np.argsort(message.indices, axis=-1)
        found["idx"] = np.take_along_axis(np.asarray(message.indices), order, -1)
        found["val"] = np.take_along_axis(np.asarray(message.values), order, -1)
    assert expected["coef"].shape[-len(SPLITS[case]) :] == tuple(SPLITS[case])
    for name, array in found.items():
        array = np.reshape(array, expected[name].shape)
        np.testing.assert_allclose(array, expected[name], rtol=1e-9, atol=1e-9)


@jax.jit
def both_ways(x):
    """What is sent of an array, its coefficients, and these transformed back."""
    code, coefficients = compressors.dct(3, chunk=6), _dct.transform(x, 6)
    message, _ = code.compress(x, code.init(x))
    sent = code.decompress(message, x)
    return message.values, sent, coefficients, _dct.inverse(coefficients, x, 6)


@hypothesis.given(
    shape=st.sampled_from([(), (13, 1), (12, 20), (2, 3, 4, 6)]),
    seed=st.integers(0, 10**6),
)
@hypothesis.settings(max_examples=20)
def test_splits_the_energy_between_what_is_sent_and_what_is_left(shape, seed):
    x = np.random.default_rng(seed).normal(size=shape)
    with jax.enable_x64(True):
        values, sent, coefficients, again = map(np.asarray, both_ways(jnp.asarray(x)))
    energy = np.square(x).sum()
    for parts in ([sent, x - sent], [coefficients]):
        found = sum(np.square(part).sum() for part in parts)
        np.testing.assert_allclose(found, energy, rtol=1e-12)
    np.testing.assert_allclose(again, x, rtol=1e-9, atol=1e-12)
    largest = np.sort(abs(coefficients), axis=-1)[:, ::-1][:, :3]
    found = np.sort(abs(values), axis=-1)[:, ::-1]
    np.testing.assert_allclose(found, largest, rtol=1e-12)


def test_each_block_is_transformed_along_both_axes():
    x = np.random.default_rng(0).normal(size=(10, 21)).astype(np.float32)
    found = _dct.transform(jnp.asarray(x), 8)  # Of 5 rows and 7 columns.
    blocks = x.reshape(2, 5, 3, 7).swapaxes(1, 2).reshape(6, 5, 7)
    expected = scipy.fft.dctn(blocks, axes=(1, 2), norm="ortho").reshape(6, 35)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_axes_before_the_last_one_are_the_rows_of_a_matrix():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(3, 3, 4, 6)), jnp.float32)
    np.testing.assert_array_equal(
        _dct.transform(x, 8), _dct.transform(x.reshape(36, 6), 8)
    )


@pytest.mark.parametrize(
    ("shape", "dtype"),
    [((16, 16), "uint8"), ((16, 17), "uint16"), ((300, 300), "uint32")],
)
def test_indices_are_as_small_as_their_block_allows(shape, dtype):
    x = jax.ShapeDtypeStruct(shape, "float32")
    code = compressors.dct(2, chunk=300)
    message, _ = jax.eval_shape(lambda x: code.compress(x, code.init(x)), x)
    assert message.indices.dtype == dtype and message.indices.shape == (1, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda code: djax.choco_gossip(RING, WORKERS, code, 0.3),
        lambda code: djax.deep_squeeze(RING, WORKERS, code, 0.05),
    ],
)
def test_workers_agree_over_its_messages(make):
    def spread(steps):
        options = {"steps": steps, "learning_rate": 0.0}
        x = testing.run(make(compressors.dct(1)), WORKERS, **options)
        return float(np.square(x - x.mean(0, keepdims=True)).sum())

    assert spread(400) < 0.05 * spread(0)


RING, WORKERS = topologies.ring(8), communicators.simulated(8)


def test_mechanisms_for_unbiased_codes_refuse_it():
    with pytest.raises(ValueError, match="dcd needs an unbiased code, and dct is"):
        djax.dcd(RING, WORKERS, compressors.dct(4))
    with pytest.raises(TypeError, match=r"call compressors.dct\(32\)"):
        djax.choco_gossip(RING, WORKERS, compressors.dct, 0.3)
