"""Watches at which places of a chain mechanisms stand.

If an optimizer stands behind a mechanism, it treats the displacement of the averaging
as if it were a gradient, and training ends at a wrong point without an error. This can
be seen while a step is traced, at no cost: the updates that the mechanism returns are
then other arrays than the updates that the whole chain returns. That is only a reason
for suspicion, since some wrappers of optax rightly change what a chain returns.
:func:`djax.check` finds out whether the suspicion is right.

If a mechanism stands at the end, where it belongs, the chain returns the mechanism's
own updates. The mechanism averaged models, and made updates of the result only because
a transformation of optax returns updates. A training loop that would add them to the
parameters takes the averaged model instead, and so reads the parameters and the updates
once less.
"""

from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any, NamedTuple

import jax

from djax._context import setting
from djax._interfaces import PyTree


class _Call(NamedTuple):
    """One call of the update of an outermost mechanism.

    Attributes:
      trace: the trace in which the call was made; a branch is traced separately.
      given: the updates that the mechanism was given.
      returned: the updates that it returned.
      params: the parameters that it was given.
      model: the parameters after the step, if the mechanism has computed them.
    """

    trace: Any
    given: PyTree
    returned: PyTree
    params: PyTree
    model: PyTree | None


class Observer:
    """Collects the calls of mechanisms, and suspects those at a wrong place.

    Attributes:
      suspicious: whether a mechanism seems to be misplaced.
      calls: the calls of mechanisms, in their order.
    """

    def __init__(self, outer: "Observer | None" = None):
        """Starts without any calls.

        Args:
          outer: another observer that is told of suspicions as well.
        """
        self.suspicious, self._outer = False, outer
        self.calls: list[_Call] = []

    def compare_given(self, updates: PyTree) -> None:
        """Suspects that a link in front of the first mechanism changed `updates`."""
        if self.calls and _differs(self.calls[0], self.calls[0].given, updates):
            self._suspect()

    def compare_returned(self, updates: PyTree) -> None:
        """Suspects that a link behind the last mechanism returned these `updates`."""
        if self.calls and _differs(self.calls[-1], self.calls[-1].returned, updates):
            self._suspect()

    def model_after(self, updates: PyTree, params: PyTree) -> PyTree | None:
        """Returns the parameters after a step, if the last mechanism has computed them.

        Args:
          updates: the updates that the chain returned.
          params: the parameters before the step.

        Returns:
          None unless these are the updates that the mechanism returned, and the
          parameters that it was given.
        """
        if not self.calls:
            return None
        call = self.calls[-1]
        same = call.trace == _trace() and all(
            _identity(known) == _identity(present)
            for known, present in ((call.returned, updates), (call.params, params))
        )
        return call.model if same else None

    def _suspect(self) -> None:
        self.suspicious = True
        if self._outer is not None:
            self._outer._suspect()


_OBSERVER: ContextVar[Observer | None] = ContextVar("djax_observer", default=None)


def observing() -> AbstractContextManager[Observer]:
    """Observes the mechanisms whose updates are called within the context."""
    return setting(_OBSERVER, Observer(_OBSERVER.get()))


def report_call(
    given: PyTree, returned: PyTree, params: PyTree, model: PyTree | None
) -> None:
    """Tells the present observer, if there is one, of a call of a mechanism's update.

    Args:
      given: the updates that the mechanism was given.
      returned: the updates that it returned.
      params: the parameters that it was given.
      model: the parameters after the step, in their dtypes; None if the mechanism has
        not computed them.
    """
    if (observer := _OBSERVER.get()) is not None:
        observer.calls.append(_Call(_trace(), given, returned, params, model))


def _identity(tree: PyTree) -> tuple[list[int], Any]:
    """Tells trees apart unless they have the same arrays at the same places."""
    leaves, structure = jax.tree.flatten(tree)
    return list(map(id, leaves)), structure


def _differs(call: _Call, some: PyTree, all_: PyTree) -> bool:
    """Whether some arrays of a call are missing in a tree, if both are of one trace."""
    if call.trace != _trace():
        return False
    known = {id(leaf) for leaf in jax.tree.leaves(all_)}
    return any(id(leaf) not in known for leaf in jax.tree.leaves(some))


def _trace() -> Any:
    import jax.extend  # Here, so that `import djax` need not wait for it.

    return jax.extend.core.get_opaque_trace_state()
