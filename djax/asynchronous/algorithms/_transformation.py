"""The interface of asynchronous algorithms: a pure function for each kind of event."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arrays.checks import check_params
from djax._arrays.precision import promote
from djax._interfaces import PyTree
from djax._mechanism.refusals import refuse
from djax._mechanism.value import collecting
from djax._transformations import check_not_in_lockstep

from ._constants import Asked


class EventTransformation(NamedTuple):
    """An asynchronous algorithm: what ONE worker does at each kind of event.

    The attributes are pure functions, which can be compiled and composed. See
    :func:`djax.acid` for an example.

    Attributes:
      init: `params -> state`.
      mix: `(params, state, elapsed) -> (params, state)` lets the time since the
        worker's previous event pass.
      update: `(grads, state, params, *, elapsed=0, **extra_args) -> (updates, state)`
        lets the time `elapsed` pass, and then applies a gradient, which may have been
        computed from an earlier model. The updates are for `optax.apply_updates`.
      average: `(peer, state, params, *, sent=None) -> (updates, state)` averages with a
        neighbour that sent the model `peer` and received the model `sent`, by default
        `params`. Both models have to be mixed up to the time when they were sent. The
        updates are for `optax.apply_updates`.
      asked: the rates of averagings for which the algorithm was made; None if they are
        not known.
    """

    init: Callable[[PyTree], PyTree]
    mix: Callable[..., tuple[PyTree, PyTree]]
    update: Callable[..., tuple[PyTree, PyTree]]
    average: Callable[..., tuple[PyTree, PyTree]]
    asked: Asked | None = None


def other_rates(algorithm: EventTransformation, asked: Asked | None) -> str | None:
    """Returns an error's text if an algorithm was made for other rates, else None.

    Args:
      algorithm: made by :func:`djax.acid` or :func:`djax.adpsgd`.
      asked: the rates at which workers average, or None if they are not known.
    """
    if algorithm.asked is None or asked is None or algorithm.asked == asked:
        return None
    return (
        f"the constants of acid were made for {algorithm.asked}, and the workers "
        f"average on {asked}: give acid_constants the same topology and rate. With "
        "constants for more averagings than there are training may diverge; with "
        "constants for fewer consensus is slower than it could be."
    )


def difference(sent: PyTree, peer: PyTree) -> PyTree:
    """Returns `sent - peer` in at least float32.

    The two workers of a pair get the same numbers with opposite signs.

    Raises:
      ValueError: if the shapes differ.
    """
    for ours, theirs in zip(jax.tree.leaves(sent), jax.tree.leaves(peer), strict=True):
        if jnp.shape(ours) != jnp.shape(theirs):
            raise ValueError(
                f"average: the peer sent an array of shape {jnp.shape(theirs)}, and "
                f"received one of shape {jnp.shape(ours)}."
            )
    return jax.tree.map(lambda x, y: promote(x) - promote(y), sent, peer)


def displacement(sent_minus_peer: PyTree, alpha: Any, params: PyTree) -> PyTree:
    """Returns the displacement that an averaging adds to a model, in its dtypes."""
    return optax.tree.cast_like(optax.tree.scale(-alpha, sent_minus_peer), params)


def known_elapsed(name: str, elapsed: Any) -> Any:
    """Returns the elapsed time, which is 0 by default; refuses synchronous training.

    Synchronous training would call an asynchronous algorithm like an optimizer, that is
    without an elapsed time.

    Args:
      name: the algorithm, for the error.
      elapsed: the time, or None if the caller gives none.

    Raises:
      TypeError: if no time is given, and the caller is a synchronous step.
    """
    if elapsed is not None:
        return elapsed
    check_not_in_lockstep(name)
    return 0.0


def init_alone(name: str, base: Any, params: PyTree) -> optax.OptState:
    """Makes the optimizer's state; raises ValueError if the optimizer averages, too."""
    with collecting() as parts:
        state = base.init(params)
    refuse(name, parts, "mechanism")
    return state


def check_model(name: str, params: PyTree) -> PyTree:
    """Returns the parameters; raises an error unless all of them can be averaged."""
    remedy = "keep it in the model_state, which gradient_fn carries along unaveraged"
    return check_params(name, params, remedy)


def check_elapsed(elapsed: Any) -> None:
    """Raises ValueError unless `elapsed` is traced, or finite and at least 0."""
    if not isinstance(elapsed, jax.Array) and not 0 <= elapsed < float("inf"):
        raise ValueError(
            f"elapsed is the time since the worker's previous event; got {elapsed}."
        )


def check_base(name: str, base: Any) -> None:
    """Raises TypeError unless `base` is an optimizer."""
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(
            f"{name} needs an optimizer, such as optax.sgd(0.1), got {base!r}."
        )
