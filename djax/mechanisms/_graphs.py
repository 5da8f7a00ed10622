"""What mechanisms ask of the graphs over which they average."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.typing import ArrayLike

from djax._arguments import check_sizes
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax.mixing import check_weights
from djax.topologies import Graph
from djax.topologies.checks import check_graph_kind


def check_mixing(
    name: str, graph: Any, communicator: Communicator, **needs: bool
) -> None:
    """Raises unless a graph averages, between the communicator's workers.

    Args:
      name: of the mechanism, for errors.
      graph: what the user passed.
      communicator: likewise.
      **needs: see :func:`djax.topologies.checks.check_graph_kind`.
    """
    check_graph_kind(name, graph, doubly_stochastic=True, **needs)
    check_sizes(name, graph, communicator)
    check_weights(name, graph, communicator)


def mixing_matrices(
    graph: Graph, consensus_rate: float | jax.Array
) -> Callable[[], np.ndarray] | None:
    r"""Returns a function that makes :math:`(1 - \rho) I + \rho W_t` of each step.

    None for a traced rate, which `optax.inject_hyperparams` passes.
    """
    if isinstance(consensus_rate, jax.core.Tracer):
        return None
    rate = float(consensus_rate)
    return lambda: (1 - rate) * np.eye(graph.size) + rate * graph.matrices


def scaled(displacement: PyTree, rate: ArrayLike) -> PyTree:
    """The displacement times a rate, in its own dtypes."""
    return jax.tree.map(lambda d: jnp.asarray(rate, d.dtype) * d, displacement)
