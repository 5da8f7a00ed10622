"""Arguments of schedules that cannot work are refused, with the remedy."""

import networkx as nx
import numpy as np
import pytest

from djax import communicators
from djax import topologies as t

ENDS = "do not bring the workers together; choose a longer period or another seed"


@pytest.mark.parametrize("name", t.SCHEDULES)
def test_sizes(name):
    build = getattr(t, name)
    for size in (0, -1, 2.0, "ring", True, None):
        with pytest.raises(ValueError, match=f"{name}: size must be an integer of at"):
            build(size)
    with pytest.raises(ValueError, match=rf"use {name}\(communicator.size\)"):
        build(communicators.simulated(4))


@pytest.mark.parametrize("builder", [t.base_graph, t.simple_base_graph])
@pytest.mark.parametrize("degree", [0, 1.5, True, "2", None])
def test_degrees(builder, degree):
    with pytest.raises(ValueError, match="max_degree must be an integer of at least 1"):
        builder(8, degree)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: t.hyper_hypercube(10, 3),
            r"hyper_hypercube: 10 workers .* at most max_degree \+ 1 = 4; "
            r"base_graph\(10, max_degree=3\)",
        ),
        (lambda: t.hyper_hypercube(3), r"base_graph\(3, max_degree=1\)"),
        (lambda: t.one_peer_hypercube(12), "power of two, got 12; .* 8 and 16"),
        (lambda: t.equi_static(8), r"give the degree, as in .*, or the accuracy"),
        (lambda: t.equi_static(8, degree=2, accuracy=0.5), "or the accuracy, not both"),
        (lambda: t.equi_static(8, degree=0), "equi_static: degree must be an integer"),
        (lambda: t.equi_static(8, degree=2, seed=-1), "equi_static: seed must be"),
        (lambda: t.equi_static(8, accuracy=0), r"accuracy must be in \(0, 1\], got 0"),
        (
            lambda: t.equi_static(8, accuracy=0.5, probability=2),
            r"probability must be in \(0, 1\], got 2",
        ),
        (
            lambda: t.equi_static(8, degree=1, seed=1),
            r"\[6\], do not connect all of the 8 workers; choose a larger degree or",
        ),
        (lambda: t.equi_dyn(8, eta=0), r"equi_dyn: eta must be in \(0, 1\], got 0"),
        (lambda: t.equi_dyn(8, eta="1"), r"equi_dyn: eta .* got '1'"),
        (lambda: t.equi_dyn(8, eta=np.nan), r"equi_dyn: eta .* got nan"),
        (lambda: t.equi_dyn(8, degree=1.0), "equi_dyn: degree must be an integer"),
        (lambda: t.equi_dyn(8, period=0), "equi_dyn: period must be an integer"),
        (lambda: t.equi_dyn(8, seed=None), "equi_dyn: seed must be an integer"),
        (
            lambda: t.equi_dyn(8, degree=1, seed=1),
            f"equi_dyn: the draws of period=64 {ENDS}",
        ),
        (lambda: t.random_matchings(8, period=0), "random_matchings: period must be"),
        (lambda: t.random_matchings(8, seed=0.5), "random_matchings: seed must be"),
        (
            lambda: t.random_matchings(8, 1),
            f"random_matchings: the draws of period=1 {ENDS}",
        ),
        (lambda: t.matcha(t.ring(4), 0), r"matcha: budget must be in \(0, 1\], got 0"),
        (lambda: t.matcha(t.ring(4), 1.2), r"matcha: budget .* got 1\.2"),
        (lambda: t.matcha(t.ring(4), 1, period=0), "matcha: period must be"),
        (lambda: t.matcha(t.ring(4), 1, seed=-1), "matcha: seed must be"),
        (
            lambda: t.matcha(t.ring(8), 0.1, period=3),
            f"matcha: the draws of period=3 {ENDS}",
        ),
    ],
)
def test_what_cannot_work_names_the_remedy(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    "given", [nx.cycle_graph(4), 8, "ring", t.one_peer_exponential(4), None]
)
def test_matcha_needs_a_topology(given):
    with pytest.raises(TypeError, match="matcha needs a Topology, got"):
        t.matcha(given, 0.5)
