"""Whether a state belongs to the mechanism that is given it.

Some mechanisms keep sums over their neighbours, or what each of them has sent. With
another graph these would be taken for those of other workers, mostly without an error.
So a state has a label of its graph.
"""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._interfaces import (
    Compressor,
    PyTree,
)
from djax.topologies import Graph


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GraphLabel:
    """A graph by its digest: a static node of a state, without arrays.

    Attributes:
      name: of the graph; graphs that differ by name alone are the same.
      size: number of workers.
      digest: of the rounds, and of the weights where these count.
    """

    name: str = dataclasses.field(compare=False)
    size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name} of {self.size} workers ({self.digest})"


def label_of(graph: Graph, *, weights: bool) -> GraphLabel:
    """The label of a graph.

    Args:
      graph: the graph, which may change with time.
      weights: whether the state depends on its mixing weights.
    """
    digest = hashlib.sha256()
    for t in range(graph.period):
        rounds = np.asarray(graph.rounds_at(t), np.int64)
        digest.update(f"{len(rounds)} rounds".encode() + rounds.tobytes())
    if weights:
        digest.update(graph.matrices.tobytes())
    return GraphLabel(graph.name, graph.size, digest.hexdigest()[:12])


def check_state(
    mechanism: str,
    state: Any,
    kind: type,
    params: PyTree,
    *models: str,
    label: GraphLabel | None = None,
    compressor: Compressor | None = None,
) -> None:
    """Raises unless a state belongs to a mechanism, its graph, code and parameters.

    Args:
      mechanism: its name, for errors.
      state: what it was given.
      kind: class of its states.
      params: its parameters.
      *models: names of the state's fields that are like the parameters.
      label: that of the mechanism's graph, if the state has one.
      compressor: the mechanism's code, if it has one.

    Raises:
      TypeError: if the state is that of another mechanism.
      ValueError: if it is that of another graph, another code or other parameters.
    """
    remedy = "make a new state by its init."
    if not isinstance(state, kind):
        raise TypeError(
            f"{mechanism} needs its own state, {kind.__name__}, got "
            f"{type(state).__name__}: {remedy}"
        )
    if label is not None and state.graph is not None and state.graph != label:
        raise ValueError(
            f"{mechanism}: the state belongs to the graph {state.graph}, but it now "
            f"averages over {label}: {remedy}"
        )
    for name in models:
        if _form(getattr(state, name)) != _form(params):
            raise ValueError(
                f"{mechanism}: the state's {name} is not like the parameters, so that "
                f"it belongs to others: {remedy}"
            )
    if compressor is not None:
        expected = jax.eval_shape(compressor.init, params)
        if _form(state.compressor_state) != _form(expected):
            raise ValueError(
                f"{mechanism}: the state belongs to another code: {remedy}"
            )


def _form(tree: PyTree) -> tuple[Any, list[tuple[int, ...]]]:
    """Structure and shapes of a tree."""
    leaves, treedef = jax.tree.flatten(tree)
    return treedef, [jnp.shape(x) for x in leaves]
