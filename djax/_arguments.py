"""Checks of the arguments that users pass, with errors that name the remedy."""

import functools
from collections.abc import Callable
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import Communicator
from djax._values import describe, is_communicator
from djax.topologies import Graph, Schedule, Topology, contraction
from djax.topologies.checks import check_graph_kind


def check_communicator(name: str, communicator: Any) -> None:
    """Raises TypeError unless the value is a communicator."""
    if not is_communicator(communicator) or isinstance(communicator, type):
        raise TypeError(
            f"{name} needs a communicator such as djax.communicators.simulated(8), got "
            f"{describe(communicator)}; check the order of the arguments."
        )


def of_the_run(name: str, communicator: Any) -> Communicator:
    """Returns the communicator of all workers, of which the given one may be a level.

    Args:
      name: the name of the function that was given the communicator, for the error.
      communicator: what the user passed.

    Raises:
      TypeError: if it is not a communicator.
    """
    check_communicator(name, communicator)
    is_level = getattr(communicator, "level", None) is not None
    return communicator.whole if is_level else communicator


def check_sizes(name: str, topology: Any, communicator: Communicator) -> None:
    """Raises ValueError if graph and communicator have different sizes."""
    check_communicator(name, communicator)
    if topology.size != communicator.size:
        raise ValueError(
            f"{name}: the graph {topology!r} has {topology.size} workers but the "
            f"communicator has {communicator.size}; build both for the same number."
        )


def check_mixing(
    name: str, graph: Any, communicator: Communicator, **needs: bool
) -> None:
    """Raises unless a graph averages between the communicator's workers.

    Args:
      name: the name of the mechanism, for errors.
      graph: the graph that the user passed.
      communicator: the communicator that the user passed.
      **needs: what else the mechanism needs; see
        :func:`djax.topologies.checks.check_graph_kind`.

    Raises:
      TypeError: if the graph is neither a Topology nor a Schedule, or the communicator
        is not a communicator.
      ValueError: if the graph is not of the kind that the mechanism needs, if the sizes
        differ, or if messages may be lost and some weights are negative.
    """
    check_graph_kind(name, graph, doubly_stochastic=True, **needs)
    check_sizes(name, graph, communicator)
    check_weights(name, graph, communicator)


def check_weights(name: str, graph: Graph, communicator: Communicator) -> None:
    """Raises ValueError if messages may be lost and some weights are negative.

    Args:
      name: the name of the mechanism, for the error.
      graph: the graph and its weights.
      communicator: how messages travel, and whether they may be lost.
    """
    if communicator.drop_probability and any(
        graph.weights_at(t).data.min(initial=0) < 0 for t in range(graph.period)
    ):
        raise ValueError(
            f"{name}: some weights of {graph!r} are negative. Where messages are lost, "
            "the weights of the others are divided by their sum, which takes weights "
            "that are not: use weights='metropolis', or a communicator without "
            "drop_probability."
        )


def check_reliable(name: str, communicator: Communicator) -> None:
    """Raises ValueError if the communicator loses messages."""
    if (probability := getattr(communicator, "drop_probability", 0.0)) > 0:
        raise ValueError(
            f"{name} needs every message, but the communicator loses "
            f"{probability:.3g} of them: make it without drop_probability, or use "
            "gossip, relay or push_sum."
        )


def check_flag(name: str, value: Any) -> bool:
    """Returns the value, or raises ValueError unless it is True or False."""
    if isinstance(value, (bool, np.bool_)):
        return bool(value)
    raise ValueError(f"{name} must be True or False, got {value!r}.")


def check_flags(name: str, **values: Any) -> None:
    """Raises ValueError unless all values are True or False.

    Args:
      name: the name of the mechanism, for the error.
      **values: arguments of the mechanism.
    """
    for key, value in values.items():
        check_flag(f"{name}: {key}", value)


def check_choice(name: str, value: Any, choices: Any) -> None:
    """Raises ValueError unless the value is one of the values of a `Literal`."""
    if value not in get_args(choices):
        known = ", ".join(map(repr, get_args(choices)))
        raise ValueError(f"{name} must be one of {known}; got {value!r}.")


def check_rate(name: str, rate: Any, *, zero: bool = False) -> None:
    """Raises ValueError unless a step size is one real number in the right range.

    Some values are traced, as `optax.inject_hyperparams` and `jax.jit` pass them. Only
    their shapes and dtypes can be checked.

    Args:
      name: the names of the mechanism and the argument, for the error.
      rate: a number, or an array of shape `()`.
      zero: whether the rate may be 0.
    """
    is_array = isinstance(rate, (jax.Array, np.ndarray, np.generic))
    number = jnp.result_type(rate) if is_array else np.dtype(type(rate))
    real = jnp.issubdtype(number, jnp.floating) or jnp.issubdtype(number, jnp.integer)
    if not (real and (is_array or isinstance(rate, (int, float)))):
        raise ValueError(
            f"{name} must be a number, got {rate!r}; a schedule goes through "
            "optax.inject_hyperparams."
        )
    if np.shape(rate) != ():
        raise ValueError(
            f"{name} must be one number for all parameters, got an array of shape "
            f"{np.shape(rate)}; give groups of parameters rates of their own by "
            "optax.masked."
        )
    if isinstance(rate, jax.core.Tracer):
        return
    if not (0 < float(rate) < float("inf") or (zero and float(rate) == 0)):
        least = "at least 0" if zero else "positive"
        raise ValueError(f"{name} must be {least} and finite, got {rate}.")


def check_decay(name: str, decay: Any) -> None:
    """Raises ValueError unless a decay is a number in [0, 1), or a traced number."""
    check_rate(name, decay, zero=True)
    if not isinstance(decay, jax.core.Tracer) and float(decay) >= 1:
        raise ValueError(f"{name} must be below 1, got {decay}.")


def check_consensus_rate(name: str, rate: Any, graph: Topology | Schedule) -> None:
    r"""Raises ValueError if averaging at this rate never makes the models equal.

    On a fixed graph the models never become equal if :math:`1 - \rho (1 -
    \lambda_{min}) \le -1`. Some differences between workers then change their sign in
    each step and do not shrink. Traced rates, which `optax.inject_hyperparams` passes,
    cannot be checked.

    Args:
      name: the names of the mechanism and the argument, for the error.
      rate: :math:`\rho`, a number, or an array of shape `()`.
      graph: the graph with its weights.
    """
    check_rate(name, rate)
    if isinstance(rate, jax.core.Tracer) or float(rate) <= 1 or graph.size == 1:
        return  # A graph for which even a rate of 1 is too large is refused elsewhere.
    if isinstance(graph, Schedule):
        if contraction(_matrices_at(graph, float(rate))) < 1:
            return
        limit = "at most 1"
    else:
        largest = 2 / (1 - graph.lambda_min)
        if float(rate) <= largest * (1 - 1e-6):
            return
        limit = f"below {largest:.4g}"
    raise ValueError(
        f"{name} must be {limit} on {graph!r}, got {rate}: the workers' models would "
        "never become equal."
    )


def mixing_matrices(
    graph: Graph, consensus_rate: float | jax.Array
) -> Callable[[], np.ndarray] | None:
    """Returns a function that makes the matrices by which models are averaged.

    Args:
      graph: the graph and its weights.
      consensus_rate: a number, or an array of shape `()`.

    Returns:
      A function of no arguments that returns `float64[period, n, n]`, one matrix for
      each step; None if the rate is traced, as `optax.inject_hyperparams` passes it.
    """
    if isinstance(consensus_rate, jax.core.Tracer):
        return None
    return functools.partial(_matrices_at, graph, float(consensus_rate))


def _matrices_at(graph: Graph, rate: float) -> np.ndarray:
    r"""Returns :math:`(1 - \rho) I + \rho W_t` of each step t of a period."""
    return (1 - rate) * np.eye(graph.size) + rate * graph.matrices


def check_static(name: str, **values: Any) -> None:
    """Raises ValueError if a number that shapes the program is a JAX array.

    Args:
      name: the name of the mechanism, for the error.
      **values: the arguments that have to be known when programs are compiled.
    """
    for key, value in values.items():
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name}: {key} must be a number that is known before programs are "
                f"compiled, got {value!r}; use optax.inject_hyperparams({name}, "
                f"static_args={tuple(values)!r})."
            )
