"""A mechanism as a value: how workers average, and what others may ask about it.

Corrections, communicators and loops need facts about a mechanism: whether it averages
models that contain this step's updates, whether it can do without a message, over which
graph it averages. `optax`'s transformations are opaque pairs of functions, which cannot
be asked. A :class:`Mechanism` is such a pair that can.
"""

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._arrays.precision import promote
from djax._calls import ByItsCall
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax.topologies import Graph

from .order import observed
from .refusals import Part

InitFn = Callable[[PyTree], PyTree]
MixFn = Callable[..., tuple[PyTree, PyTree]]

_PARTS: contextvars.ContextVar[list[Part] | None] = contextvars.ContextVar(
    "djax_parts", default=None
)


class Mechanism(ByItsCall, optax.GradientTransformationExtraArgs):
    """A transformation of optax that averages, and can be asked how.

    It goes wherever a transformation of optax goes. Mechanisms that were made by equal
    calls are equal, so that they can be static arguments of `jax.jit`. They can be
    pickled if the arguments of the call can.

    Made by :func:`djax.mechanism` and by all mechanisms of djax. What wraps it in optax
    (`optax.chain`, `optax.masked`, ...) is an opaque pair again;
    :func:`djax.only` is a mask that keeps the attributes.

    Attributes:
      init: `params -> state`, as in optax.
      update: `(updates, state, params, **extra) -> (updates, state)`, as in optax.
      mix: `(model, state, **extra) -> (displacement, state)`: how far the averaging
        moves a model, in float32 or wider.
      name: of its maker.
      communicator: how messages travel; None if it is not known.
      graph: a :class:`djax.Topology` or :class:`djax.Schedule`, between whom; None if
        between all, or not known.
      overlap: whether the messages of a step do not depend on its updates.
      needs_every_message: whether no message may be lost.
      parts: the mechanisms that it consists of.
    """

    mix: MixFn
    name: str
    communicator: Communicator | None
    graph: Graph | None
    parts: tuple[Part, ...]

    def __new__(
        cls,
        init: InitFn,
        update: Callable[..., Any],
        mix: MixFn | None = None,
        *,
        name: str = "mechanism",
        communicator: Communicator | None = None,
        graph: Graph | None = None,
        parts: Sequence[Part] = (),
    ):
        """See :class:`Mechanism`; without `mix` it is made of `update`."""
        updates = any(part.facts.get("averages_updates") for part in parts)
        seen = observed(update, averages_models=not updates)
        self = super().__new__(cls, _announcing(parts, init), seen)
        self.mix = _mix_of(update) if mix is None else mix
        self.name, self.communicator, self.graph = name, communicator, graph
        self.parts = tuple(parts)
        return self

    @property
    def overlap(self) -> bool:
        """Whether the messages of a step do not depend on its updates."""
        return any(part.facts.get("overlap") for part in self.parts)

    @property
    def needs_every_message(self) -> bool:
        """Whether no message may be lost."""
        return any(part.facts.get("needs_every_message") for part in self.parts)


def parts_of(transformation: optax.GradientTransformation) -> tuple[Part, ...]:
    """What a mechanism consists of; one opaque part for anything else."""
    if isinstance(transformation, Mechanism):
        return transformation.parts
    return (Part("a mechanism within a wrapper of optax", None, {"opaque": True}),)


def parts_within(
    transformation: optax.GradientTransformation,
    communicator: Communicator,
    params: PyTree,
) -> list[Part]:
    """Finds the mechanisms that a chain, or another wrapper of optax, contains.

    A wrapper of optax cannot be asked what it contains, but it initializes that. Each
    mechanism reports itself while it is initialized.

    Args:
      transformation: any optimizer.
      communicator: where it is initialized.
      params: of all local workers, or their shapes.
    """
    with collecting() as parts:
        jax.eval_shape(communicator.spmd(transformation.init), params)
    return parts


@contextlib.contextmanager
def collecting() -> Iterator[list[Part]]:
    """Collects what mechanisms that are initialized inside consist of."""
    found: list[Part] = []
    token = _PARTS.set(found)
    try:
        yield found
    finally:
        _PARTS.reset(token)


def _announcing(parts: Sequence[Part], init: InitFn) -> Any:
    @functools.wraps(init)
    def announced(params):
        if (found := _PARTS.get()) is not None:
            found.extend(parts)
        return init(params)

    return announced


def _mix_of(update: Callable[..., Any]) -> MixFn:
    """How far an update without gradients moves a model."""

    def mix(model, state, **extra):
        nothing = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), model)
        return update(nothing, state, model, **extra)

    return mix
