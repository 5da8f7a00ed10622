"""Knows which mechanism, and which of its rounds, is being traced.

A communicator that names an exchange in a message cannot be given this by its callers,
which may be any algorithm.
"""

import contextlib
from collections.abc import Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar

from ._context import setting

_MECHANISM: ContextVar[str] = ContextVar("djax_mechanism", default="")
_ROUND: ContextVar[str] = ContextVar("djax_round", default="")
_traced: dict[str, None] = {}  # In the order in which they were last traced.


@contextlib.contextmanager
def tracing_mechanism(name: str) -> Iterator[None]:
    """Names the mechanism that is traced within the context; the innermost counts."""
    _traced.pop(name, None)
    _traced[name] = None
    with setting(_MECHANISM, name):
        yield


def tracing_round(index: int, count: int) -> AbstractContextManager[str]:
    """Says which round, from 0 on, and of how many, is traced within the context."""
    return setting(_ROUND, f"round {index + 1} of {count}")


def describe_exchange(verb: str) -> str:
    """Names an exchange, such as "round 1 of 2 of gossip (permute)".

    Args:
      verb: the method of the communicator.
    """
    of = " of ".join(filter(None, (_ROUND.get(), _MECHANISM.get())))
    return f"{of} ({verb})" if of else verb


def last_traced(count: int) -> list[str]:
    """The last mechanisms that this process has traced, at most `count` of them."""
    return list(_traced)[-count:]
