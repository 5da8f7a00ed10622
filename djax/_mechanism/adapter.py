"""The adapter that makes a transformation of optax out of a mechanism's `mix`.

A mechanism's own code says how far the averaging moves a model. Everything around that
is the same for all mechanisms and is done here: the checks of arguments; the comparison
between processes when a mechanism starts; the choice of the model that is averaged
(with or without the updates of the present step); the sum of updates and displacement;
and the steps of a graph in which no worker sends anything.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arrays.checks import check_params
from djax._arrays.precision import promote
from djax._counting import present_counter
from djax._interfaces import Communicator, PyTree
from djax.mixing import alternate
from djax.topologies import Graph

from .agreement import check_same
from .levels import check_level
from .order import report_call
from .refusals import Part
from .value import AdvanceFn, InitFn, Mechanism, MixFn, parts_of


def build(
    name: str,
    init: InitFn,
    communicator: Communicator,
    graph: Graph | None = None,
    *,
    mix: MixFn | None = None,
    update: Callable[..., Any] | None = None,
    overlap: bool = False,
    adds_displacement: bool = False,
    facts: Mapping[str, bool | str | None] = {},
    matrices: Callable[[], np.ndarray] | None = None,
    conditions: Mapping[str, Any] = {},
    sends_to_neighbors: bool = True,
    skips_silent_steps: bool = False,
    per_rank: Sequence[str] = (),
) -> Mechanism:
    """Makes a mechanism. When it starts, all processes compare its arguments.

    Args:
      name: the name of the function that makes the mechanism.
      init: `params -> state`.
      communicator: how messages travel.
      graph: the graph whose neighbours exchange messages; None if all workers do.
      mix: `(model, state, **extra) -> (displacement, state)`. Like `update`, it is
        given those extra arguments that it names, or all if it takes `**extra`.
      update: `(updates, state, params, **extra) -> (updates, state)`, in place of
        `mix`, if the result is not the sum of the updates and a displacement.
      overlap: whether `mix` is given the parameters without the updates.
      adds_displacement: see :class:`Mechanism`. With `mix` it follows from `overlap`.
      facts: for names of :data:`djax._mechanism.refusals.REASONS`, whether they are
        true of the mechanism. The fact `overlap` need not be given here.
      matrices: returns the mixing matrices of the steps: see :class:`Part`.
      conditions: conditions of convergence that only a trial can test: see
        :class:`Part`.
      sends_to_neighbors: whether the mechanism exchanges messages that can be lost.
      skips_silent_steps: whether a step in which no worker sends anything changes
        nothing but the field `step` of the state, which counts the steps.
      per_rank: names of arguments of the function that makes the mechanism, which may
        differ between processes.
    """

    def start(params):
        check_params(name, params)
        check_level(name, communicator)
        given = made.arguments
        for own in ("communicator", *per_rank):
            given.pop(own, None)
        check_same(name, communicator, params, **given)
        return init(params)

    if mix is not None:
        mix = _given_what_it_names(mix)
        move = _displacing(name, mix, overlap)
    else:
        move = _given_what_it_names(update)
    sending = _sending_steps(graph) if skips_silent_steps else None

    def step(updates, state, /, params=None, **extra):
        params = check_params(name, params)
        # While costs are counted, silent steps need not be skipped: they have no rounds
        # and cost nothing. A second alternation with the period of the graph would even
        # be wrong, since the counter would take the two for independent of each other.
        if sending is None or present_counter() is not None:
            return move(updates, state, params, **extra)
        updates, moved = alternate(
            state.step,
            sending,
            (lambda *same: same, lambda u, s: move(u, s, params, **extra)),
            *(updates, state),
        )
        return updates, moved._replace(step=optax.safe_increment(state.step))

    part = Part(
        name,
        communicator if sends_to_neighbors else None,
        {"overlap": overlap} | dict(facts),
        matrices,
        conditions,
    )
    made = Mechanism(
        start,
        step,
        mix if sending is None else None,
        name=name,
        communicator=communicator,
        graph=graph,
        parts=[part],
        adds_displacement=adds_displacement or (mix is not None and not overlap),
    )
    return made


def wrap(
    name: str,
    inner: optax.GradientTransformation,
    init: InitFn,
    update: Callable[..., Any],
    facts: Mapping[str, bool | str | None] | None = None,
    parts: Sequence[Part] | None = None,
    advance: AdvanceFn | None = None,
) -> Mechanism:
    """Makes a mechanism that wraps another one.

    Args:
      name: the name of the function that makes the wrapper.
      inner: the mechanism that is wrapped.
      init: `params -> state`.
      update: `(updates, state, params, **extra) -> (updates, state)`.
      facts: the wrapper's own facts, besides those of the inner mechanism, if any.
      parts: the parts of the mechanism, if they are not those of the inner mechanism.
      advance: see :class:`Mechanism`.
    """
    own = () if facts is None else (Part(name, None, facts),)
    return Mechanism(
        init,
        update,
        name=name,
        communicator=getattr(inner, "communicator", None),
        graph=getattr(inner, "graph", None),
        parts=(*own, *(parts_of(inner) if parts is None else parts)),
        advance=advance,
    )


def _displacing(name: str, mix: Any, overlap: bool) -> Callable[..., Any]:
    """Makes an update of optax that adds the displacement of `mix` to the updates."""

    def update(updates, state, params, /, **extra):
        model = params if overlap else optax.apply_updates(params, updates)
        displacement, state = _mixed(name, mix, model, state, extra)
        return displaced(updates, params, model, displacement), state

    return update


def displaced(
    updates: PyTree, params: PyTree, model: PyTree, displacement: PyTree
) -> PyTree:
    """Adds a displacement to updates, and reports the parameters after the step.

    Args:
      updates: the updates.
      params: the parameters.
      model: the model that was averaged. The parameters after the step are reported if
        it is the parameters with the updates, and not the parameters themselves.
      displacement: how far the averaging moves the model, in float32 or wider.
    """
    moved = jax.tree.map(
        lambda u, d: (promote(u) + d).astype(u.dtype), updates, displacement
    )
    after = None
    if model is not params:
        after = jax.tree.map(_after, params, moved, model, displacement)
    report_call(updates, moved, params, after)
    return moved


def _after(x: Any, moved: Any, y: jax.Array, d: jax.Array) -> Any:
    """Returns a leaf of the parameters after a step, in its own dtype."""
    if jnp.finfo(y.dtype).bits < 32:
        # The model has been rounded, by which small updates may be lost.
        return optax.apply_updates(x, moved)
    return (y + d).astype(y.dtype)


def _given_what_it_names(function: Any) -> Callable[..., Any]:
    """Drops the extra arguments of an update that a function does not take."""
    parameters = inspect.signature(function).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return function
    names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}

    @functools.wraps(function)
    def named(*args, **extra):
        some = {key: value for key, value in extra.items() if key in names}
        return function(*args, **some)

    return named


def _sending_steps(graph: Graph | None) -> list[int] | None:
    """Says for each step of a period whether a worker sends a message (1) or none (0).

    Returns None if messages are sent in all steps.
    """
    if graph is None or graph.period == 1:
        return None
    sending = [int(bool(graph.rounds_at(t))) for t in range(graph.period)]
    return None if all(sending) else sending


def _mixed(
    name: str, mix: MixFn, model: PyTree, state: PyTree, extra: Mapping[str, Any]
) -> tuple[PyTree, PyTree]:
    """Calls `mix`; raises TypeError unless it returns a displacement and a state."""
    found = mix(model, state, **extra)
    if not (isinstance(found, tuple) and len(found) == 2):
        raise TypeError(
            f"{name}: mix must return two values, (displacement, state), got {found!r}."
        )
    displacement, _ = found
    shapes = [
        (jax.tree.structure(tree), [jnp.shape(x) for x in jax.tree.leaves(tree)])
        for tree in (displacement, model)
    ]
    if shapes[0] != shapes[1]:
        raise TypeError(
            f"{name}: mix must return a displacement like the model, with leaves of "
            f"shapes {shapes[1][1]}, got {jax.tree.structure(displacement)} with "
            f"{shapes[0][1]}."
        )
    return found
