"""Defines what a data set consists of, and where its files are looked for."""

import dataclasses
import os
import pathlib
from collections.abc import Callable
from typing import NamedTuple, Protocol

import jax
import numpy as np

from ..errors import UsageError


@dataclasses.dataclass(frozen=True)
class DataOptions:
    """Says from which folder data sets are read, and whether they may be downloaded."""

    data_dir: pathlib.Path | None = None
    """Folder of the data sets; by default $DJAX_DATA, or ~/tensorflow_datasets."""
    download: bool = False
    """Download data sets that are missing."""
    mock: bool = False
    """Use random data of the same shapes, to try whether the program runs."""

    @property
    def folder(self) -> pathlib.Path:
        """Folder of the data sets, after defaults and `~` are resolved."""
        default = os.environ.get("DJAX_DATA", "~/tensorflow_datasets")
        return pathlib.Path(self.data_dir or default).expanduser()


class Source(Protocol):
    """Gives access to samples, whose classes are `labels`, `int32[samples]`."""

    labels: np.ndarray

    def read(self, indices: np.ndarray, seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Reads the samples with the given indices, an integer array of any shape.

        The seed is that of random crops of images. The result has arrays
        `[*indices.shape, ...]`: `label`, int32, and either `image`, uint8 with axes for
        height, width and channel, or `tokens`, int32.
        """


class Arrays:
    """A :class:`Source` whose samples are in memory, in arrays `[samples, ...]`."""

    def __init__(self, **fields: np.ndarray):
        """Keeps the arrays, one of which must be called `label`."""
        self._fields, self.labels = fields, fields["label"]

    def read(self, indices: np.ndarray, seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Reads the samples with the given indices; the seed is not used."""
        del seed
        return {name: values[indices] for name, values in self._fields.items()}


class Dataset(NamedTuple):
    """A data set for classification.

    Attributes:
      normalize: `uint8[batch, ...] -> float32[batch, ...]`, which is applied to images
        on the device.
      augment: `(key, uint8[batch, ...]) -> uint8[batch, ...]`, which changes images of
        a training step at random before they are normalized.
      vocabulary: number of different tokens; 0 for images.
    """

    train: Source
    test: Source
    classes: int
    normalize: Callable[[jax.Array], jax.Array] = lambda x: x
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda key, x: x
    vocabulary: int = 0


class Corpus(NamedTuple):
    """A text for language modelling, as token numbers.

    Attributes:
      train: `int32[tokens]`, the text to learn from.
      valid: `int32[tokens]`, the held-out text.
      documents: `int64[documents + 1]`, where in `train` each document begins, and at
        the end the length of `train`.
      vocabulary: the token that belongs to each number.
    """

    train: np.ndarray
    valid: np.ndarray
    documents: np.ndarray
    vocabulary: tuple[str, ...]


def missing(name: str, looked: object, remedy: str) -> UsageError:
    """Makes the error that says that a data set is missing, and how to get it."""
    return UsageError(f"no {name} in {looked}: {remedy}")
