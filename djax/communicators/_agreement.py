"""Checks that workers hold equal values."""

import hashlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from djax._arguments import check_communicator
from djax._arrays.checks import named_leaves
from djax._arrays.keys import is_key
from djax._interfaces import Communicator, PyTree

from . import _common


def check_agreement(
    communicator: Communicator, name: str, values: Sequence[PyTree]
) -> None:
    """Makes sure that all workers hold the same values, bit for bit.

    Every process has to call this function. Processes exchange only hashes.

    Args:
      communicator: the communicator of the workers.
      name: a name for the values, for the error.
      values: a tree for each of the communicator's `local_ranks`. Its leaves are
        arrays, PRNG keys, or other Python objects whose `repr` shows their value.

    Raises:
      TypeError: if `values` is not a list, or `communicator` is not a communicator.
      ValueError: if values differ from those of rank 0. Every rank raises it, and the
        error names the leaves and the ranks. If the number of values is not the number
        of local workers, this rank alone raises it.

    Examples:
      >>> import djax
      >>> communicator = djax.communicators.simulated(3)
      >>> settings = [{"seed": 1}, {"seed": 1}, {"seed": 2}]
      >>> djax.communicators.check_agreement(communicator, "the settings", settings)
      Traceback (most recent call last):
      ...
      ValueError: the settings differ: ['seed'] of rank 2 is not rank 0's. Start ...
    """
    check_communicator("check_agreement", communicator)
    local = len(communicator.local_ranks)
    values = _common.check_one_each("check_agreement", values, local)
    digests = communicator.gather([_digests(value) for value in values])
    everyones = {path: [d.get(path) for d in digests] for path in set().union(*digests)}
    differing = [
        f"{path or 'the value'} of rank{'s' * (len(ranks) > 1)} "
        f"{', '.join(map(str, ranks))}"
        for path, each in sorted(everyones.items())
        if (ranks := [rank for rank, digest in enumerate(each) if digest != each[0]])
    ]
    if differing:
        more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
        raise ValueError(
            f"{name} differ: {'; '.join(differing[:3])}{more} is not rank 0's. Start "
            "every rank with the same command, code and seed, or broadcast rank 0's."
        )


def _digests(tree: PyTree) -> dict[str, str]:
    return {path: _digest(leaf) for path, leaf in named_leaves(tree)}


def _digest(leaf: Any) -> str:
    kind = b""
    if is_key(leaf):
        kind, leaf = str(leaf.dtype).encode(), jax.random.key_data(leaf)
    if isinstance(leaf, (np.ndarray, np.generic, jax.Array)):
        array = np.asarray(leaf)
        content = f"{array.dtype}{array.shape}".encode() + array.tobytes()
    else:
        content = repr(leaf).encode()
    return hashlib.sha256(kind + content).hexdigest()
