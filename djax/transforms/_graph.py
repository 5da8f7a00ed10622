"""How a state remembers to which graph it belongs.

Some mechanisms keep sums over their neighbours, or what each of them has sent. With
another graph these would be taken for those of other workers, mostly without an error.
"""

import dataclasses
import hashlib

import jax
import numpy as np

from djax.topologies import Topology


@jax.tree_util.register_static
@dataclasses.dataclass(frozen=True)
class GraphLabel:
    """A graph by its digest: a static node of a state, without arrays.

    Attributes:
      name: of the topology; graphs that differ by name alone are the same.
      size: number of workers.
      digest: of the rounds, and of the weights where these count.
    """

    name: str = dataclasses.field(compare=False)
    size: int
    digest: str

    def __str__(self) -> str:
        return f"{self.name} of {self.size} workers ({self.digest})"


def label_of(topology: Topology, *, weights: bool) -> GraphLabel:
    """The label of a graph.

    Args:
      topology: the graph.
      weights: whether the state depends on its mixing weights.
    """
    digest = hashlib.sha256(np.asarray(topology.rounds, np.int64).tobytes())
    if weights:
        digest.update(topology.mixing_matrix.tobytes())
    return GraphLabel(topology.name, topology.size, digest.hexdigest()[:12])


def check_label(mechanism: str, of_state: GraphLabel | None, own: GraphLabel) -> None:
    """Raises ValueError if a state belongs to another graph.

    Args:
      mechanism: its name, for the error.
      of_state: the state's label; None where it has none.
      own: that of the mechanism's graph.
    """
    if of_state is not None and of_state != own:
        raise ValueError(
            f"{mechanism}: the state belongs to the graph {of_state}, but it now "
            f"averages over {own}: make a new state for it by its init."
        )
