"""What the communicators share."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays import is_array, shortened
from djax._base import PyTree, threefry
from djax.topologies._checks import check_integer, describe


def check_size(name: str, size: Any) -> int:
    """Returns a number of workers as an `int`, or raises ValueError.

    Args:
      name: of the communicator's maker.
      size: its first argument.
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


def check_losses(name: str, drop_probability: Any, drop_seed: Any) -> tuple[float, int]:
    """Returns both as Python numbers, or raises ValueError, which names the argument.

    Args:
      name: of the communicator's maker.
      drop_probability: one number in [0, 1).
      drop_seed: an integer that `jax.random.fold_in` takes.
    """
    if not (_is_real(drop_probability) and 0 <= drop_probability < 1):
        raise ValueError(
            f"{name}: drop_probability must be one number in [0, 1), known before "
            f"programs are compiled, got {describe(drop_probability)}; 0.0 loses no "
            "message."
        )
    seed = check_integer(drop_seed, f"{name}: drop_seed", minimum=0)
    if seed >= 2**32:
        raise ValueError(f"{name}: drop_seed must be below 2**32, got {seed}.")
    return float(drop_probability), seed


def _is_real(value: Any) -> bool:
    """Whether it is one real number whose value is known."""
    if isinstance(value, (bool, jax.core.Tracer)):
        return False
    if isinstance(value, (int, float)):
        return True
    if not isinstance(value, (np.number, np.ndarray, jax.Array)) or np.ndim(value):
        return False
    return any(jnp.issubdtype(value.dtype, x) for x in (jnp.floating, jnp.integer))


def check_function(fn: Any) -> None:
    """Raises TypeError unless `spmd` was given a function."""
    if not callable(fn):
        raise TypeError(
            f"spmd needs the function that one worker runs, got {describe(fn)}: pass "
            "the function itself, as in communicator.spmd(step)(params)."
        )


def arrived(
    rank: Callable[[], jax.Array | int],
    drop_probability: float,
    drop_seed: int,
    source: Sequence[int],
    key: jax.Array,
) -> jax.Array | bool:
    """Draws whether this worker's message of a round came through.

    Every directed message is lost independently; what a worker passes to itself never
    is. The draw depends on the key, the seed, the round and the receiver alone, so that
    all communicators lose the same messages.
    """
    if drop_probability == 0:
        return True
    key = threefry(key)
    receiver, senders = rank(), np.asarray(source, np.int32)
    for salt in (drop_seed, zlib.crc32(senders.tobytes()), receiver):
        key = jax.random.fold_in(key, salt)
    kept = jax.random.bernoulli(key, 1 - drop_probability)
    return kept | (jnp.asarray(senders)[receiver] == receiver)


def check_leading_axis(
    function: str, args: PyTree, count: int, kwargs: Mapping[str, PyTree] | None = None
) -> None:
    """Raises unless every leaf is an array with a leading axis of `count` workers.

    Args:
      function: what was called, for the error.
      args: its arguments, a tuple.
      count: number of workers.
      kwargs: its keyword arguments.

    Raises:
      TypeError: if a leaf is no array.
      ValueError: if an array has another leading axis.
    """
    named = {**dict(enumerate(args)), **(kwargs or {})}
    for argument, tree in named.items():
        for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
            name = f"argument {argument}{jax.tree_util.keystr(path)}"
            if not is_array(leaf):
                raise TypeError(
                    f"{function}: {name} is {leaf!r}, but the program of all workers "
                    "takes arrays with a leading axis of workers: bind by "
                    "functools.partial what is no array."
                )
            _check_rows(function, name, np.shape(leaf), count)


def _check_rows(function: str, name: str, shape: tuple[int, ...], count: int) -> None:
    """Raises ValueError unless there is one row a worker."""
    if shape[:1] != (count,):
        raise ValueError(
            f"{function}: {name} has shape {shape}, but needs a leading axis of the "
            f"{count} workers of this program: of data pass the rows of "
            "communicator.local_ranks; make optimizer states by "
            "communicator.spmd(optimizer.init)(params); "
            "djax.communicators.replicate gives all workers the same."
        )


def check_communicator(function: str, communicator: Any) -> None:
    """Raises TypeError if something else was passed where a communicator belongs."""
    if not all(hasattr(communicator, name) for name in ("spmd", "local_ranks")):
        raise TypeError(
            f"{function} needs a communicator, such as djax.communicators.simulated(8),"
            f" in this place, but got {shortened(communicator)}; check the order of "
            "the arguments."
        )


def check_one_each(function: str, values: Any, count: int) -> list[Any]:
    """Returns a list of the values, or raises unless there is one a local worker.

    Args:
      function: what was called, for the error.
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
