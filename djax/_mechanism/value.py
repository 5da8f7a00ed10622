"""A mechanism as a value that can be asked how it averages.

Corrections and training loops need to know facts about a mechanism: whether it averages
models that contain the updates of the present step, whether it tolerates the loss of a
message, over which graph it averages. A transformation of optax is a pair of functions
that answers no such question. A :class:`Mechanism` is a transformation of optax with
attributes that do.
"""

import functools
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import optax

from djax._arrays.precision import promote
from djax._calls import ByItsCall
from djax._context import setting
from djax._interfaces import Communicator, PyTree
from djax._tracing import tracing_mechanism
from djax.topologies import Graph

from .order import observing, report_call
from .refusals import Part

InitFn = Callable[[PyTree], PyTree]
MixFn = Callable[..., tuple[PyTree, PyTree]]
AdvanceFn = Callable[..., tuple[PyTree, PyTree]]

_PARTS: ContextVar[list[Part] | None] = ContextVar("djax_parts", default=None)
_WITHOUT_STATES: ContextVar[bool] = ContextVar("djax_without_states", default=False)


class Mechanism(ByItsCall, optax.GradientTransformationExtraArgs):
    """A transformation of optax that averages models, and has attributes that say how.

    All mechanisms of djax are of this class, and :func:`djax.mechanism` makes your own.
    A mechanism can be used wherever optax takes a transformation. The result of
    `optax.chain`, `optax.masked` and other wrappers of optax has no attributes any
    more; :func:`djax.only` masks parameters and keeps the attributes.

    Two mechanisms are equal if they were made by equal calls, so that a mechanism can
    be a static argument of `jax.jit`. A mechanism can be pickled if the arguments of
    its call can be pickled.

    Attributes:
      init: `params -> state`, as in optax.
      update: `(updates, state, params, **extra) -> (updates, state)`, as in optax.
      mix: `(model, state, **extra) -> (displacement, state)`. The displacement says how
        far the averaging moves the model, in float32 or wider.
      name: the name of the function that made the mechanism.
      communicator: how messages travel; None if that is not known.
      graph: the :class:`djax.Topology` or :class:`djax.Schedule` whose neighbours
        exchange messages; None if all workers do, or if the graph is not known.
      overlap: whether the messages of a step are independent of the step's updates.
      needs_every_message: whether the mechanism fails if a message is lost.
      parts: facts about each of the mechanisms that this one consists of.
      adds_displacement: whether a step is the sum of parameters and updates, and a
        displacement that only depends on this sum.
      advance: `(updates, state, params, **extra) -> (params, state)`, a faster way to
        the parameters after a step, if there is one: see
        :func:`djax.training.apply_gradients`.
    """

    mix: MixFn
    name: str
    communicator: Communicator | None
    graph: Graph | None
    parts: tuple[Part, ...]
    adds_displacement: bool
    advance: AdvanceFn | None

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
        adds_displacement: bool = False,
        advance: AdvanceFn | None = None,
    ):
        """See :class:`Mechanism`; by default `mix` is derived from `update`."""
        updates = any(part.facts.get("averages_updates") for part in parts)
        reporting = _reporting(name, update, place_matters=not updates)
        self = super().__new__(cls, _announcing(name, parts, init), reporting)
        self.mix = _named(name, _mix_of(update) if mix is None else mix)
        self.name, self.communicator, self.graph = name, communicator, graph
        self.parts = tuple(parts)
        self.adds_displacement, self.advance = adds_displacement, advance
        return self

    @property
    def overlap(self) -> bool:
        """Whether the messages of a step are independent of the step's updates."""
        return any(part.facts.get("overlap") for part in self.parts)

    @property
    def needs_every_message(self) -> bool:
        """Whether the mechanism fails if a message is lost."""
        return any(part.facts.get("needs_every_message") for part in self.parts)


def parts_of(transformation: optax.GradientTransformation) -> tuple[Part, ...]:
    """The parts of a mechanism, or one opaque part if it is not a mechanism."""
    if isinstance(transformation, Mechanism):
        return transformation.parts
    return (Part("a mechanism within a wrapper of optax", None, {"opaque": True}),)


def parts_within(
    transformation: optax.GradientTransformation,
    communicator: Communicator,
    params: PyTree,
) -> list[Part]:
    """Finds the mechanisms that a chain, or another wrapper of optax, contains.

    A wrapper of optax does not say what it contains. But its `init` calls the `init` of
    what it contains, and the `init` of each mechanism announces the mechanism's parts.

    Args:
      transformation: any optimizer.
      communicator: the communicator with which the optimizer is initialized.
      params: the parameters of all local workers, or their shapes.

    Returns:
      The parts of all mechanisms, in the order in which these are initialized.
    """
    with collecting() as parts:
        jax.eval_shape(communicator.spmd(transformation.init), params)
    return parts


def collecting() -> AbstractContextManager[list[Part]]:
    """Collects the parts of the mechanisms that are initialized within the context."""
    return setting(_PARTS, [])


def without_states() -> AbstractContextManager[bool]:
    """Lets the `init` of mechanisms return a number in place of a state.

    Whoever looks for arrays in the state of an optimizer, such as Adam's moments, then
    finds none in the states of the mechanisms that the optimizer contains.
    """
    return setting(_WITHOUT_STATES, True)


def _announcing(name: str, parts: Sequence[Part], init: InitFn) -> Any:
    @functools.wraps(init)
    def announced(params):
        if _WITHOUT_STATES.get():
            return 0
        if (found := _PARTS.get()) is not None:
            found.extend(parts)
        with tracing_mechanism(name):
            return init(params)

    return announced


def _reporting(name: str, update: Callable[..., Any], place_matters: bool) -> Any:
    """Reports the calls of an update, if its place in a chain matters."""

    @functools.wraps(update)
    def reporting(updates, state, /, params=None, **extra):
        # Hides the calls of mechanisms within this one.
        with observing() as within, tracing_mechanism(name):
            returned = update(updates, state, params, **extra)
        if place_matters:
            model = within.model_after(returned[0], params)
            report_call(updates, returned[0], params, model)
        return returned

    return reporting


def _named(name: str, mix: MixFn) -> MixFn:
    @functools.wraps(mix)
    def named(*args, **extra):
        with tracing_mechanism(name):
            return mix(*args, **extra)

    return named


def _mix_of(update: Callable[..., Any]) -> MixFn:
    """Derives `mix` from `update`: how far an update of zeros moves a model."""

    def mix(model, state, **extra):
        nothing = jax.tree.map(lambda x: jnp.zeros_like(promote(x)), model)
        return update(nothing, state, model, **extra)

    return mix
