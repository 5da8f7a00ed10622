"""Loads the image data sets: handwritten digits, Fashion-MNIST, CIFAR-10, ImageNet."""

import gzip
import hashlib
import importlib.util
import pathlib
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from ..errors import UsageError
from . import _tfds
from ._augment import crop_and_flip, normalizer
from ._base import Arrays, DataOptions, Dataset, Source, missing
from ._mock import mock_images

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

    def normalize(images):
        return images.astype(jnp.float32) / 16

    return Dataset(
        train=Arrays(image=images[:-360], label=labels[:-360]),
        test=Arrays(image=images[-360:], label=labels[-360:]),
        classes=10,
        augment=lambda key, images: normalize(images),
        normalize=normalize,
    )


def fashion_mnist(
    options: DataOptions, augment: bool = False, pool: int = 1
) -> Dataset:
    """Loads Fashion-MNIST: 70,000 grey images of 28 x 28, ten kinds of clothes.

    Args:
      options: where the data set is. The files of Debian's package
        dataset-fashion-mnist are found too.
      pool: side of the squares of pixels that are replaced by their mean, so that
        images are `pool` times smaller. It must divide 28.
    """
    if pool < 1 or 28 % pool:
        raise ValueError(f"pool={pool} must divide 28.")
    if options.mock:
        train, test = mock_images((28 // pool, 28 // pool, 1), 10)
    else:
        train, test = (
            Arrays(image=_pool(images, pool), label=labels)
            for images, labels in _read_fashion(options)
        )
    normalize = normalizer([0.2860], [0.3530])
    return _dataset(train, test, 10, normalize, 4 // pool if augment else None)


def cifar10(options: DataOptions, augment: bool = True) -> Dataset:
    """Loads CIFAR-10: 60,000 colour images of 32 x 32, ten classes."""
    if options.mock:
        train, test = mock_images((32, 32, 3), 10)
    else:
        train, test = _tfds.load_images("cifar10", options)
    normalize = normalizer((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616))
    return _dataset(train, test, 10, normalize, 4 if augment else None)


def imagenet2012(options: DataOptions, size: int = 224) -> Dataset:
    """Opens ImageNet: 1.28 million training images of a thousand classes.

    Args:
      size: side of the images in pixels, after they have been cropped and scaled.
    """
    if size < 1:
        raise ValueError(f"size={size} must be positive.")
    if options.mock:
        train, test = mock_images((size, size, 3), 1000, samples=256)
    else:
        train, test = _tfds.open_imagenet(options, size)
    normalize = normalizer((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    return _dataset(train, test, 1000, normalize, 0)


def _dataset(
    train: Source, test: Source, classes: int, normalize: Callable, padding: int | None
) -> Dataset:
    """Makes a data set of images.

    Training images are shifted by up to `padding` pixels and mirrored at random; if
    `padding` is None, they are only normalized.
    """

    def augment(key, images):
        if padding is not None:
            images = crop_and_flip(key, images, padding)
        return normalize(images)

    return Dataset(train, test, classes, augment, normalize)


def _pool(images: np.ndarray, side: int) -> np.ndarray:
    """Replaces squares of `side` pixels by their rounded mean, and adds a channel axis.

    Maps `uint8[samples, size, size]` to `uint8[samples, size / side, size / side, 1]`.
    """
    if side == 1:
        return images[..., None]
    count, size, _ = images.shape
    cut = images.reshape(count, size // side, side, size // side, side)
    return np.rint(cut.mean((2, 4), dtype=np.float32)).astype(np.uint8)[..., None]


_CHECKSUMS = {
    "train-images-idx3-ubyte": "f4a8712d7a061bf5bd6d2ca38dc4d50a",
    "train-labels-idx1-ubyte": "9018921c3c673c538a1fc5bad174d6f9",
    "t10k-images-idx3-ubyte": "8181f5470baa50b63fa0f6fddb340f0a",
    "t10k-labels-idx1-ubyte": "15d484375f8d13e6eb1aabb0c3f46965",
}
"""MD5 sums of the unpacked files of Fashion-MNIST."""


def _read_fashion(options: DataOptions):
    """Returns `(images, labels)` of the training split and of the held-out split."""
    folders = (options.folder / "fashion-mnist", options.folder, DEBIAN)
    for folder in folders:
        if any((folder / f"{name}.gz").exists() for name in _CHECKSUMS):
            arrays = [_read_idx(folder / f"{name}.gz") for name in _CHECKSUMS]
            return [
                (images, labels.astype(np.int32))
                for images, labels in (arrays[:2], arrays[2:])
            ]
    if not _tfds.is_prepared("fashion_mnist", options) and not options.download:
        looked = ", ".join(map(str, folders))
        raise missing(
            "fashion_mnist",
            looked,
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
