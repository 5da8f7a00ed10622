"""The interface of asynchronous algorithms: a pure function for each kind of event."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from djax._arrays.checks import check_params
from djax._interfaces import PyTree
from djax._mechanism.refusals import refuse
from djax._mechanism.value import collecting
from djax._transformations import check_not_in_lockstep
from djax.mixing import difference

from ._constants import Asked

_REMEDY = "keep it in the model_state, which gradient_fn carries along unaveraged"


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


def event_transformation(
    name: str,
    base: optax.GradientTransformation,
    *,
    start: Callable[[PyTree, PyTree], Any],
    mix: Callable[[PyTree, Any, Any], tuple[PyTree, Any]],
    step: Callable[[PyTree, PyTree, PyTree, Any], tuple[PyTree, Any]],
    average: Callable[[PyTree, Any, PyTree], tuple[PyTree, Any]],
    asked: Asked | None = None,
) -> EventTransformation:
    """Makes an algorithm of its own equations, with the checks that all of them share.

    Args:
      name: the algorithm, for errors.
      base: the optimizer of a worker. Its state is the field `base_state` of the
        algorithm's state.
      start: `(params, base_state) -> state`.
      mix: as in :class:`EventTransformation`.
      step: `(params, mixed, updates, state) -> (updates, state)`, from the optimizer's
        updates of the model `mixed` to the updates of the model `params`.
      average: `(apart, state, params) -> (updates, state)`, where `apart` is the model
        that was sent minus the neighbour's, in at least float32.
      asked: as in :class:`EventTransformation`.
    """
    optimizer = optax.with_extra_args_support(base)

    def init_fn(params):
        check_params(name, params, _REMEDY)
        with collecting() as parts:
            base_state = optimizer.init(params)
        refuse(name, parts, "mechanism")
        return start(params, base_state)

    def mix_fn(params, state, elapsed):
        if not isinstance(elapsed, jax.Array) and not 0 <= elapsed < float("inf"):
            raise ValueError(
                f"elapsed is the time since the worker's previous event; got {elapsed}."
            )
        return mix(params, state, elapsed)

    def update_fn(grads, state, params=None, *, elapsed=None, **extra_args):
        if elapsed is None:
            # A synchronous step would call the algorithm like an optimizer.
            check_not_in_lockstep(name)
            elapsed = 0.0
        params = check_params(name, params, _REMEDY)
        mixed, state = mix_fn(params, state, elapsed)
        updates, base_state = optimizer.update(
            grads, state.base_state, mixed, **extra_args
        )
        return step(params, mixed, updates, state._replace(base_state=base_state))

    def average_fn(peer, state, params, *, sent=None):
        apart = _difference(params if sent is None else sent, peer)
        return average(apart, state, params)

    return EventTransformation(init_fn, mix_fn, update_fn, average_fn, asked)


def _difference(sent: PyTree, peer: PyTree) -> PyTree:
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
    return difference(sent, peer)


def displacement(sent_minus_peer: PyTree, alpha: Any, params: PyTree) -> PyTree:
    """Returns the displacement that an averaging adds to a model, in its dtypes."""
    return optax.tree.cast_like(optax.tree.scale(-alpha, sent_minus_peer), params)


def check_base(name: str, base: Any) -> None:
    """Raises TypeError unless `base` is an optimizer."""
    if not isinstance(base, optax.GradientTransformation):
        raise TypeError(
            f"{name} needs an optimizer, such as optax.sgd(0.1), got {base!r}."
        )
