"""Tells functions that are called within a `with` statement in which context they are.

Such a function may be reached through a chain of optax, or through a trace of JAX, and
then cannot be given the context as an argument.
"""

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from typing import Any, TypeVar

Value = TypeVar("Value")


@contextlib.contextmanager
def setting(variable: ContextVar[Any], value: Value) -> Iterator[Value]:
    """Gives a variable a value within the context."""
    token = variable.set(value)
    try:
        yield value
    finally:
        variable.reset(token)
