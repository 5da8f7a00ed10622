"""All that can happen when 3 or 4 workers pair, and at random when there are more."""

import collections
import itertools
import pickle
import random
from typing import Any, NamedTuple

import networkx as nx
import pytest

from djax import topologies
from djax.asynchronous._pairing import EdgeClocks, FirstFree, FixedOrder, Kind

DEAD = 0


class State(NamedTuple):
    """Of all workers, and of what travels on every link from a worker to another."""

    workers: tuple[int, ...]  # Numbers of what they are, or DEAD.
    told: tuple[int, ...]  # How many of its orders each has been given.
    channels: tuple[tuple[int, ...], ...]  # Kinds of messages, in order.
    models: tuple[bool, ...]  # They may overtake messages.
    met: tuple[int, ...]  # Averagings that the receiver has made with the sender.


class World:
    """Workers as values: what one does depends on nothing but what it is told.

    Each worker is given its orders (calls of its methods) one by one at any time. The
    mortal one may die at any time: what it has sent arrives, or comes too late because
    the receiver has been told to forget it.
    """

    def __init__(self, workers, orders, mortal=None):
        self.known: list[Any] = [None]
        self._pickled, self._numbers, self._results = [b""], {}, {}
        self._orders, self._mortal = orders, mortal
        self.links = [(i, j) for i, w in enumerate(workers) for j in w.neighbors]
        self._link = {pair: link for link, pair in enumerate(self.links)}
        nothing = (0,) * len(self.links)
        self.start = State(
            tuple(self._number(worker) for worker in workers),
            (0,) * len(workers),
            ((),) * len(self.links),
            nothing,
            nothing,
        )

    def _number(self, worker):
        value = pickle.dumps(worker)
        if value not in self._numbers:
            self._numbers[value] = len(self.known)
            self.known.append(worker)
            self._pickled.append(value)
        return self._numbers[value]

    def _tell(self, number, method, *arguments):
        """The worker's new number, what it sends, and with whom it begins to average."""
        key = number, method, arguments
        if key not in self._results:
            worker = pickle.loads(self._pickled[number])
            before = None if method == "ended" else worker.partner
            out = getattr(worker, method)(*arguments)
            began = None if worker.partner == before else worker.partner
            self._results[key] = self._number(worker), out, began
        return self._results[key]

    def actions(self, state):
        """All that can happen next."""
        actions = []
        for i, orders in enumerate(self._orders):
            if state.workers[i] != DEAD and state.told[i] < len(orders):
                actions.append(("order", i))
        for link, (sender, i) in enumerate(self.links):
            worker = self.known[state.workers[i]]
            if worker is None:
                continue
            if state.channels[link]:
                actions.append(("deliver", link))
            if state.models[link] and worker.partner == sender:
                actions.append(("model", link))
            if state.workers[sender] == DEAD:
                if sender in worker.neighbors:
                    actions.append(("forget", link))
                elif worker.partner == sender:
                    actions.append(("give up", link))
        if self._mortal is not None and state.workers[self._mortal] != DEAD:
            actions.append(("die", self._mortal))
        return actions

    def act(self, state, action):
        """The state after an action."""
        workers, told, channels, models, met = map(list, state)
        kind, place = action
        sender, i = (None, place) if kind in ("order", "die") else self.links[place]
        if kind == "order":
            call = self._orders[i][told[i]]
            told[i] += 1
        elif kind == "deliver":
            call = "receive", sender, channels[place][0]
            channels[place] = channels[place][1:]
        elif kind == "forget":
            call = "forget", sender
        else:  # A model, or the end of hope for one.
            call = ("ended",)
            models[place] = 0
            met[place] += kind == "model"
        if kind == "die":
            workers[i] = DEAD
            for link, (_, receiver) in enumerate(self.links):
                if receiver == i:
                    channels[link], models[link] = (), 0
        else:
            workers[i], out, began = self._tell(workers[i], *call)
            for peer, message in out:
                if workers[peer] != DEAD:
                    channels[self._link[i, peer]] += (int(message),)
            if began is not None and workers[began] != DEAD:
                link = self._link[i, began]
                assert not models[link], "a second model before the first is read"
                models[link] = 1
        return State(*map(tuple, (workers, told, channels, models, met)))


def explore(world):
    """The ends of all histories; fails if there is one without an end."""
    unfinished = {world.start: True}
    stack = [(world.start, iter(world.actions(world.start)))]
    ends = []
    while stack:
        state, actions = stack[-1]
        action = next(actions, None)
        if action is None:
            unfinished[state] = False
            stack.pop()
            continue
        state = world.act(state, action)
        if state in unfinished:
            assert not unfinished[state], "workers can talk for ever"
            continue
        unfinished[state] = True
        following = world.actions(state)
        stack.append((state, iter(following)))
        if not following:
            ends.append(state)
    print(len(unfinished), len(ends))
    return ends
