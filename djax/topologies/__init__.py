"""Who exchanges messages with whom, with which weight, and in which order.

A :class:`Topology` is an undirected graph of workers with a symmetric doubly stochastic
mixing matrix; an edge colouring of the graph gives the rounds in which the exchanges
take place. A :class:`Schedule` is directed or changes with time: a period of
column-stochastic matrices. Both are immutable values that are built with NumPy and
networkx; this package knows neither JAX nor how messages travel. Both classes give the
matrix, the rounds and the weights of any step, so that many mechanisms take either of
them: their union is called `Graph`.

Topologies

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
* drawn at random: :func:`equi_dyn`, :func:`random_matchings`, and :func:`matcha`, which
  draws from the rounds of a topology;
* your own: :func:`from_matrices`.

Builders take the number of workers first, and most builders of topologies have the
keyword `weights`: see :func:`from_networkx`. `BUILDERS` are the names of the functions
that make one topology out of a number of workers. `SCHEDULES` are the names of those
that make one schedule.

Two functions help with graphs of your own: :func:`edge_coloring` splits exchanges into
rounds, and :func:`contraction` tells how fast matrices bring workers together. The
module `djax.topologies.checks` refuses graphs that a mechanism cannot use.
"""

from ._base_graphs import (
    base_graph,
    hyper_hypercube,
    one_peer_hypercube,
    simple_base_graph,
)
from ._from_networkx import from_networkx
from ._graphs import (
    complete,
    exponential,
    hypercube,
    one_peer_exponential,
    ring,
    social_network,
    torus,
)
from ._matcha import matcha
from ._random import equi_dyn, equi_static, random_matchings
from ._rounds import edge_coloring
from ._schedule import Schedule, from_matrices
from ._schedule_checks import contraction
from ._topology import Topology
from ._trees import (
    binary_tree,
    chain,
    double_binary_trees,
    regular_tree,
    spanning_tree,
    star,
)
from .checks import BUILDERS, SCHEDULES

# What mechanisms average over: both have `matrices`, `rounds_at`, `round_weights_at`,
# `period`, `symmetric`, `doubly_stochastic` and `spectral_gap`.
Graph = Topology | Schedule

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
    "contraction",
    "double_binary_trees",
    "edge_coloring",
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
