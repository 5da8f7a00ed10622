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

from ._base_graphs import base_graph as base_graph
from ._base_graphs import hyper_hypercube as hyper_hypercube
from ._base_graphs import simple_base_graph as simple_base_graph
from ._build import from_networkx as from_networkx
from ._equi import equi_dyn as equi_dyn
from ._equi import equi_static as equi_static
from ._graphs import complete as complete
from ._graphs import exponential as exponential
from ._graphs import hypercube as hypercube
from ._graphs import ring as ring
from ._graphs import social_network as social_network
from ._graphs import torus as torus
from ._matcha import matcha as matcha
from ._names import BUILDERS as BUILDERS
from ._names import SCHEDULES as SCHEDULES
from ._one_peer import one_peer_exponential as one_peer_exponential
from ._one_peer import one_peer_hypercube as one_peer_hypercube
from ._random import random_matchings as random_matchings
from ._schedule import Schedule as Schedule
from ._schedule import from_matrices as from_matrices
from ._topology import Topology as Topology
from ._trees import binary_tree as binary_tree
from ._trees import chain as chain
from ._trees import double_binary_trees as double_binary_trees
from ._trees import regular_tree as regular_tree
from ._trees import spanning_tree as spanning_tree
from ._trees import star as star

# What mechanisms average over: both have `matrices`, `rounds_at`, `round_weights_at`,
# `period`, `symmetric`, `doubly_stochastic` and `spectral_gap`.
Graph = Topology | Schedule
