"""Loads the image data sets: handwritten digits, Fashion-MNIST, CIFAR-10, ImageNet."""

import functools
import gzip
import hashlib
import importlib.util
import pathlib
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from ..errors import UsageError
from . import _tfds
from ._base import Arrays, DataOptions, Dataset, Source, missing

DEBIAN = pathlib.Path("/usr/share/datasets/fashion-mnist")
DIGITS_ORDER = pathlib.Path(__file__).parent / "digits_order.npy"
"""File with the indices of the digits in the order of scikit-learn's stratified
`train_test_split` with seed 0. The last 360 are held out."""


def digits(options: DataOptions) -> Dataset:
    """Loads 1,797 handwritten digits of 8 x 8; a fifth of each class is held out."""
    del options
    # The file is read directly: importing scikit-learn takes longer than the training.
    package = importlib.util.find_spec("sklearn")
    if package is None or package.origin is None:
        raise UsageError("the digits come with scikit-learn: pip install scikit-learn")
    file = pathlib.Path(package.origin).parent / "datasets/data/digits.csv.gz"
    table = np.loadtxt(file, delimiter=",")[np.load(DIGITS_ORDER)]
    images, labels = table[:, :-1].astype(np.uint8), table[:, -1].astype(np.int32)
    images = images.reshape(-1, 8, 8, 1)
    return Dataset(
        train=Arrays(image=images[:-360], label=labels[:-360]),
        test=Arrays(image=images[-360:], label=labels[-360:]),
        classes=10,
        normalize=lambda images: images.astype(jnp.float32) / 16,
    )


def fashion_mnist(
    options: DataOptions, augment: bool = False, pool: int = 1
) -> Dataset:
    """Loads Fashion-MNIST: 70,000 grey images of 28 x 28, ten kinds of clothes.

    The files of Debian's package dataset-fashion-mnist are found too. Squares of `pool`
    pixels a side are replaced by their mean, so that images are `pool` times smaller.
    """
    if pool < 1 or 28 % pool:
        raise ValueError(f"pool={pool} must divide 28.")
    if options.mock:
        train, test = _mock_images((28 // pool, 28 // pool, 1), 10)
    else:
        train, test = (
            Arrays(image=_pool(images, pool), label=labels)
            for images, labels in _read_fashion(options)
        )
    padding = 4 // pool if augment else None
    return _dataset(train, test, 10, [0.2860], [0.3530], padding)


def cifar10(options: DataOptions, augment: bool = True) -> Dataset:
    """Loads CIFAR-10: 60,000 colour images of 32 x 32, ten classes."""
    if options.mock:
        train, test = _mock_images((32, 32, 3), 10)
    else:
        train, test = _tfds.load_images("cifar10", options)
    mean, deviation = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
    return _dataset(train, test, 10, mean, deviation, 4 if augment else None)


def imagenet2012(options: DataOptions, size: int = 224) -> Dataset:
    """Opens ImageNet: 1.28 million training images, cropped to `size` pixels a side."""
    if size < 1:
        raise ValueError(f"size={size} must be positive.")
    if options.mock:
        train, test = _mock_images((size, size, 3), 1000, samples=256)
    else:
        train, test = _tfds.open_imagenet(options, size)
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return _dataset(train, test, 1000, mean, deviation, 0)


def _dataset(
    train: Source,
    test: Source,
    classes: int,
    mean: Sequence[float],
    deviation: Sequence[float],
    padding: int | None,
) -> Dataset:
    """Makes a data set from the mean and deviation of images' channels, over 255.

    Training images are shifted by up to `padding` pixels and mirrored at random; if
    `padding` is None, they are only normalized.
    """

    def normalize(images):
        scale = 1 / (255 * jnp.asarray(deviation, jnp.float32))
        shift = jnp.asarray(mean, jnp.float32) / jnp.asarray(deviation, jnp.float32)
        return images.astype(jnp.float32) * scale - shift

    dataset = Dataset(train, test, classes, normalize)
    if padding is None:
        return dataset
    return dataset._replace(augment=functools.partial(crop_and_flip, padding=padding))


def crop_and_flip(key: jax.Array, images: jax.Array, padding: int = 4) -> jax.Array:
    """Shifts images at random by up to `padding` pixels, and mirrors about half.

    Images are `[batch, height, width, channels]`; zeros surround them.
    """
    moving, mirroring = jax.random.split(key)
    if padding:
        padded = jnp.pad(images, ((0, 0), *[(padding, padding)] * 2, (0, 0)))
        corners = jax.random.randint(moving, (len(images), 2), 0, 2 * padding + 1)
        size = images.shape[1:]

        def crop(image, corner):
            start = (corner[0], corner[1], jnp.zeros((), corner.dtype))
            return jax.lax.dynamic_slice(image, start, size)

        images = jax.vmap(crop)(padded, corners)
    mirrored = jax.random.bernoulli(mirroring, 0.5, (len(images), 1, 1, 1))
    return jnp.where(mirrored, images[:, :, ::-1], images)


def _pool(images: np.ndarray, side: int) -> np.ndarray:
    """Replaces squares of `side` pixels by their rounded mean; adds a channel axis."""
    if side == 1:
        return images[..., None]
    count, size, _ = images.shape
    cut = images.reshape(count, size // side, side, size // side, side)
    return np.rint(cut.mean((2, 4), dtype=np.float32)).astype(np.uint8)[..., None]


def _mock_images(
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


_CHECKSUMS = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""MD5 sums of the unpacked files of Fashion-MNIST."""


def _read_fashion(options: DataOptions) -> list[tuple[np.ndarray, np.ndarray]]:
    """Returns `(images, labels)` of the training split and of the held-out split."""
    folders = (options.folder / "fashion-mnist", options.folder, DEBIAN)
    for folder in folders:
        if any((folder / f"{name}.gz").exists() for name in _CHECKSUMS):
            arrays = [_read_idx(folder / f"{name}.gz") for name in _CHECKSUMS]
            labels = [array.astype(np.int32) for array in arrays[1::2]]
            return list(zip(arrays[::2], labels, strict=True))
    if not _tfds.is_prepared("fashion_mnist", options) and not options.download:
        raise missing(
            "fashion_mnist",
            ", ".join(map(str, folders)),
            "apt install dataset-fashion-mnist, or python -m experiments.prepare "
            f"fashion_mnist --data-dir {options.folder} --download",
        )
    parts = _tfds.load_images("fashion_mnist", options)
    everything = [part.read(np.arange(len(part.labels)), (0,)) for part in parts]
    return [(part["image"][..., 0], part["label"]) for part in everything]


def _read_idx(path: pathlib.Path) -> np.ndarray:
    """Reads a file in the format of MNIST, and compares its checksum."""
    try:
        content = gzip.decompress(path.read_bytes())
        dimensions = content[3]
        header = np.frombuffer(content, ">u4", dimensions, offset=4)
        array = np.frombuffer(content, np.uint8, offset=4 * (1 + dimensions))
        array = array.reshape(tuple(header.tolist()))
    except (OSError, EOFError, IndexError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); get it again.") from None
    official = len(array) == (60_000 if path.name.startswith("train") else 10_000)
    digest = hashlib.md5(content, usedforsecurity=False).hexdigest()
    if official and digest != _CHECKSUMS[path.name.removesuffix(".gz")]:
        raise UsageError(f"{path} has the MD5 sum {digest}, not its own; get it again.")
    return array
