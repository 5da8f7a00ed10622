"""Whether a mechanism seems to be in a wrong place, as seen while steps are traced.

An optimizer behind a mechanism takes the averaging for a gradient, and nobody is told.
What the mechanism returns are then not the updates that the whole chain returns. That
costs nothing to see: the arrays are other objects. It is no proof, since some wrappers
of optax rightly change what a whole chain returns; :func:`djax.check` tells.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import jax
import jax.extend

from djax._interfaces import PyTree


class _Call(NamedTuple):
    """One call of the update of an outermost mechanism.

    Attributes:
      trace: identifies the trace in which it was made: that of a branch is another one.
      given: the updates that went in.
      returned: those that came out.
    """

    trace: Any
    given: PyTree
    returned: PyTree


class Observer:
    """Collects the calls of mechanisms, and whether one seems to be in a wrong place.

    Attributes:
      suspicious: whether it does.
      calls: of mechanisms, in their order.
    """

    def __init__(self, outer: "Observer | None" = None):
        """Starts with nothing.

        Args:
          outer: who is told of suspicions as well.
        """
        self.suspicious, self._outer = False, outer
        self.calls: list[_Call] = []

    def compare_given(self, updates: PyTree) -> None:
        """Suspects a link that acts before the first mechanism."""
        if self.calls and _differs(self.calls[0], self.calls[0].given, updates):
            self._suspect()

    def compare_returned(self, updates: PyTree) -> None:
        """Suspects a link that acts behind the last mechanism."""
        if self.calls and _differs(self.calls[-1], self.calls[-1].returned, updates):
            self._suspect()

    def _suspect(self) -> None:
        self.suspicious = True
        if self._outer is not None:
            self._outer._suspect()


_OBSERVER: contextvars.ContextVar[Observer | None] = contextvars.ContextVar(
    "djax_observer", default=None
)


@contextlib.contextmanager
def observing() -> Iterator[Observer]:
    """Observes the mechanisms whose updates are called inside."""
    observer = Observer(_OBSERVER.get())
    token = _OBSERVER.set(observer)
    try:
        yield observer
    finally:
        _OBSERVER.reset(token)


def observed(
    update: Callable[..., Any], *, averages_models: bool
) -> Callable[..., Any]:
    """Lets an update of a mechanism be observed.

    Args:
      update: its own.
      averages_models: what averages updates or gradients may be anywhere in a chain,
        and is not observed.
    """

    @functools.wraps(update)
    def call(updates, state, /, params=None, **extra):
        with observing():  # Mechanisms inside of this one are observed for themselves.
            returned = update(updates, state, params, **extra)
        if averages_models and (observer := _OBSERVER.get()) is not None:
            observer.calls.append(_Call(_trace(), updates, returned[0]))
        return returned

    return call


def _differs(call: _Call, some: PyTree, all_: PyTree) -> bool:
    """Whether arrays of a call are others, as far as they can be compared."""
    if call.trace != _trace():
        return False
    known = {id(leaf) for leaf in jax.tree.leaves(all_)}
    return any(id(leaf) not in known for leaf in jax.tree.leaves(some))


def _trace() -> Any:
    return jax.extend.core.get_opaque_trace_state()
