"""Names of builders, for command lines and errors."""

# What a command line can offer: getattr(topologies, name)(size) is a Topology.
BUILDERS = (
    "ring",
    "chain",
    "star",
    "complete",
    "torus",
    "hypercube",
    "exponential",
    "binary_tree",
    "regular_tree",
    "social_network",
)

# Likewise, getattr(topologies, name)(size) is a Schedule.
SCHEDULES = (
    "one_peer_exponential",
    "one_peer_hypercube",
    "base_graph",
    "simple_base_graph",
    "hyper_hypercube",
    "equi_dyn",
    "random_matchings",
)
