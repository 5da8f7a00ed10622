"""What has to be the same on all workers before they start."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._base import Communicator, PyTree, check_arrays

from ._axis import MeshCommunicator


def replicate(communicator: Communicator, tree: PyTree) -> PyTree:
    """Gives every local worker the same arrays.

    Args:
      communicator: whose local workers these are.
      tree: one worker's arrays.

    Returns:
      The tree with a leading axis of local workers on every leaf, as
      :meth:`djax.Communicator.spmd` takes it; on a mesh, lying on its devices.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> communicator = djax.communicators.simulated(3)
      >>> djax.communicators.replicate(communicator, jnp.zeros(2)).shape
      (3, 2)
    """

    check_arrays("replicate", tree)

    def stack(tree, count):
        return jax.tree.map(
            lambda x: jnp.broadcast_to(jnp.asarray(x), (count, *np.shape(x))), tree
        )

    if isinstance(communicator, MeshCommunicator):  # All workers', on their devices.
        everywhere = jax.jit(
            stack, static_argnums=1, out_shardings=communicator.sharding
        )
        return everywhere(tree, communicator.size)
    return stack(tree, len(communicator.local_ranks))


def check_agreement(
    communicator: Communicator, name: str, values: Sequence[PyTree]
) -> None:
    """Makes sure that all workers hold the same, bit for bit.

    Only hashes travel. Every process must call it.

    Args:
      communicator: whose workers are compared.
      name: what the values are, for the error.
      values: one tree for each of the communicator's `local_ranks`; its leaves are
        arrays or any Python objects that have a faithful `repr`.

    Raises:
      ValueError: on every rank; names the leaves and the ranks that differ from rank
        0's.

    Examples:
      >>> import djax
      >>> communicator = djax.communicators.simulated(3)
      >>> settings = [{"seed": 1}, {"seed": 1}, {"seed": 2}]
      >>> djax.communicators.check_agreement(communicator, "the settings", settings)
      Traceback (most recent call last):
      ...
      ValueError: the settings differ: ['seed'] of rank 2 is not rank 0's. Start ...
    """
    digests = communicator.gather([_digests(value) for value in values])
    differing = [
        f"{path or 'the value'} of rank{'s' * (len(ranks) > 1)} "
        f"{', '.join(map(str, ranks))}"
        for path in sorted(set().union(*digests))
        if (ranks := _outliers([digest.get(path) for digest in digests]))
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{name} differ: {'; '.join(differing[:3])}{more} is not rank 0's. Start "
            "every rank with the same command, code and seed, or broadcast rank 0's."
        )


def _outliers(digests: Sequence[Any]) -> list[int]:
    return [rank for rank, digest in enumerate(digests) if digest != digests[0]]


def _digests(tree: PyTree) -> dict[str, str]:
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): _digest(leaf) for path, leaf in leaves}


def _digest(leaf: Any) -> str:
    if isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(leaf)
        content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    else:
        content = repr(leaf).encode()
    return hashlib.sha256(content).hexdigest()
