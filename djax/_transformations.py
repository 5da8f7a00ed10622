"""Checks that refuse asynchronous algorithms where all workers make the same steps."""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import optax

from djax._context import setting

_IN_LOCKSTEP: ContextVar[bool] = ContextVar("djax_in_lockstep", default=False)


def as_transformation(
    name: str, transformation: Any
) -> optax.GradientTransformationExtraArgs:
    """Returns an optimizer or mechanism as one that takes extra arguments.

    Args:
      name: the name of the function that was given the transformation, and of its
        argument if it has several, for the error.
      transformation: a transformation of optax, or an object with functions `init` and
        `update`.

    Raises:
      TypeError: if it is an asynchronous algorithm, or no optimizer at all.
    """
    if is_asynchronous(transformation):
        raise TypeError(asynchronous_text(name))
    if not all(callable(getattr(transformation, f, None)) for f in ("init", "update")):
        raise TypeError(
            f"{name}: expected an optimizer or a mechanism, such as optax.sgd(0.1) or "
            f"djax.gossip(topology, communicator), got {transformation!r}."
        )
    return optax.with_extra_args_support(transformation)


def is_asynchronous(transformation: Any) -> bool:
    """Whether an algorithm is asynchronous, as :func:`djax.acid` is."""
    return callable(getattr(transformation, "average", None))


def asynchronous_text(name: str) -> str:
    """The error's text for an asynchronous algorithm in synchronous steps."""
    return (
        f"{name}: djax.acid and djax.adpsgd are asynchronous. Their updates average "
        "nothing: workers meet at events. Run them by djax.asynchronous.simulate or "
        "djax.asynchronous.run; in synchronous steps use djax.gossip(topology, "
        "communicator)."
    )


def lockstep() -> AbstractContextManager[bool]:
    """Marks the trace of a program in which all workers make the same steps.

    In such a program, the update of an asynchronous algorithm is a mistake.
    """
    return setting(_IN_LOCKSTEP, True)


def check_not_in_lockstep(name: str) -> None:
    """Raises TypeError within :func:`lockstep`, at any depth of a chain of optax."""
    if _IN_LOCKSTEP.get():
        raise TypeError(asynchronous_text(name))
