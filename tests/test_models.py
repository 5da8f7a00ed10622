"""Models have the papers' sizes, and compute what they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import save_file

from experiments.lib import models
from experiments.lib.models._distilbert import DistilBERT
from experiments.lib.models._layers import BatchNorm, EvoNormS0

pytestmark = pytest.mark.usefixtures("as_users")


CIFAR, IMAGENET = (1, 32, 32, 3), (1, 224, 224, 3)


def shapes(model, *inputs):
    init = jax.eval_shape(lambda key: model.init(key, *inputs, train=False), KEY)
    return init


KEY = jax.random.key(0)


@pytest.mark.parametrize(
    ("name", "outputs", "options", "shape", "parameters"),
    [
        ("vgg11", 10, {}, CIFAR, 9_750_922),
        ("resnet20", 10, {}, CIFAR, 272_474),
        ("resnet18", 10, {}, CIFAR, 11_173_962),
        ("resnet50", 10, {}, CIFAR, 23_520_842),
        ("resnet18", 1000, {"stem": "imagenet"}, IMAGENET, 11_689_512),
        ("resnet50", 1000, {"stem": "imagenet"}, IMAGENET, 25_557_032),
        (
            "resnet50",
            1000,
            {"stem": "imagenet", "blocks": (3, 4, 23, 3)},
            IMAGENET,
            44_549_160,
        ),
        # ResNet-18's, and a third vector in the stem's and each block's first norm.
        (
            "resnet18_evonorm",
            1000,
            {},
            IMAGENET,
            11_689_512 + 64 + 2 * (64 + 128 + 256 + 512),
        ),
    ],
)
def test_image_models_have_the_papers_sizes(name, outputs, options, shape, parameters):
    model = models.IMAGE_MODELS[name](outputs, **options)
    leaves = jax.tree.leaves(shapes(model, jnp.zeros(shape))["params"])
    assert sum(leaf.size for leaf in leaves) == parameters
    if name == "resnet20":
        assert sum(leaf.size for leaf in leaves if leaf.ndim == 1) == 1578
        assert sum(leaf.ndim > 1 for leaf in leaves) == 22


@pytest.mark.parametrize(
    ("name", "blocks", "most"),
    [("resnet8", (1, 1, 1, 1), 3), ("resnet18", (), 4), ("resnet50", (3, 0, 6, 3), 4)],
)
def test_stages_that_there_are_not_are_refused(name, blocks, most):
    with pytest.raises(ValueError, match=f"must be 1 to {most} numbers of at least 1"):
        models.IMAGE_MODELS[name](10, blocks=blocks)


@pytest.mark.parametrize("layers", [(64, "X"), (-4, "M"), (0,), (64.0, "M")])
def test_layers_that_there_are_not_are_refused(layers):
    with pytest.raises(ValueError, match="must be positive numbers and 'M'"):
        models.IMAGE_MODELS["vgg11"](10, layers=layers)


def test_layers_that_leave_no_pixel_are_refused():
    model = models.IMAGE_MODELS["vgg11"](10, layers=(4, *["M"] * 4))
    with pytest.raises(ValueError, match="until no pixel is left"):
        shapes(model, jnp.zeros((1, 8, 8, 3)))


def test_text_models_have_the_papers_sizes():
    lstm = models.LANGUAGE_MODELS["lstm"](28_869)
    tokens = jnp.zeros((1, 1), jnp.int32)
    found = shapes(lstm, tokens, lstm.initial_carry(1))["params"]
    # Embedding and decoder bias; three layers of two matrices and two biases.
    expected = 28_869 * 651 + 3 * (2 * 650 * 2600 + 2 * 2600)
    assert sum(leaf.size for leaf in jax.tree.leaves(found)) == expected
    bert = models.TEXT_MODELS["distilbert"](30_522, 4)
    found = shapes(bert, tokens, jnp.ones((1, 1), bool))["params"]
    body = {k: v for k, v in found.items() if k not in ("pre_classifier", "classifier")}
    assert sum(leaf.size for leaf in jax.tree.leaves(body)) == 66_362_880


SHALLOW = {
    "vgg11": {"layers": (64, "M")},
    "resnet8": {"blocks": (1, 1)},
    "resnet20": {"blocks": (1, 1)},
    "resnet18": {"blocks": (1, 1)},
    "resnet50": {"blocks": (1, 1)},
    "resnet18_evonorm": {"blocks": (1, 1)},
}
"""Options with which models compile fast; each layer is there at least once."""


@pytest.mark.parametrize("name", models.IMAGE_MODELS)
def test_narrow_models_compute_in_bfloat16(name):
    """Parameters, statistics and outputs are float32."""
    images = jnp.ones((2, 32, 32, 3))
    options = SHALLOW.get(name, {})
    model = models.IMAGE_MODELS[name](10, width=0.125, dtype=jnp.bfloat16, **options)
    variables = jax.jit(lambda: model.init(KEY, images, train=False))()
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    program = jax.jit(lambda v: model.apply(v, images, train=False))
    logits = program(variables)
    assert logits.shape == (2, 10) and logits.dtype == jnp.float32
    assert "bf16" in program.lower(variables).as_text()


@pytest.mark.slow
def test_the_convolutions_of_vgg_start_as_the_paper_has_them():
    model = models.IMAGE_MODELS["vgg11"](10)
    images = jnp.zeros(CIFAR)
    params = jax.jit(lambda: model.init(KEY, images, train=False)["params"])()
    for name, layer in params.items():
        kernel = np.asarray(layer["kernel"])
        if name.startswith("Conv"):
            expected = np.sqrt(2 / (9 * kernel.shape[-1]))
            assert kernel.std() == pytest.approx(expected, rel=0.05)
            assert not np.any(layer["bias"])
        else:
            bound = kernel.shape[0] ** -0.5
            assert np.abs(kernel).max() == pytest.approx(bound, rel=0.02)
            assert np.abs(layer["bias"]).max() <= bound


@pytest.mark.slow
def test_dropout_is_of_training_alone():
    model = models.IMAGE_MODELS["vgg11"](10, width=0.125, **SHALLOW["vgg11"])
    images = jax.random.normal(KEY, (2, 8, 8, 3))
    variables = jax.jit(lambda: model.init(KEY, images, train=False))()

    def apply(seed, train):
        rngs = {"dropout": jax.random.key(seed)}
        return model.apply(variables, images, train=train, rngs=rngs)

    assert np.array_equal(apply(0, False), apply(1, False))
    assert np.array_equal(apply(0, True), apply(0, True))
    assert not np.array_equal(apply(0, True), apply(1, True))


def test_batch_normalization_and_its_statistics():
    x = 3 + 2 * jax.random.normal(KEY, (8, 4, 4, 5))
    norm = BatchNorm()
    variables = norm.init(KEY, x, train=False)
    y, after = norm.apply(variables, x, train=True, mutable=["batch_stats"])
    np.testing.assert_allclose(y.mean((0, 1, 2)), 0, atol=1e-5)
    np.testing.assert_allclose(y.std((0, 1, 2)), 1, atol=1e-3)
    stats = after["batch_stats"]
    np.testing.assert_allclose(stats["mean"], 0.1 * x.mean((0, 1, 2)), rtol=1e-5)
    var = 0.9 + 0.1 * np.var(x, (0, 1, 2), ddof=1)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    z = norm.apply({"params": variables["params"], **after}, x, train=False)
    expected = (x - stats["mean"]) / np.sqrt(stats["var"] + 1e-5)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    plain = BatchNorm(running=False)
    variables = plain.init(KEY, x, train=False)
    assert list(variables) == ["params"]
    np.testing.assert_array_equal(plain.apply(variables, x, train=False), y)


def test_evonorm_is_its_definition():
    x = np.asarray(jax.random.normal(KEY, (2, 3, 3, 8)))
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=8) for name in ("gamma", "beta", "v")}
    y = EvoNormS0(groups=4).apply({"params": params}, jnp.asarray(x))
    expected = np.empty_like(x)
    for image, channel in np.ndindex(2, 8):
        group = channel // 2 * 2
        std = np.sqrt(np.var(x[image, :, :, group : group + 2]) + 1e-5)
        now = x[image, :, :, channel]
        gate = 1 / (1 + np.exp(-params["v"][channel] * now))
        value = now * gate / std * params["gamma"][channel] + params["beta"][channel]
        expected[image, :, :, channel] = value
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_models_differ_by_worker_under_vmap():
    model = models.IMAGE_MODELS["resnet8"](10, width=0.25, blocks=(1, 1))
    images = jax.random.normal(KEY, (2, 4, 8, 8, 1))
    keys = jax.random.split(KEY, 2)

    @jax.jit
    @jax.vmap
    def init(key, x):
        return model.init(key, x, train=False)

    @jax.jit
    def apply(variables, x):
        return model.apply(variables, x, train=True, mutable=["batch_stats"])

    variables = init(keys, images)
    together, after = jax.jit(jax.vmap(apply))(variables, images)
    for i in range(2):
        own, stats = apply(jax.tree.map(lambda x, i=i: x[i], variables), images[i])
        np.testing.assert_allclose(own, together[i], rtol=1e-4, atol=1e-5)
        leaves = zip(jax.tree.leaves(stats), jax.tree.leaves(after), strict=True)
        for one, all_ in leaves:
            np.testing.assert_allclose(one, all_[i], rtol=1e-4, atol=1e-5)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def test_the_lstm_is_its_definition():
    model = models.LANGUAGE_MODELS["lstm"](7, hidden=5, layers=2, dropout=0.0)
    tokens = np.asarray(jax.random.randint(KEY, (3, 4), 0, 7))
    carry = tuple(jax.random.normal(key, (3, 2, 5)) for key in jax.random.split(KEY))
    params = model.init(KEY, tokens, carry, train=False)["params"]
    assert all(np.abs(leaf).max() <= 0.1 for leaf in jax.tree.leaves(params))
    logits, after = model.apply({"params": params}, tokens, carry, train=False)
    p = {name: np.asarray(leaf) for name, leaf in params.items()}
    hs, cs = (np.array(x) for x in carry)
    for t in range(4):
        x = p["encoder"][tokens[:, t]]
        for layer in range(2):
            gates = (
                x @ p[f"weight_ih_{layer}"]
                + p[f"bias_ih_{layer}"]
                + hs[:, layer] @ p[f"weight_hh_{layer}"]
                + p[f"bias_hh_{layer}"]
            )
            i, f, g, o = np.split(gates, 4, axis=1)
            cs[:, layer] = sigmoid(f) * cs[:, layer] + sigmoid(i) * np.tanh(g)
            x = hs[:, layer] = sigmoid(o) * np.tanh(cs[:, layer])
        expected = x @ p["encoder"].T + p["decoder_bias"]
        np.testing.assert_allclose(logits[:, t], expected, atol=1e-5)
    np.testing.assert_allclose(after[0], hs, atol=1e-5)
    np.testing.assert_allclose(after[1], cs, atol=1e-5)


@pytest.mark.slow
def test_texts_that_are_cut_are_read_as_if_they_were_not():
    model = models.LANGUAGE_MODELS["lstm"](7, hidden=5, dropout=0.3)
    tokens = jax.random.randint(KEY, (3, 8), 0, 7)
    start = model.initial_carry(3)
    params = model.init(KEY, tokens, start, train=False)
    whole, end = model.apply(params, tokens, start, train=False)
    first, middle = model.apply(params, tokens[:, :5], start, train=False)
    second, last = model.apply(params, tokens[:, 5:], middle, train=False)
    np.testing.assert_allclose(whole, jnp.concatenate([first, second], 1), atol=1e-6)
    np.testing.assert_allclose(end, last, atol=1e-6)


TINY = {"hidden": 8, "heads": 2, "inner": 12, "layers": 2, "positions": 6}


def tiny_weights(rng, prefix):
    """A file of the transformers library, of a network with 9 tokens and 3 classes."""
    linear = {"attention.q_lin": (8, 8), "attention.k_lin": (8, 8)}
    linear |= {"attention.v_lin": (8, 8), "attention.out_lin": (8, 8)}
    linear |= {"ffn.lin1": (12, 8), "ffn.lin2": (8, 12)}
    tensors = {"embeddings.word_embeddings.weight": (9, 8)}
    tensors |= {"embeddings.position_embeddings.weight": (6, 8)}
    tensors |= {f"embeddings.LayerNorm.{part}": (8,) for part in ("weight", "bias")}
    for layer in range(2):
        name = f"transformer.layer.{layer}"
        for part, shape in linear.items():
            tensors[f"{name}.{part}.weight"] = shape
            tensors[f"{name}.{part}.bias"] = shape[:1]
        for part in ("sa_layer_norm", "output_layer_norm"):
            tensors |= {f"{name}.{part}.{end}": (8,) for end in ("weight", "bias")}
    weights = {f"{prefix}{name}": shape for name, shape in tensors.items()}
    weights |= {"pre_classifier.weight": (8, 8), "pre_classifier.bias": (8,)}
    weights |= {"classifier.weight": (3, 8), "classifier.bias": (3,)}
    return {
        name: rng.normal(size=shape).astype(np.float32)
        for name, shape in weights.items()
    }


def norm(x, w, name):
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
    return x * w[f"{name}.weight"] + w[f"{name}.bias"]


def linear(x, w, name):
    return x @ w[f"{name}.weight"].T + w[f"{name}.bias"]


def reference(w, tokens, mask):
    """DistilBERT for one text, written from its definition, with loops over heads."""
    from math import erf

    x = w["embeddings.word_embeddings.weight"][tokens]
    x = x + w["embeddings.position_embeddings.weight"][: len(tokens)]
    x = norm(x, w, "embeddings.LayerNorm")
    for layer in range(2):
        name = f"transformer.layer.{layer}"
        q, k, v = (linear(x, w, f"{name}.attention.{i}_lin") for i in "qkv")
        heads = []
        for at in (slice(0, 4), slice(4, 8)):
            scores = q[:, at] @ k[:, at].T / 2
            scores[:, ~mask] = -np.inf
            weights = np.exp(scores - scores.max(1, keepdims=True))
            heads.append(weights / weights.sum(1, keepdims=True) @ v[:, at])
        mixed = linear(np.concatenate(heads, 1), w, f"{name}.attention.out_lin")
        x = norm(x + mixed, w, f"{name}.sa_layer_norm")
        y = linear(x, w, f"{name}.ffn.lin1")
        y = y * 0.5 * (1 + np.vectorize(erf)(y / np.sqrt(2)))
        x = norm(x + linear(y, w, f"{name}.ffn.lin2"), w, f"{name}.output_layer_norm")
    hidden = np.maximum(linear(x[0], w, "pre_classifier"), 0)
    return linear(hidden, w, "classifier")


@pytest.mark.slow
@pytest.mark.parametrize("prefix", ["", "distilbert."])
def test_distilbert_takes_weights_from_a_file(prefix, tmp_path):
    rng = np.random.default_rng(0)
    weights = tiny_weights(rng, prefix)
    save_file(weights, tmp_path / "model.safetensors")
    model = DistilBERT(9, 3, **TINY)
    tokens = rng.integers(1, 9, (2, 5))
    mask = np.array([[True] * 5, [True] * 3 + [False] * 2])
    params = jax.jit(lambda: model.init(KEY, tokens, mask, train=False)["params"])()
    params = models.load_distilbert(params, tmp_path / "model.safetensors")
    apply = jax.jit(lambda p: model.apply({"params": p}, tokens, mask, train=False))
    logits = apply(params)
    plain = {name.removeprefix(prefix): w for name, w in weights.items()}
    for row in range(2):
        expected = reference(plain, tokens[row], mask[row])
        np.testing.assert_allclose(logits[row], expected, rtol=1e-4, atol=1e-4)


def test_weights_that_do_not_fit_are_named(tmp_path):
    model = DistilBERT(9, 3, **TINY)
    tokens = jnp.zeros((1, 5), jnp.int32)
    init = jax.jit(lambda: model.init(KEY, tokens, tokens == 0, train=False)["params"])
    params = init()
    path = tmp_path / "model.safetensors"
    with pytest.raises(ValueError, match="no file"):
        models.load_distilbert(params, path)
    weights = tiny_weights(np.random.default_rng(0), "")
    headless = {k: v for k, v in weights.items() if "classifier" not in k}
    save_file(headless, path)
    loaded = models.load_distilbert(params, path)
    kept = loaded["classifier"]["kernel"]
    np.testing.assert_array_equal(kept, params["classifier"]["kernel"])
    name = "transformer.layer.1.ffn.lin1.weight"
    save_file(weights | {name: np.zeros((5, 8), np.float32)}, path)
    with pytest.raises(ValueError, match=f"{name} .*gives .8, 5., not .8, 12."):
        models.load_distilbert(params, path)
    del weights[name]
    save_file(weights, path)
    with pytest.raises(ValueError, match=f"no tensor {name} of shape .8, 12."):
        models.load_distilbert(params, path)


def test_texts_longer_than_the_positions_are_refused():
    model = DistilBERT(9, 3, **TINY)
    tokens = jnp.zeros((1, 7), jnp.int32)
    with pytest.raises(ValueError, match="texts of 7 tokens; at most 6"):
        model.init(KEY, tokens, tokens == 0, train=False)
