"""Reads probabilities: one number, or an array with a number for each link."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._values import describe, read_only

from ._common import check_seed

Probability = Any
"""One number for all links, or `float64[n, n]`: `[i, j]` is the link from j to i."""


def probabilities(name: str, value: Any, size: int, most: float | None) -> Probability:
    """Returns a number or an array `[n, n]`, or raises ValueError.

    Args:
      name: the name of the argument.
      value: what the user passed.
      size: number of workers.
      most: 1 if the number 1 is allowed; None if it is not allowed, since all messages
        would be lost.
    """
    number = number_of(value)
    if number is not None:
        if 0 <= number < 1 or number == most:
            return number
    elif not isinstance(value, jax.core.Tracer):
        array = _array(value)
        if array is not None and array.shape == (size, size):
            if np.all((array >= 0) & (array <= 1)):
                return read_only(array)
    raise ValueError(
        f"{name} must be a number in [0, 1{')' if most is None else ']'}, or an array "
        f"[{size}, {size}] of probabilities, one for each receiver and sender; got "
        f"{describe(value)}."
    )


def check_short_form(
    name: str, drop_probability: Any, drop_seed: Any
) -> tuple[float, int]:
    """Returns both arguments as Python numbers, or raises ValueError.

    Args:
      name: the name of the function that makes the communicator.
      drop_probability: one number in [0, 1).
      drop_seed: an integer that `jax.random.fold_in` takes.
    """
    number = number_of(drop_probability)
    if number is None or not 0 <= number < 1:
        raise ValueError(
            f"{name}: drop_probability must be one number in [0, 1), known before "
            f"programs are compiled, got {describe(drop_probability)}; 0.0 loses no "
            "message, and communicators.lossy has other models."
        )
    return number, check_seed(f"{name}: drop_seed", drop_seed)


def number_of(value: Any) -> float | None:
    """Returns a real number as a float; None for anything else and traced values."""
    if isinstance(value, (bool, jax.core.Tracer)):
        return None
    if isinstance(value, int):
        return float(np.clip(value, -1, 2))  # Huge integers are not floats.
    if isinstance(value, float):
        return value
    if not isinstance(value, (np.number, np.ndarray, jax.Array)) or np.ndim(value):
        return None
    real = any(jnp.issubdtype(value.dtype, x) for x in (jnp.floating, jnp.integer))
    return float(value) if real else None


def _array(value: Any) -> np.ndarray | None:
    try:
        return np.array(value, np.float64)
    except (TypeError, ValueError):
        return None
