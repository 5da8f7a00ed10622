"""Whether arrays are divided among the devices of a worker while a program is traced.

The compiler divides them, so that the arrays themselves do not show it. What numbers
the entries of an array one after another, or joins arrays to one vector, would make the
compiler gather whole arrays on each device.
"""

from contextlib import AbstractContextManager
from contextvars import ContextVar

from djax._context import setting

_DIVIDED: ContextVar[bool] = ContextVar("djax_divided", default=False)


def are_divided() -> bool:
    """Whether arrays may be divided among the devices of a worker."""
    return _DIVIDED.get()


def dividing(divided: bool) -> AbstractContextManager[bool]:
    """Says within a `with` statement whether arrays are divided."""
    return setting(_DIVIDED, divided)


def check_not_divided(name: str) -> None:
    """Raises ValueError if arrays are divided.

    Args:
      name: the name of the mechanism or code that needs whole arrays, or parts that are
        on one device.
    """
    if are_divided():
        raise ValueError(
            f"{name} needs whole parameters, but workers with several devices divide "
            "theirs among them: let it work on each part by djax.per_shard(mechanism, "
            "specs), with the PartitionSpecs of one worker's parameters."
        )
