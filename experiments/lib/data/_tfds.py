"""Reads data sets that tensorflow-datasets has prepared.

Reading needs the package tensorflow-datasets, but not TensorFlow; preparing needs both.
"""

import concurrent.futures
import io
import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import tqdm

from ..errors import UsageError
from ._base import Arrays, DataOptions, missing

_NOT_THERE = AssertionError, KeyError, NotImplementedError, StopIteration, ValueError
"""Errors that tensorflow-datasets raises if data are missing."""


def is_prepared(name: str, options: DataOptions) -> bool:
    """Tells whether a data set is prepared, in a format with random access."""
    if not (options.folder / name).is_dir():
        return False
    try:
        builder = _builder(name, options)
        builder.as_data_source(next(iter(builder.info.splits)))
    except _NOT_THERE:
        return False
    return True


def _builder(name: str, options: DataOptions) -> Any:
    """Opens the newest prepared version, or raises one of `_NOT_THERE`."""
    tfds = import_tfds()
    versions = sorted((options.folder / name).rglob("dataset_info.json"))
    if not versions:
        raise KeyError(name)
    return tfds.builder_from_directory(str(versions[-1].parent))


def import_tfds() -> Any:
    """Imports tensorflow-datasets; raises UsageError if it is not installed."""
    try:
        import importlib_resources  # noqa: F401  An undeclared dependency of the next.
        import tensorflow_datasets
    except ModuleNotFoundError:
        raise UsageError(
            'tensorflow-datasets is missing: pip install "djax-gossip[data]".'
        ) from None
    return tensorflow_datasets


def open_split(
    name: str, split: str, options: DataOptions, decoders: Any = None
) -> Sequence[Any]:
    """Opens one split of a data set for random access."""
    try:
        return _builder(name, options).as_data_source(split, decoders=decoders)
    except _NOT_THERE:
        if not options.download:
            raise missing(
                name,
                options.folder / name,
                f"python -m experiments.prepare {name.removesuffix('_subset')} "
                f"--data-dir {options.folder} --download",
            ) from None
    prepare(name, options.folder)
    return _builder(name, options).as_data_source(split, decoders=decoders)


def prepare(name: str, folder: pathlib.Path, raw: pathlib.Path | None = None) -> None:
    """Prepares a data set for random access, which needs TensorFlow.

    The original files are in the folder `raw`; if it is None, they are downloaded.
    """
    tfds = import_tfds()
    try:
        import tensorflow  # noqa: F401  # type: ignore
    except ModuleNotFoundError:
        raise UsageError(
            f"preparing {name} needs TensorFlow, using it does not: "
            'pip install "djax-gossip[prepare]".'
        ) from None
    from tensorflow_datasets.core.download import downloader

    # Without a network, the default of ten retries would take minutes.
    vars(downloader)["MAX_RETRIES"] = 0
    builder = tfds.builder(name, data_dir=str(folder), file_format="array_record")
    config = tfds.download.DownloadConfig(manual_dir=str(raw) if raw else None)
    try:
        builder.download_and_prepare(download_config=config)
    except Exception as error:  # Network, disk and format fail with many types.
        text = str(error).strip().splitlines() or [type(error).__name__]
        raise UsageError(f"{name} could not be prepared: {text[0]}") from error


def load_images(name: str, options: DataOptions) -> list[Arrays]:
    """Loads all training images and all held-out images into memory.

    The decoded images of each split are kept in a file, which is faster to read later.
    """

    def read(split):
        source = open_split(name, split, options)
        numbers = tqdm.tqdm(range(len(source)), f"{name} {split}", disable=None)
        examples = [source[i] for i in numbers]
        return {
            "image": np.stack([example["image"] for example in examples]),
            "label": np.array([example["label"] for example in examples], np.int32),
        }

    return [
        Arrays(**keep(options.folder / f"{name}-{split}.npz", read, split))
        for split in ("train", "test")
    ]


def keep(
    path: pathlib.Path, make: Callable[..., dict[str, np.ndarray]], *arguments: Any
) -> dict[str, np.ndarray]:
    """Reads arrays from an npz file; if it is missing, makes and writes them."""
    if path.exists():
        with np.load(path) as found:
            return dict(found)
    made = make(*arguments)
    part = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with part.open("wb") as file:
            np.savez(file, allow_pickle=False, **made)
        part.replace(path)  # So other processes never read an incomplete file.
    except OSError:  # The folder may be read-only: then the arrays are not kept.
        part.unlink(missing_ok=True)
    return made


class _ImageNet:
    """A :class:`Source` of images of `size` pixels a side, too many for the memory.

    Images are decoded when they are needed, and cropped: at random for training,
    otherwise in the middle.
    """

    def __init__(
        self, source: Sequence[Any], labels: np.ndarray, random: bool, size: int
    ):
        """Starts the threads that decode; no image is read yet."""
        self._source, self.labels, self._random = source, labels, random
        self._size = size
        self._pool = concurrent.futures.ThreadPoolExecutor(os.cpu_count())

    def read(self, indices: np.ndarray, seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Reads images; a crop depends only on the seed and the index of its image."""
        flat = indices.ravel().tolist()
        images = list(self._pool.map(lambda i: self._image(i, seed), flat))
        shape = (*indices.shape, *images[0].shape)
        return {"image": np.reshape(images, shape), "label": self.labels[indices]}

    def _image(self, index: int, seed: tuple[int, ...]) -> np.ndarray:
        from PIL import Image

        size, bilinear = self._size, Image.Resampling.BILINEAR
        with Image.open(io.BytesIO(self._source[index]["image"])) as image:
            image = image.convert("RGB")
            if self._random:
                box = random_box(np.random.default_rng((*seed, index)), *image.size)
                return np.asarray(image.resize((size, size), bilinear, box))
            scale = size * 256 / 224 / min(image.size)
            width, height = (round(side * scale) for side in image.size)
            left, top = (width - size) // 2, (height - size) // 2
            image = image.resize((width, height), bilinear)
            return np.asarray(image.crop((left, top, left + size, top + size)))


def random_box(
    rng: np.random.Generator, width: int, height: int
) -> tuple[float, float, float, float]:
    """Draws the left, top, right and bottom side of a random crop of an image.

    The crop has 8 to 100 % of the image's area, and its sides have a ratio between
    3 : 4 and 4 : 3. If ten draws do not fit into the image, the crop is the largest one
    of an allowed ratio, in the middle.
    """
    for _ in range(10):
        area = width * height * rng.uniform(0.08, 1)
        ratio = np.exp(rng.uniform(np.log(3 / 4), np.log(4 / 3)))
        w, h = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            left, top = rng.integers(width - w + 1), rng.integers(height - h + 1)
            return left, top, left + w, top + h
    w, h = min(width, height * 4 / 3), min(height, width * 4 / 3)
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def open_imagenet(options: DataOptions, size: int) -> list[_ImageNet]:
    """Opens the training and validation images, which are decoded when needed."""
    decoders = {"image": import_tfds().decode.SkipDecoding()}

    def read(source, split):
        numbers = tqdm.tqdm(range(len(source)), f"labels of {split}", disable=None)
        return {"label": np.array([source[i]["label"] for i in numbers], np.int32)}

    opened = []
    for split in ("train", "validation"):
        source = open_split("imagenet2012", split, options, decoders)
        path = options.folder / f"imagenet2012-{split}-labels.npz"
        labels = keep(path, read, source, split)["label"]
        opened.append(_ImageNet(source, labels, split == "train", size))
    return opened
