"""What the communicators share."""

import zlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays import is_array, shortened
from djax._base import PyTree, threefry


def check_losses(drop_probability: float, drop_seed: int) -> None:
    """Raises ValueError unless some messages can come through."""
    if not 0 <= drop_probability < 1:
        raise ValueError(f"drop_probability must be in [0, 1), got {drop_probability}.")
    if not 0 <= drop_seed < 2**32:
        raise ValueError(f"drop_seed must be in [0, 2**32), got {drop_seed}.")


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
    """Raises ValueError unless `source` names every worker once."""
    if sorted(source) != list(range(size)):
        raise ValueError(
            f"permute: source must be a permutation of range({size}), got "
            f"{tuple(source)}; a worker that stays silent is its own source."
        )
