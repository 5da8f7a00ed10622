"""Checks of the arguments that users pass, with errors that name the remedy."""

from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import Communicator
from djax._values import describe, is_communicator
from djax.topologies import Schedule, Topology, contraction
from djax.topologies.checks import check_undirected


def check_communicator(name: str, communicator: Any) -> None:
    """Raises TypeError unless the value is a communicator."""
    if not is_communicator(communicator) or isinstance(communicator, type):
        raise TypeError(
            f"{name} needs a communicator such as djax.communicators.simulated(8), got "
            f"{describe(communicator)}; check the order of the arguments."
        )


def check_sizes(name: str, topology: Any, communicator: Communicator) -> None:
    """Raises ValueError if graph and communicator have different sizes."""
    check_communicator(name, communicator)
    if topology.size != communicator.size:
        raise ValueError(
            f"{name}: the graph {topology!r} has {topology.size} workers but the "
            f"communicator has {communicator.size}; build both for the same number."
        )


def check_topology(name: str, topology: Any, communicator: Communicator) -> None:
    """Raises unless the value is an undirected graph of the communicator's workers."""
    check_undirected(name, topology)
    check_sizes(name, topology, communicator)


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

    Of traced values, which `optax.inject_hyperparams` and `jax.jit` pass, only the
    shape and the dtype can be checked.

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
    """Raises ValueError unless it is a number from 0 to below 1, or a traced one."""
    check_rate(name, decay, zero=True)
    if not isinstance(decay, jax.core.Tracer) and float(decay) >= 1:
        raise ValueError(f"{name} must be below 1, got {decay}.")


def check_consensus_rate(name: str, rate: Any, graph: Topology | Schedule) -> None:
    r"""Raises ValueError if averaging at this rate never makes the models equal.

    On a fixed graph this is so if :math:`1 - \rho (1 - \lambda_{min}) \le -1`. Some
    differences between workers then change their sign in each step and do not shrink.
    Traced rates, which `optax.inject_hyperparams` passes, cannot be checked.

    Args:
      name: the names of the mechanism and the argument, for the error.
      rate: :math:`\rho`, a number, or an array of shape `()`.
      graph: the graph with its weights.
    """
    check_rate(name, rate)
    if isinstance(rate, jax.core.Tracer) or float(rate) <= 1 or graph.size == 1:
        return  # Weights for which a rate of 1 is too large are refused as weights.
    if isinstance(graph, Schedule):
        own = np.eye(graph.size)
        matrices = (1 - float(rate)) * own + float(rate) * graph.matrices
        if contraction(matrices) < 1:
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


def check_static(name: str, **values: Any) -> None:
    """Raises ValueError if a number that shapes the program is a JAX array.

    Args:
      name: the name of the mechanism, for the error.
      **values: the arguments that have to be known when programs are compiled.
    """
    for key, value in values.items():
        if isinstance(value, jax.Array):
            raise ValueError(
                f"{name}: {key} must be an integer that is known before programs are "
                f"compiled, got {value!r}; use optax.inject_hyperparams({name}, "
                f"static_args={tuple(values)!r})."
            )
