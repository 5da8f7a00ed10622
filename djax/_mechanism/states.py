"""Checks that a state belongs to the mechanism that it is passed to.

Some mechanisms keep in their state sums over their neighbours, or the last message of
each neighbour. With another graph, the neighbours would be other workers, and the sums
and messages would be wrong, usually without an error. For this reason, such a state has
a label of its graph.
"""

import dataclasses
import hashlib
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._interfaces import Compressor, PyTree
from djax.topologies import Graph


class InterleaveState(NamedTuple):
    """State of :func:`interleave`.

    Attributes:
      mechanism_states: the states of the mechanisms, in their order.
    """

    mechanism_states: tuple[optax.OptState, ...]


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class ShardAxes:
    """The axes along which the arrays of states are divided; a node without arrays.

    Attributes:
      names: for each state, the names of axes of the mesh.
    """

    names: tuple[tuple[str, ...], ...]


class PerShardState(NamedTuple):
    """State of :func:`per_shard`.

    Attributes:
      states: the mechanism's states for the parameters that are divided along the same
        axes of the mesh. Arrays have a leading axis of shards, unless there is no such
        axis.
      axes: a static label of these axes.
    """

    states: tuple[optax.OptState, ...]
    axes: ShardAxes


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GraphLabel:
    """A label that identifies a graph; a static node of a state, without arrays.

    Attributes:
      name: the name of the graph, which is not compared.
      size: number of workers.
      digest: a hash of the rounds and, if the state depends on them, of the weights.
    """

    name: str = dataclasses.field(compare=False)
    size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name} of {self.size} workers ({self.digest})"


def label_of(graph: Graph, *, weights: bool) -> GraphLabel:
    """Makes the label of a graph.

    Args:
      graph: the graph, which may change with time.
      weights: whether the state depends on the mixing weights.
    """
    digest = hashlib.sha256()
    for t in range(graph.period):
        rounds = np.asarray(graph.rounds_at(t), np.int64)
        digest.update(f"{len(rounds)} rounds".encode() + rounds.tobytes())
    if weights:
        for t in range(graph.period):
            matrix = graph.weights_at(t)
            places = np.concatenate([matrix.indptr, matrix.indices]).astype(np.int64)
            digest.update(places.tobytes() + matrix.data.tobytes())
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
      mechanism: the name of the mechanism, for errors.
      state: the state that was passed to the mechanism.
      kind: the class of the mechanism's states.
      params: the parameters that were passed to the mechanism.
      *models: names of those fields of the state that are like the parameters.
      label: the label of the mechanism's graph, if its states have one.
      compressor: the mechanism's code, if there is one.

    Raises:
      TypeError: if the state belongs to another mechanism.
      ValueError: if the state belongs to another graph, code or other parameters.
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
