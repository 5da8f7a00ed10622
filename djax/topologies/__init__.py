"""Who talks to whom, with which weight, and in which order: mathematics only.

A :class:`Topology` is an undirected graph of workers with a symmetric doubly stochastic
mixing matrix; an edge colouring of the graph is the rounds in which the exchanges take
place. A :class:`Schedule` is directed or changes in time: a period of column-stochastic
matrices. Both are immutable values in NumPy and networkx, and both tell the matrix, the
rounds and the weights of any step, so that many mechanisms take either: a `Graph`.
Nothing here knows of JAX, or of how messages travel.

* with cycles: :func:`ring`, :func:`complete`, :func:`torus`, :func:`hypercube`,
  :func:`exponential`, :func:`social_network`;
* trees: :func:`chain`, :func:`star`, :func:`binary_tree`, :func:`double_binary_trees`
  (a pair), :func:`regular_tree`, :func:`spanning_tree` of another topology;
* random shifts of a ring: :func:`equi_static`, a topology or a directed schedule;
* your own: :func:`from_networkx`.

Schedules

* average exactly after a period: :func:`base_graph`, :func:`simple_base_graph`,
  :func:`hyper_hypercube`, :func:`one_peer_hypercube`;
* one message a step to each worker: :func:`one_peer_exponential`;
* drawn at random: :func:`equi_dyn`, :func:`random_matchings`, and :func:`matcha`, of
  the edges of a topology;
* your own: :func:`from_matrices`.

Builders take the number of workers first, and most of those of a topology the keyword
`weights`: see :func:`from_networkx`. `BUILDERS` names those that make one topology of a
number of workers, and `SCHEDULES` those that make one schedule of it.
"""

from ._base_graphs import base_graph, hyper_hypercube, simple_base_graph
from ._build import from_networkx
from ._equi import equi_dyn, equi_static
from ._graphs import complete, exponential, hypercube, ring, social_network, torus
from ._matcha import matcha
from ._names import BUILDERS, SCHEDULES
from ._one_peer import one_peer_exponential, one_peer_hypercube
from ._random import random_matchings
from ._schedule import Schedule, from_matrices
from ._topology import Topology
from ._trees import (
    binary_tree,
    chain,
    double_binary_trees,
    regular_tree,
    spanning_tree,
    star,
)

__all__ = [
    "BUILDERS",
    "SCHEDULES",
    "Graph",
    "Schedule",
    "Topology",
    "base_graph",
    "binary_tree",
    "chain",
    "complete",
    "double_binary_trees",
    "equi_dyn",
    "equi_static",
    "exponential",
    "from_matrices",
    "from_networkx",
    "hyper_hypercube",
    "hypercube",
    "matcha",
    "one_peer_exponential",
    "one_peer_hypercube",
    "random_matchings",
    "regular_tree",
    "ring",
    "simple_base_graph",
    "social_network",
    "spanning_tree",
    "star",
    "torus",
]
__dir__ = __all__.copy  # For dir() and completion.

# What mechanisms average over: both have `matrices`, `rounds_at`, `round_weights_at`,
# `period`, `symmetric`, `doubly_stochastic` and `spectral_gap`.
Graph = Topology | Schedule
