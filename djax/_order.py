"""Whether a mechanism is the last link, as seen while an optimizer is traced.

An optimizer behind a mechanism takes the averaging for a gradient, and nobody is told.
What a mechanism returns are then not the updates that the whole chain returns. That
costs nothing to see: the arrays are other objects.
"""

import contextlib
import contextvars
import functools
import warnings
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend

from ._base import PyTree


class OrderWarning(UserWarning):
    """The links of an optimizer seem to be in a wrong order."""


class _Call(NamedTuple):
    """One call of a mechanism's update, which no other mechanism has made.

    Attributes:
      name: of the mechanism.
      trace: identifies the trace in which it was made: that of a branch is another one.
      given: the updates that went in.
      returned: those that came out.
    """

    name: str
    trace: Any
    given: PyTree
    returned: PyTree


_CALLS: contextvars.ContextVar[list[_Call] | None] = contextvars.ContextVar(
    "djax_calls", default=None
)


def watched(
    name: str, update: Callable[..., Any], *, moves_models: bool
) -> Callable[..., Any]:
    """Makes an update tell those who look what goes in and comes out of it.

    Args:
      name: of the mechanism.
      update: its own.
      moves_models: whether it averages models; what averages updates, or gradients, may
        be anywhere in a chain, and tells nothing.
    """

    @functools.wraps(update)
    def call(updates, state, params=None, **extra):
        with watching(None):  # What is inside of this one does not count.
            returned = update(updates, state, params, **extra)
        if moves_models and (calls := _CALLS.get()) is not None:
            calls.append(_Call(name, _trace(), updates, returned[0]))
        return returned

    return call


@contextlib.contextmanager
def watching(calls: list[_Call] | None) -> Iterator[None]:
    """Collects the calls of mechanisms that are made inside."""
    token = _CALLS.set(calls)
    try:
        yield
    finally:
        _CALLS.reset(token)


def updated(optimizer: Any, updates: PyTree, state: PyTree, params: PyTree) -> Any:
    """Returns what an optimizer's update returns.

    Warns:
      OrderWarning: if another link acts on what a mechanism has returned.
    """
    calls: list[_Call] = []
    with watching(calls):
        found = optimizer.update(updates, state, params)
    if calls and _differs(calls[-1], calls[-1].returned, found[0]):
        warnings.warn(
            f"make_steps: a link of the optimizer acts on what {calls[-1].name} has "
            "averaged. If it is an optimizer, it takes the averaging for a gradient, "
            "and the workers move apart: put the mechanism last, as in "
            "optax.chain(optax.sgd(0.1), djax.gossip(graph, communicator)). "
            "djax.check(optimizer, communicator, params) tells whether that is so.",
            OrderWarning,
            stacklevel=2,
        )
    return found


def warn_of_links_before(
    by: str, calls: list[_Call], updates: PyTree, example: str
) -> None:
    """Warns if another link than the mechanism has been wrapped, in front of it.

    Args:
      by: what wraps it.
      calls: of mechanisms inside.
      updates: what went in.
      example: how it is meant.
    """
    if calls and _differs(calls[0], calls[0].given, updates):
        warnings.warn(
            f"{by} contains a link that acts on the updates before {calls[0].name}, "
            "and that is left out in the other steps. Give it the mechanism alone, "
            f"without its optimizer, as in {example}.",
            OrderWarning,
            stacklevel=2,
        )


def _differs(call: _Call, some: PyTree, all_: PyTree) -> bool:
    """Whether arrays of a call are others, as far as they can be compared."""
    if call.trace != _trace():
        return False
    known = {id(leaf) for leaf in jax.tree.leaves(all_)}
    return any(id(leaf) not in known for leaf in jax.tree.leaves(some))


def _trace() -> Any:
    return jax.extend.core.get_opaque_trace_state()
