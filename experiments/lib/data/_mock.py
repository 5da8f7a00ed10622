"""Makes random data with the shapes of the real data sets, to try programs quickly."""

import numpy as np

from ._base import Arrays, Corpus


def mock_images(
    shape: tuple[int, int, int], classes: int, samples: int = 1024
) -> tuple[Arrays, Arrays]:
    """Makes images to train with, and a quarter as many held-out ones.

    Each class has a random colour, and each image is its class's colour plus noise.
    """
    rng = np.random.default_rng(0)
    colors = rng.integers(64, 192, (classes, 1, 1, shape[-1]))

    def make(count):
        labels = np.arange(count, dtype=np.int32) * classes // count % classes
        noise = rng.integers(-64, 64, (count, *shape), dtype=np.int16)
        images = (colors[labels] + noise).astype(np.uint8)
        return Arrays(image=images, label=labels)

    return make(samples), make(samples // 4)


def mock_texts(length: int, vocabulary: int, classes: int) -> tuple[Arrays, Arrays]:
    """Makes random texts of different lengths: 512 to train with, 128 held out."""
    rng = np.random.default_rng(0)

    def make(count):
        labels = np.arange(count, dtype=np.int32) % classes
        tokens = rng.integers(1, vocabulary, (count, length), dtype=np.int32)
        ends = rng.integers(length // 4, length + 1, (count, 1))
        tokens[np.arange(length) >= ends] = 0
        return Arrays(tokens=tokens, label=labels)

    return make(512), make(128)


def mock_corpus(vocabulary: int) -> Corpus:
    """Makes a random text of ten documents with `vocabulary` different tokens."""
    rng, tokens = np.random.default_rng(0), 20_000
    text = rng.zipf(1.3, tokens + tokens // 10).astype(np.int64) % vocabulary
    return Corpus(
        train=text[:tokens].astype(np.int32),
        valid=text[tokens:].astype(np.int32),
        documents=np.linspace(0, tokens, 11).astype(np.int64),
        vocabulary=tuple(f"word{i}" for i in range(vocabulary)),
    )
