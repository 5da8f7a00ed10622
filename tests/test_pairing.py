"""All that can happen when 3 or 4 workers pair, and at random when there are more."""

import collections
import itertools
import pickle
import random
from typing import NamedTuple

import networkx as nx
import pytest

from djax import topologies
from djax.asynchronous._pairing import EdgeClocks, FirstFree, FixedOrder, Kind


class State(NamedTuple):
    """Of all workers, and of what travels between them.

    Workers are numbers of interned ones. A model may overtake other messages.
    """

    workers: tuple[int, ...]
    channels: frozenset  # Of (sender, receiver, kinds), those with messages.
    models: frozenset  # Of (sender, receiver).
    left: tuple[tuple, ...]  # What each worker will still be told to do.
    met: tuple  # Of (worker, partner), sorted: averagings that one end has made.


class World:
    """Workers as values: what one does depends on nothing but what it is told."""

    def __init__(self, workers, orders):
        self._ids, self._known, self._done = {}, [], {}
        ids = tuple(self._intern(worker) for worker in workers)
        self.start = State(ids, frozenset(), frozenset(), orders, ())

    def worker(self, number):
        return pickle.loads(self._known[number])

    def _intern(self, worker):
        value = pickle.dumps(worker)
        if value not in self._ids:
            self._ids[value] = len(self._known)
            self._known.append(value)
        return self._ids[value]

    def _tell(self, number, method, *arguments):
        key = number, method, arguments
        if key not in self._done:
            worker = self.worker(number)
            before = worker.partner
            out = getattr(worker, method)(*arguments)
            began = worker.partner if worker.partner != before else None
            if method == "ended":
                began = worker.partner
            self._done[key] = self._intern(worker), out, began
        return self._done[key]

    def actions(self, state):
        for i, orders in enumerate(state.left):
            if orders:
                yield ("order", i)
        for sender, receiver, _ in state.channels:
            yield ("deliver", sender, receiver)
        for sender, receiver in state.models:
            if self.worker(state.workers[receiver]).partner == sender:
                yield ("model", sender, receiver)

    def act(self, state, action):
        kind, *who = action
        channels = {(s, r): kinds for s, r, kinds in state.channels}
        models, left, met = set(state.models), list(state.left), state.met
        if kind == "order":
            (i,) = who
            told, left[i] = left[i][0], left[i][1:]
        elif kind == "deliver":
            sender, i = who
            told = "receive", sender, channels[sender, i][0]
            channels[sender, i] = channels[sender, i][1:]
        else:
            sender, i = who
            models.remove((sender, i))
            told = ("ended",)
            met = tuple(sorted((*met, (i, sender))))
        number, out, began = self._tell(state.workers[i], *told)
        workers = (*state.workers[:i], number, *state.workers[i + 1 :])
        for peer, message in out:
            channels[i, peer] = (*channels.get((i, peer), ()), message)
        if began is not None:
            assert (i, began) not in models, "a second model before the first is read"
            models.add((i, began))
        packed = frozenset((*pair, kinds) for pair, kinds in channels.items() if kinds)
        return State(workers, packed, frozenset(models), tuple(left), met)


def explore(world):
    """All states that can be reached; fails if a history need not end."""
    entered, left_again, ends = set(), set(), []
    stack = [(world.start, None)]
    while stack:
        state, pending = stack.pop()
        if pending is None:
            if state in left_again:
                continue
            assert state not in entered, "workers can talk for ever"
            entered.add(state)
            pending = list(world.actions(state))
            if not pending:
                ends.append(state)
        if pending:
            stack.append((state, pending[1:]))
            following = world.act(state, pending[0])
            assert not (following in entered and following not in left_again), (
                "workers can talk for ever"
            )
            if following not in left_again:
                stack.append((following, None))
        else:
            left_again.add(state)
    return len(left_again), ends


def check_end(world, state):
    """Nobody is stuck, and no pair is half-done."""
    assert not state.models
    for i, number in enumerate(state.workers):
        worker = world.worker(number)
        assert worker.partner is None, f"worker {i} still averages"
        assert not worker._waiting, f"worker {i} lets others wait"
    assert collections.Counter(state.met) == collections.Counter(
        (j, i) for i, j in state.met
    )


def smallest(peers):
    return peers[0]


def largest(peers):
    return peers[-1]


GRAPHS = {
    "ring3": topologies.ring(3),
    "chain3": topologies.chain(3),
    "ring4": topologies.ring(4),
    "star4": topologies.star(4),
    "chain4": topologies.chain(4),
}


def matchings(topology, rank):
    return [r[rank] for r in topology.rounds if r[rank] != rank]


def make(policy, topology, choose=smallest):
    workers = []
    for i in range(topology.size):
        peers = topology.neighbors(i)
        if policy == "edge_clocks":
            workers.append(EdgeClocks(i, peers))
        elif policy == "first_free":
            workers.append(FirstFree(i, peers, choose))
        else:
            workers.append(FixedOrder(i, matchings(topology, i)))
    return workers


@pytest.mark.parametrize("graph", GRAPHS)
@pytest.mark.parametrize("finish", [False, True])
def test_every_tick_of_a_clock_is_served_once(graph, finish):
    topology = GRAPHS[graph]
    end = (("finish",),) if finish else ()
    orders = tuple(
        (*(("demand", j) for j in sorted(topology.neighbors(i))[: 2 if i else 1]), *end)
        for i in range(topology.size)
    )
    world = World(make("edge_clocks", topology), orders)
    states, ends = explore(world)
    print(graph, states, len(ends))
    demanded = collections.Counter(
        frozenset((i, told[1]))
        for i, all_ in enumerate(orders)
        for told in all_
        if told[0] == "demand"
    )
    for state in ends:
        check_end(world, state)
        workers = [world.worker(number) for number in state.workers]
        if finish:
            assert all(worker.quiet for worker in workers)
        else:
            pairs = collections.Counter(frozenset(pair) for pair in state.met)
            assert {p: c // 2 for p, c in pairs.items()} == demanded
