"""The adapter: how a mechanism becomes a transformation of optax.

A mechanism says how far averaging moves a model. What goes before and after is the same
for all of them, and done here: checks, the comparison of processes at the start, the
model that is averaged (with this step's updates, or without them), the sum of updates
and displacement, and steps in which nobody sends anything.
"""

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax import accounting
from djax._arguments import (
    check_communicator,
    check_flags,
    check_reliable,
    check_sizes,
)
from djax._arrays.checks import check_params
from djax._arrays.precision import promote
from djax._calls import by_its_call
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax._transformations import as_transformation
from djax.mixing._alternate import alternate
from djax.topologies import Graph
from djax.topologies._kinds import check_graph_kind

from .agreement import (
    around,
    check_same,
)
from .refusals import Part
from .value import (
    InitFn,
    Mechanism,
    MixFn,
    parts_of,
)


@by_its_call
def mechanism(
    init: InitFn,
    mix: MixFn,
    communicator: Communicator,
    graph: Graph | None = None,
    *,
    overlap: bool = False,
    needs_every_message: bool = False,
    name: str | None = None,
) -> Mechanism:
    r"""Makes a mechanism of two functions, which say what ONE worker does.

    With the updates :math:`u` of the links before it in a chain,

    .. math::
       y &= x + u \qquad\text{(with overlap: } y = x\text{)} \\
       x &\leftarrow x + u + \text{mix}(y)

    Args:
      init: `params -> state`, which tree of arrays the mechanism starts from.
      mix: `(model, state, **extra) -> (displacement, state)`, how far the averaging
        moves the model :math:`y`: a tree like it, in float32 or wider.
        :mod:`djax.mixing` has what it needs to talk to the neighbours. Of the extra
        arguments of `update` it gets those that it names, or all by `**extra`.
      communicator: how messages travel.
      graph: between whom, if not between all.
      overlap: average the parameters before this step's updates, so that the messages
        need not wait for the gradients.
      needs_every_message: whether no message may be lost.
      name: what errors call it; by default the name of `mix`.

    Returns:
      A :class:`djax.Mechanism`. Updates keep their dtypes; sums are in float32 or
      wider.

    Raises:
      TypeError: if `init` or `mix` is no function, or `communicator` or `graph` none.
      ValueError: if the sizes differ, or messages get lost that may not be.

    Examples:
      >>> import djax, jax, jax.numpy as jnp
      >>> workers = djax.communicators.simulated(4)
      >>> matchings = djax.topologies.random_matchings(4, period=100)
      >>> def init(params):
      ...     return jnp.zeros((), jnp.int32)  # the number of steps so far
      >>> def mix(model, step):
      ...     move = djax.mixing.displacement(model, matchings, workers, step=step)
      ...     return move, step + 1
      >>> averaging = djax.mechanism(init, mix, workers, matchings)
      >>> def step(x, state):  # of ONE worker, without gradients
      ...     updates, state = averaging.update(0 * x, state, x)
      ...     return x + updates, state
      >>> x = jnp.arange(4.0)
      >>> state, step = workers.spmd(averaging.init)(x), jax.jit(workers.spmd(step))
      >>> for _ in range(50):
      ...     x, state = step(x, state)
      >>> print(jnp.abs(x - 1.5).max() < 1e-5)
      True
    """
    for what, function in {"init": init, "mix": mix}.items():
        if not callable(function):
            raise TypeError(
                f"mechanism: {what} must be a function of one worker's arrays, got "
                f"{function!r}."
            )
    check_communicator("mechanism", communicator)
    if graph is not None:
        check_graph_kind("mechanism", graph)
        check_sizes("mechanism", graph, communicator)
    check_flags("mechanism", overlap=overlap, needs_every_message=needs_every_message)
    if name is None:
        name = getattr(mix, "__name__", "mechanism").replace("<lambda>", "mechanism")
    facts = {
        "overlap": overlap,
        "needs_every_message": needs_every_message,
        "moves_mean": True,  # Unknown of a user's mechanism.
    }
    made = build(
        name,
        init,
        communicator,
        graph,
        mix=_given_what_it_names(mix),
        overlap=overlap,
        facts=facts,
        per_rank=("init", "mix"),
    )
    if needs_every_message:
        check_reliable(made.name, communicator)
    return made


@by_its_call
def only(mask: Any, mechanism: optax.GradientTransformation) -> Mechanism:
    """Lets a mechanism average some of the leaves, and leaves all others alone.

    Like `optax.masked(mechanism, mask)`, whose result is an opaque pair of functions
    that corrections such as :func:`djax.d2` cannot ask anything. This one is a
    :class:`djax.Mechanism` with the attributes of the given one.

    Args:
      mask: a tree like the parameters of booleans, or a prefix of such a tree, or a
        function that makes one of the parameters; True where a leaf is averaged.
      mechanism: any mechanism.

    Returns:
      A :class:`djax.Mechanism` with the state of `optax.masked`.

    Examples:
      >>> import djax
      >>> ring, workers = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> shared = {"body": True, "head": False}  # heads stay each worker's own
      >>> averaging = djax.only(shared, djax.gossip(ring, workers, consensus_rate=0.5))
      >>> exact_diffusion = djax.d2(averaging)
    """
    inner = as_transformation("only", mechanism)
    masked = optax.masked(inner, mask)

    def init(params):
        _check_mask(mask(params) if callable(mask) else mask, params)
        with around("only(mask, {})"):
            return masked.init(params)

    return wrap("only", mechanism, init, masked.update)


def _check_mask(mask: Any, params: PyTree) -> None:
    """Raises ValueError unless a mask says of all parameters whether it means them."""
    flags, error = jax.tree.leaves(mask), None
    try:
        jax.tree.map(lambda flag, part: None, mask, params)
    except ValueError as wrong:
        error = wrong
    if error or not all(isinstance(flag, (bool, np.bool_)) for flag in flags):
        raise ValueError(
            "only: the mask has to be a tree of booleans like the parameters, "
            f"{jax.tree.structure(params)}, or a prefix of it, but is {mask}."
        ) from error


def build(
    name: str,
    init: InitFn,
    communicator: Communicator,
    graph: Graph | None = None,
    *,
    mix: MixFn | None = None,
    update: Callable[..., Any] | None = None,
    overlap: bool = False,
    facts: Mapping[str, bool | str | None] = {},
    matrices: Callable[[], np.ndarray] | None = None,
    conditions: Mapping[str, Any] = {},
    sends_to_neighbors: bool = True,
    skips_silent_steps: bool = False,
    per_rank: Sequence[str] = (),
) -> Mechanism:
    """Makes a mechanism, whose arguments the processes compare when it starts.

    Args:
      name: of its maker.
      init: `params -> state`.
      communicator: how messages travel.
      graph: between whom, if not between all.
      mix: `(model, state, **extra) -> (displacement, state)`.
      update: in place of `mix`, for a mechanism whose result is not a displacement
        that is added to the updates: as in optax.
      overlap: whether `mix` gets the parameters without the updates.
      facts: names of :data:`djax._mechanism.refusals.REASONS`; `overlap` is one.
      matrices: see :class:`Part`.
      conditions: see :class:`Part`.
      sends_to_neighbors: whether it exchanges messages that can be lost.
      skips_silent_steps: whether nothing changes in a step in which nobody sends
        anything but the field `step` of its state, which counts them.
      per_rank: names of arguments of its maker that may differ between processes.
    """

    def start(params):
        check_params(name, params)
        given = made.arguments
        for own in ("communicator", *per_rank):
            given.pop(own, None)
        check_same(name, communicator, params, **given)
        return init(params)

    move = update or _displacing(name, mix, overlap)

    sending = _sending_steps(graph) if skips_silent_steps else None

    def step(updates, state, /, params=None, **extra):
        params = check_params(name, params)
        # A silent step has no rounds: costs are right without the alternation. With it
        # they would not be, since graph and alternation keep in step with each other.
        if sending is None or accounting.counter() is not None:
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
    )
    return made


def wrap(
    name: str,
    inner: optax.GradientTransformation,
    init: InitFn,
    update: Callable[..., Any],
    facts: Mapping[str, bool | str | None] | None = None,
    parts: Sequence[Part] | None = None,
) -> Mechanism:
    """Makes a mechanism of what wraps another one.

    Args:
      name: of its maker.
      inner: what it wraps.
      init: `params -> state`.
      update: `(updates, state, params, **extra) -> (updates, state)`.
      facts: its own, besides those of the other one; None if it has none.
      parts: of the other one, if they are changed by the wrapping.
    """
    own = () if facts is None else (Part(name, None, facts),)
    return Mechanism(
        init,
        update,
        name=name,
        communicator=getattr(inner, "communicator", None),
        graph=getattr(inner, "graph", None),
        parts=(*own, *(parts_of(inner) if parts is None else parts)),
    )


def _displacing(name: str, mix: Any, overlap: bool) -> Callable[..., Any]:
    """The adapter: an update of optax, made of how far the averaging moves a model."""

    def update(updates, state, params, /, **extra):
        model = params if overlap else optax.apply_updates(params, updates)
        displacement, state = _mixed(name, mix, model, state, extra)
        updates = jax.tree.map(
            lambda u, d: (promote(u) + d).astype(u.dtype), updates, displacement
        )
        return updates, state

    return update


def _sending_steps(graph: Graph | None) -> list[int] | None:
    """For each step of a period whether somebody sends something; None if all do."""
    if graph is None or graph.period == 1:
        return None
    sending = [int(bool(graph.rounds_at(t))) for t in range(graph.period)]
    return None if all(sending) else sending


def _given_what_it_names(mix: MixFn) -> MixFn:
    """Leaves out the extra arguments that a function does not take."""
    parameters = inspect.signature(mix).parameters.values()
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        return mix
    names = {p.name for p in parameters if p.kind is not p.POSITIONAL_ONLY}

    @functools.wraps(mix)
    def named(model, state, /, **extra):
        some = {key: value for key, value in extra.items() if key in names}
        return mix(model, state, **some)

    return named


def _mixed(
    name: str, mix: MixFn, model: PyTree, state: PyTree, extra: Mapping[str, Any]
) -> tuple[PyTree, PyTree]:
    """What `mix` returns, or TypeError if that is no displacement and state."""
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
