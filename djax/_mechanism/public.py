"""Makes mechanisms out of two functions of a user, or for some of the parameters."""

from typing import Any

import jax
import numpy as np
import optax

from djax._arguments import check_communicator, check_flags, check_reliable, check_sizes
from djax._arrays.checks import is_function
from djax._calls import by_its_call
from djax._interfaces import Communicator, PyTree
from djax._transformations import as_transformation
from djax.topologies import Graph
from djax.topologies.checks import check_graph_kind

from .adapter import build, wrap
from .agreement import around
from .value import InitFn, Mechanism, MixFn


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
    r"""Makes a mechanism of your own out of two functions, `init` and `mix`.

    Both functions say what ONE worker does. If :math:`u` are the updates that come from
    the links before the mechanism in a chain, a step is

    .. math::
       y &= x + u \qquad\text{(with overlap: } y = x\text{)} \\
       x &\leftarrow x + u + \text{mix}(y)

    Args:
      init: `params -> state`; the state is a tree of arrays.
      mix: `(model, state, **extra) -> (displacement, state)`. The displacement says how
        far the averaging moves the model :math:`y`, as a tree like the model in float32
        or wider. Messages to the neighbours are sent by :mod:`djax.mixing`. Of the
        extra arguments of `update`, the function is given those that it names, or all
        of them if it takes `**extra`.
      communicator: how messages travel.
      graph: the graph whose neighbours exchange messages; None if all workers do.
      overlap: average the parameters without the updates of this step, so that the
        messages need not wait for the gradients.
      needs_every_message: whether the mechanism fails if a message is lost.
      name: the name of the mechanism in errors; by default the name of `mix`.

    Returns:
      A :class:`djax.Mechanism`. Updates and displacement are added in float32 or wider;
      the sum has the dtypes of the updates.

    Raises:
      TypeError: if `init` or `mix` is not a function, or if `communicator` or `graph`
        is something else.
      ValueError: if graph and communicator differ in size, or if the communicator loses
        messages although the mechanism needs all of them.

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
        "moves_mean": True,  # A user's mechanism does not promise to keep the mean.
    }
    made = build(
        name,
        init,
        communicator,
        graph,
        mix=mix,
        overlap=overlap,
        facts=facts,
        per_rank=("init", "mix"),
    )
    if needs_every_message:
        check_reliable(made.name, communicator)
    return made


@by_its_call
def only(mask: Any, mechanism: optax.GradientTransformation) -> Mechanism:
    """Averages some leaves of the parameters only, and leaves the other leaves alone.

    This does what `optax.masked(mechanism, mask)` does, but the result is a
    :class:`djax.Mechanism` with the attributes of the given one, so that corrections
    such as :func:`djax.d2` accept it.

    Args:
      mask: a tree of booleans like the parameters, a prefix of such a tree, or a
        function from the parameters to such a tree. Leaves with True are averaged.
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
        _check_mask(mask(params) if is_function(mask) else mask, params)
        with around("only(mask, {})"):
            return masked.init(params)

    return wrap("only", mechanism, init, masked.update)


def _check_mask(mask: Any, params: PyTree) -> None:
    """Raises ValueError unless a mask has a boolean for each leaf of the parameters."""
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
