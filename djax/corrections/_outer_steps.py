"""The steps of one fragment of a model under an outer optimizer.

A step is a local step, an outer step, or, if there is a delay between sending a
fragment and its outer step, one that sends the fragment.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.typing import ArrayLike

from djax._arrays.precision import add, promote
from djax._counting import present_counter
from djax._interfaces import PyTree
from djax._mechanism.order import observing
from djax.mixing import alternate

from ._anchors import Anchors


class FragmentState(NamedTuple):
    r"""What :func:`outer` keeps for one fragment of the model.

    Attributes:
      anchor: :math:`\varphi_i`, a tree like the fragment: the model after the last
        outer step.
      optimizer_state: the state of the outer optimizer.
      mechanism_state: the state of the mechanism.
    """

    anchor: PyTree
    optimizer_state: optax.OptState
    mechanism_state: optax.OptState


@dataclasses.dataclass(frozen=True)
class OuterSteps:
    """The steps of one fragment; the attributes are arguments of :func:`outer`."""

    period: int
    delay: int
    blend: float | jax.Array
    optimizer: optax.GradientTransformationExtraArgs
    mechanism: optax.GradientTransformationExtraArgs
    anchors: Anchors

    def start(self, params: PyTree) -> FragmentState:
        """Returns the first state of a fragment."""
        anchor = self.anchors.store(jax.tree.map(jnp.copy, params), params, 0)
        optimizer_state = self.optimizer.init(self.anchors.load(anchor, params))
        return FragmentState(
            anchor, self.anchors.move_out(optimizer_state), self.mechanism.init(params)
        )

    def step(
        self,
        number: int,
        count: int,
        step: ArrayLike,
        params: PyTree,
        extra: dict[str, Any],
        *changing: PyTree,
    ) -> tuple[PyTree, FragmentState, list[jax.Array]]:
        """Makes one step of a fragment, which is a local step in most cases.

        Args:
          number: the number of the fragment.
          count: the number of all fragments.
          step: `int32[]`, the number of steps so far.
          params: the fragment before this step.
          extra: the extra arguments of the update.
          *changing: the updates of the fragment, its state, and the arrays that hold
            the fragment while it is averaged. They are also what is returned.
        """
        first = (number + 1) * self.period // count - 1
        schedule = [0] * self.period
        if not self.delay:
            schedule[first] = 1
            average = functools.partial(self._average, step, params, extra)
            return alternate(step, schedule, (_local, average), *changing)
        schedule[first] = 1
        schedule[(first + self.delay) % self.period] = 2
        _, state, _ = changing
        early = self._in_background(state, params, extra)
        send = functools.partial(self._send, early, params)
        apply = functools.partial(self._apply, early, step, params, extra)
        if first + self.delay >= self.period:
            apply = _if_sent(jnp.asarray(step) >= self.period, apply)
        return alternate(step, schedule, (_local, send, apply), *changing)

    def _average(self, step, params, extra, updates, state, sent):
        """An averaging step without delay."""
        model = optax.apply_updates(params, updates)
        exchange = functools.partial(self._exchange, extra)
        anchor, state = self._outer_step(exchange, step, model, state, extra)
        return self._towards(anchor, params, updates), state, sent

    def _send(self, early, params, updates, state, sent):
        """Sends the fragment as it is after this step."""
        del sent
        model = optax.apply_updates(params, updates)
        if early is not None:
            anchor = self.anchors.load(state.anchor, model)
            early.start(state.mechanism_state, model, anchor)
        return updates, state, jax.tree.leaves(model)

    def _apply(self, early, step, params, extra, updates, state, sent):
        """Makes the outer step for a fragment that was sent before."""
        model = jax.tree.unflatten(jax.tree.structure(params), sent)
        exchange = functools.partial(self._exchange, extra)
        if early is not None:
            exchange = early.finish
        anchor, state = self._outer_step(exchange, step, model, state, extra)
        return self._towards(anchor, params, updates), state, sent

    def _in_background(self, state, params, extra):
        """Returns the exchange if it can travel during the local steps, else None."""
        communicator = getattr(self.mechanism, "communicator", None)
        prepare = getattr(communicator, "in_background", None)
        if prepare is None or present_counter() is not None:
            return None
        exchange = functools.partial(self._exchange, extra)
        return prepare(exchange, state.mechanism_state, params, params)

    def _exchange(self, extra, mechanism_state, model, anchor):
        """Averages, and returns what the mechanism does."""
        # The mechanism is given the anchor as the parameters, and the difference of the
        # model and the anchor as updates. What it returns is the outer gradient with
        # another sign. If all workers have the same anchor and average exactly, they
        # have the same outer gradients to the last bit, and their anchors stay the
        # same.
        learnt = add(model, anchor, like=model, sign=-1)
        with observing():
            return self.mechanism.update(learnt, mechanism_state, anchor, **extra)

    def _outer_step(self, exchange, step, model, state, extra):
        """Averages, and returns the new anchor, in float32 or wider, and the state."""
        anchor = self.anchors.load(state.anchor, model)
        optimizer_state = self.anchors.move_in(state.optimizer_state)
        averaged, mechanism_state = exchange(state.mechanism_state, model, anchor)
        gradient = jax.tree.map(jnp.negative, averaged)
        change, optimizer_state = self.optimizer.update(
            gradient, optimizer_state, anchor, **extra
        )
        anchor = jax.tree.map(lambda a, c: promote(a) + promote(c), anchor, change)
        return anchor, FragmentState(
            self.anchors.store(anchor, model, step + 1),
            self.anchors.move_out(optimizer_state),
            mechanism_state,
        )

    def _towards(self, anchor, params, updates):
        """Returns updates that blend the model after this step with the anchor."""

        def of_leaf(a, x, u):
            x, u = promote(x), promote(u)
            if not isinstance(self.blend, jax.Array) and self.blend == 1:
                return a - x
            return u + jnp.asarray(self.blend, a.dtype) * (a - (x + u))

        moved = jax.tree.map(of_leaf, anchor, params, updates)
        return optax.tree.cast_like(moved, updates)


def _local(*changing: PyTree) -> tuple[PyTree, ...]:
    """A local step, which changes nothing but the model."""
    return changing


def _if_sent(sent: jax.Array, apply: Callable[..., Any]) -> Callable[..., Any]:
    """Makes an outer step that is left out if nothing was sent.

    The outer step that belongs to the end of a period is made at the start of the next
    one. At the start of the first period, nothing has been sent.
    """
    if present_counter() is not None:  # While costs are counted, periods are alike.
        return apply

    def guarded(*changing):
        return jax.lax.cond(sent, lambda *c: tuple(apply(*c)), _local, *changing)

    return guarded
