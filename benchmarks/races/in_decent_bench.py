"""The races in decent-bench, with its own agents, costs and algorithms.

Each function takes the arrays of `benchmarks.races.problems`, and returns a function
that runs the race and returns its result.
"""

from collections.abc import Callable

import networkx as nx
import numpy as np
from decent_array import interoperability as iop
from decent_bench.agents import Agent
from decent_bench.algorithms.p2p import ATC
from decent_bench.costs import QuadraticCost
from decent_bench.networks import P2PNetwork


def quadratics(matrices, offsets, weights, rate, steps) -> Callable[[], np.ndarray]:
    """D-PSGD, called ATC there; returns the models `[n, d]`."""

    def run():
        agents = [
            Agent(
                QuadraticCost(
                    iop.asarray(matrix.T @ matrix), iop.asarray(-matrix.T @ offset)
                ),
                state_snapshot_period=int(steps),  # Nobody looks in between.
            )
            for matrix, offset in zip(matrices, offsets, strict=True)
        ]
        network = P2PNetwork(nx.cycle_graph(len(agents)), agents)
        ATC(step_size=float(rate)).run(network, int(steps))
        return np.stack([iop.to_numpy(agent.x) for agent in agents])

    return run
