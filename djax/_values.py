"""Checks of single arguments, for all packages of djax: nothing here needs JAX.

Errors say what was expected, what was passed instead and, where a remedy is known, the
remedy. :func:`describe` puts into words what was passed.
"""

import operator
import reprlib
from typing import Any

import numpy as np

from djax import _networkx as nx


def is_array(value: Any) -> bool:
    """Whether a value is an array of NumPy, JAX or another library."""
    return all(hasattr(value, name) for name in ("__array__", "shape", "dtype"))


def is_communicator(value: Any) -> bool:
    """Whether a value exchanges messages, as :class:`djax.Communicator` does."""
    return hasattr(value, "permute") and hasattr(value, "local_ranks")


def describe(value: Any) -> str:
    """Describes a value in few words, for errors."""
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if callable(value) and hasattr(value, "__name__"):
        return f"the function {value.__name__}"
    if isinstance(value, nx.Graph):
        return f"a networkx.{type(value).__name__} of {len(value)} nodes"
    if is_array(value) and np.ndim(value):
        return f"an array of shape {np.shape(value)}"
    if is_communicator(value):
        return f"the communicator {value!r}"
    return reprlib.repr(value) if isinstance(value, (list, tuple)) else repr(value)


def is_whole(value: Any) -> bool:
    """Whether a value is an integer, also of NumPy, and no boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, also of NumPy, and no boolean."""
    return is_whole(value) or isinstance(value, (float, np.floating))


def counted(count: int, noun: str) -> str:
    """Says how many things there are, such as "1 round" or "2 rounds"."""
    return f"{count} {noun}{'s' * (count != 1)}"


def read_only(array: np.ndarray) -> np.ndarray:
    """Returns an array after protecting it from being written to."""
    array.setflags(write=False)
    return array


def check_integer(value: Any, what: str, minimum: int = 1) -> int:
    """Returns an integer as an `int`.

    Args:
      value: what the user passed.
      what: the argument's name, for the error.
      minimum: the smallest integer that is allowed.

    Raises:
      ValueError: the value is not an integer, or is below the minimum. True and False
        are refused, although Python counts them as 1 and 0.
    """
    try:
        integer = None if isinstance(value, (bool, np.bool_)) else operator.index(value)
    except TypeError:
        integer = None
    if integer is None or integer < minimum:
        raise ValueError(
            f"{what} must be an integer of at least {minimum}, got {value!r}"
        )
    return integer


def check_share(value: Any, what: str) -> float:
    """Returns a number in (0, 1] as a `float`.

    Args:
      value: what the user passed.
      what: the argument's name, for the error.

    Raises:
      ValueError: the value is not a number in that interval.
    """
    if not (is_number(value) and 0 < value <= 1):
        raise ValueError(f"{what} must be in (0, 1], got {value!r}")
    return float(value)
