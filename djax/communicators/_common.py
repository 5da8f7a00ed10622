"""Checks of arguments that all communicators share."""

from collections.abc import Mapping, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from djax._arrays.checks import is_array, shortened
from djax._values import check_integer, describe

MESSAGE_DTYPES = ("bfloat16", "float16", "float8_e4m3fn", "float8_e5m2")
"""The dtypes to which messages can be rounded."""


def check_size(name: str, size: Any) -> int:
    """Returns a number of workers as an `int`, or raises ValueError.

    Args:
      name: the name of the function that makes the communicator.
      size: the first argument of this function.
    """
    try:
        return check_integer(size, f"{name}: size")
    except ValueError as error:
        remedy = f"pass the number of workers, as in {name}(8)"
        if not is_array(size) and isinstance(getattr(size, "size", None), int):
            remedy = f"pass its size, as in {name}({size.size})"
        raise ValueError(
            f"{name}: size must be an integer of at least 1, got {describe(size)}; "
            f"{remedy}."
        ) from error


def check_messages(
    name: str, message_dtype: Any, rounding_seed: Any
) -> tuple[str | None, int | None]:
    """Returns both arguments as a name and an `int`, or raises ValueError.

    Args:
      name: the name of the function that makes the communicator.
      message_dtype: one of :data:`MESSAGE_DTYPES`, by name or as a dtype, or None.
      rounding_seed: an integer that `jax.random.key` takes, or None.
    """
    if message_dtype is not None:
        try:
            found = jnp.dtype(message_dtype).name
        except TypeError:
            found = None
        if found not in MESSAGE_DTYPES:
            raise ValueError(
                f"{name}: message_dtype must be one of {', '.join(MESSAGE_DTYPES)}, or "
                f"None for messages in the dtypes of the models; got {message_dtype!r}."
            )
        message_dtype = found
    if rounding_seed is None:
        return message_dtype, None
    if message_dtype is None:
        raise ValueError(
            f"{name}: rounding_seed={rounding_seed!r} rounds nothing without a "
            "message_dtype; give one, such as 'bfloat16'."
        )
    return message_dtype, check_seed(f"{name}: rounding_seed", rounding_seed)


def check_seed(name: str, seed: Any) -> int:
    """Returns an integer that `jax.random.fold_in` takes, or raises ValueError."""
    seed = check_integer(seed, name, minimum=0)
    if seed >= 2**32:
        raise ValueError(f"{name} must be below 2**32, got {seed}.")
    return seed


def check_function(fn: Any) -> None:
    """Raises TypeError unless `spmd` was given a function."""
    if not callable(fn):
        raise TypeError(
            f"spmd needs the function that one worker runs, got {describe(fn)}: pass "
            "the function itself, as in communicator.spmd(step)(params)."
        )


def check_one_each(function: str, values: Any, count: int) -> list[Any]:
    """Returns the values as a list, or raises unless each local worker has one.

    Args:
      function: the name of the function that was called, for the error.
      values: its argument.
      count: number of local workers.
    """
    if isinstance(values, (Mapping, str)) or not hasattr(values, "__iter__"):
        raise TypeError(
            f"{function} needs a list with one value for each of the {count} local "
            f"workers, got {shortened(values)}."
        )
    values = list(values)
    if len(values) != count:
        raise ValueError(
            f"{function} needs one value for each of the {count} local workers "
            f"(communicator.local_ranks), got {len(values)}."
        )
    return values


def check_permutation(source: Sequence[int], size: int) -> None:
    """Raises unless `source` names every worker once."""
    try:
        named = sorted(source)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"permute: source must be a sequence of {size} ranks, for each worker the "
            f"one that it receives from, got {describe(source)}."
        ) from error
    if named != list(range(size)):
        raise ValueError(
            f"permute: source must be a permutation of range({size}), got "
            f"{tuple(source)}; a worker that stays silent is its own source."
        )


def check_permutations(sources: Sequence[Sequence[int]], size: int) -> np.ndarray:
    """Returns permutations as `int32[count, size]`, or raises if one is wrong."""
    for source in sources:
        check_permutation(source, size)
    return np.asarray(sources, np.int32)


def distinct(rows: np.ndarray) -> tuple[list[tuple[int, ...]], np.ndarray]:
    """Returns the different rows, and for each row its index among them."""
    found: dict[tuple[int, ...], int] = {}
    which = [found.setdefault(tuple(row), len(found)) for row in rows.tolist()]
    return list(found), np.asarray(which, np.int32)


def check_same_starts(found: Sequence[str]) -> None:
    """Raises ValueError if processes start a mechanism with different facts.

    Args:
      found: the differences, as texts.
    """
    if found:
        more = f", and {len(found) - 3} more" if len(found) > 3 else ""
        raise ValueError(
            f"the ranks do not start the same: {'; '.join(found[:3])}{more}. Start "
            "every rank with the same command, code and seed."
        )
