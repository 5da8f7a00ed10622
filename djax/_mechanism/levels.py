"""Checks that mechanisms within :func:`djax.sharded` average between groups.

The members of a group then give their mechanisms different coordinates. A mechanism
over all workers, or within the group, would average one coordinate with another one,
without an error. The mechanism may be hidden in a chain of optax, so that it has to be
asked when it is initialized.
"""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import numpy as np

from djax._context import setting
from djax._interfaces import Communicator

_LOCAL: ContextVar[Any] = ContextVar("djax_local", default=None)


def sharing_out(local: Communicator) -> AbstractContextManager[Communicator]:
    """Marks the `init` of mechanisms that are given shares of the coordinates.

    Args:
      local: connects the workers whose shares together are a model.

    Raises:
      ValueError: if they are given shares of shares.
    """
    if _LOCAL.get() is not None:
        raise ValueError(
            "sharded: the mechanism is sharded already; use djax.sharded once."
        )
    return setting(_LOCAL, local)


def check_level(mechanism: str, communicator: Communicator) -> None:
    """Raises ValueError within :func:`sharing_out` unless workers have one share.

    Args:
      mechanism: the name of the mechanism that is initialized.
      communicator: how its messages travel.
    """
    if (local := _LOCAL.get()) is None:
        return
    level, other = getattr(communicator, "level", None), local.level
    if not (
        level is not None
        and level.whole == other.whole
        and np.array_equal(level.table, other.table.T)
    ):
        raise ValueError(
            f"sharded: workers of one group have different shares of the coordinates, "
            f"but {mechanism} averages over {communicator!r}. Give it `across`, the "
            "second communicator that the same call of djax.communicators.grouped "
            "returns."
        )


def check_whole(optimizer: str) -> None:
    """Raises ValueError within :func:`sharing_out`.

    Args:
      optimizer: the name of the optimizer that is initialized, which divides by the
        norm of a whole model.
    """
    if _LOCAL.get() is not None:
        raise ValueError(
            f"sharded: {optimizer} divides by the norm of the whole model, which no "
            f"share has. Put sharded inside, as in {optimizer}(..., "
            "sharded(mechanism, local))."
        )
