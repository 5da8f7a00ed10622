"""Data sets: what they consist of, and where they lie."""

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
    """Where data sets come from."""

    data_dir: pathlib.Path | None = None
    """Where data sets lie: by default $DJAX_DATA, or ~/tensorflow_datasets."""
    download: bool = False
    """Get what is missing from the internet."""
    mock: bool = False
    """Random data of the same shapes: shows that it runs."""

    @property
    def folder(self) -> pathlib.Path:
        """Where data sets lie."""
        default = os.environ.get("DJAX_DATA", "~/tensorflow_datasets")
        return pathlib.Path(self.data_dir or default).expanduser()


class Source(Protocol):
    """Samples by their numbers.

    Attributes:
      labels: `int32[samples]`.
    """

    labels: np.ndarray

    def read(self, indices: np.ndarray, seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Reads samples.

        Args:
          indices: of any shape.
          seed: of the random cuts of images, if there are some.

        Returns:
          Leaves `[*indices.shape, ...]`: `label`, int32, and `image`, uint8 with axes
          height, width and channel, or `tokens`, int32.
        """
        ...


class Arrays:
    """A source of arrays in memory.

    Args:
      **fields: `[samples, ...]`. One of them is called `label`.
    """

    def __init__(self, **fields: np.ndarray):
        """Keeps the arrays."""
        self._fields, self.labels = fields, fields["label"]

    def read(self, indices: np.ndarray, seed: tuple[int, ...]) -> dict[str, np.ndarray]:
        """Reads samples; nothing is random."""
        del seed
        return {name: values[indices] for name, values in self._fields.items()}


class Dataset(NamedTuple):
    """Samples of classes.

    Attributes:
      train: samples to learn from.
      test: held-out samples.
      classes: how many.
      augment: `(key, uint8[batch, ...]) -> float32[batch, ...]`, for training, on the
        device.
      normalize: `uint8[batch, ...] -> float32[batch, ...]`, for the evaluation.
      vocabulary: how many different tokens texts have.
    """

    train: Source
    test: Source
    classes: int
    augment: Callable[[jax.Array, jax.Array], jax.Array] = lambda key, x: x
    normalize: Callable[[jax.Array], jax.Array] = lambda x: x
    vocabulary: int = 0


class Corpus(NamedTuple):
    """A text.

    Attributes:
      train: `int32[tokens]`, the text to learn from.
      valid: `int32[tokens]`, the held-out text.
      documents: `int64[documents + 1]`, where those of `train` begin, and its length.
      vocabulary: the tokens.
    """

    train: np.ndarray
    valid: np.ndarray
    documents: np.ndarray
    vocabulary: tuple[str, ...]


def missing(name: str, looked: object, remedy: str) -> UsageError:
    """The error that data are not there.

    Args:
      name: of the data set.
      looked: where it was looked for.
      remedy: what gets it.
    """
    return UsageError(f"no {name} in {looked}: {remedy}")
