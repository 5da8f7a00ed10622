"""The race in decent-bench, with its own agents, costs and algorithm.

The function takes the arrays of `benchmarks.races.problems`, and returns a function
that runs the race and returns its result.
"""

import logging
from collections.abc import Callable

import networkx as nx
import numpy as np
from decent_array import interoperability as iop
from decent_array.types import Devices, Frameworks
from decent_bench import benchmark
from decent_bench.agents import Agent
from decent_bench.algorithms.p2p import ATC
from decent_bench.costs import QuadraticCost
from decent_bench.networks import P2PNetwork


def quadratics(matrices, offsets, weights, rate, steps) -> Callable[[], np.ndarray]:
    """D-PSGD, which is called ATC there; returns the models `[n, d]`."""
    benchmark.configure(Frameworks.NUMPY, Devices.CPU, log_level=logging.WARNING)
    costs = [
        QuadraticCost(iop.asarray(a.T @ a), iop.asarray(-a.T @ b))
        for a, b in zip(matrices, offsets, strict=True)
    ]
    agents = [Agent(cost, state_snapshot_period=int(steps)) for cost in costs]
    network = P2PNetwork(nx.cycle_graph(len(agents)), agents)

    def run():
        ATC(step_size=float(rate)).run(network, int(steps))
        return np.stack([iop.to_numpy(agent.x) for agent in agents])

    return run
