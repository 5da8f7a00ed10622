"""What the communicators share."""

import zlib
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

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


def check_leading_axis(function: str, args: PyTree, count: int) -> None:
    """Raises ValueError unless every array has a leading axis of `count` workers.

    Args:
      function: what was called, for the error.
      args: its arguments, a tuple.
      count: number of workers.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(args):
        shape = np.shape(leaf)
        if shape[:1] != (count,):
            position, *rest = path
            name = f"{position.idx}{jax.tree_util.keystr(tuple(rest))}"
            raise ValueError(
                f"{function}: argument {name} has "
                f"shape {shape}, but needs a leading axis of the {count} workers of "
                "this program: of data pass the rows of communicator.local_ranks; make "
                "optimizer states by communicator.spmd(optimizer.init)(params); "
                "djax.communicators.replicate gives all workers the same."
            )


def check_permutation(source: Sequence[int], size: int) -> None:
    """Raises ValueError unless `source` names every worker once."""
    if sorted(source) != list(range(size)):
        raise ValueError(
            f"permute: source must be a permutation of range({size}), got "
            f"{tuple(source)}; a worker that stays silent is its own source."
        )
