"""All that can happen when 3 or 4 workers pair, and at random when there are more."""

import collections
import itertools
import pickle
import random
from typing import Any, NamedTuple

import networkx as nx
import pytest

from djax import topologies
from djax.asynchronous.runtime._pairing import Kind, Pairing
from djax.asynchronous.runtime._policies import EdgeClocks, FirstFree, FixedOrder

DEAD = 0
FINISH = ("finish",)


class State(NamedTuple):
    """Of all workers, and of what travels on every link from a worker to another."""

    workers: tuple[int, ...]  # Numbers of what they are, or DEAD.
    told: tuple[int, ...]  # How many of its orders each has been given.
    channels: tuple[tuple[int, ...], ...]  # Kinds of messages, in order.
    models: tuple[bool, ...]  # They may overtake messages.
    met: tuple[int, ...]  # Averagings that the receiver has made with the sender.


def put(values, place, value):
    """Another tuple, with a value at a place."""
    return (*values[:place], value, *values[place + 1 :])


class World:
    """Workers as values: what one does depends on nothing but what it is told.

    Each worker is given its orders (calls of its methods) one by one at any time. The
    mortal one may die at any time: what it has sent arrives, or comes too late because
    the receiver has been told to forget it.
    """

    def __init__(self, workers, orders, mortal=None):
        self.known: list[Any] = [None]
        self._pickled, self._numbers, self._results = [b""], {}, {}
        self.orders, self.mortal = orders, mortal
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
        """The worker's new number, what it sends, and whom it begins to meet."""
        key = number, method, arguments
        if key not in self._results:
            worker = pickle.loads(self._pickled[number])
            before = None if method == "ended" else worker.partner
            lost = method == "forget" and before in arguments
            out = getattr(worker, method)(*arguments)
            if lost:  # Nobody waits for a model of the dead.
                out += worker.ended()
            began = None if worker.partner == before else worker.partner
            self._results[key] = self._number(worker), out, began
        return self._results[key]

    def actions(self, state):
        """All that can happen next."""
        actions = []
        for i, orders in enumerate(self.orders):
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
            if state.workers[sender] == DEAD and sender in worker.neighbors:
                actions.append(("forget", link))
        if self.mortal is not None and state.workers[self.mortal] != DEAD:
            actions.append(("die", self.mortal))
        return actions

    def act(self, state, action):
        """The state after an action."""
        kind, place = action
        if kind == "die":
            return self._die(state, place)
        workers, told, channels, models, met = state
        sender, i = (None, place) if kind == "order" else self.links[place]
        if kind == "order":
            call = self.orders[i][told[i]]
            told = put(told, i, told[i] + 1)
        elif kind == "deliver":
            call = "receive", sender, channels[place][0]
            channels = put(channels, place, channels[place][1:])
        elif kind == "forget":
            call = "forget", sender
            models = put(models, place, 0)
        else:
            call = ("ended",)
            models = put(models, place, 0)
            met = put(met, place, met[place] + 1)
            assert sum(met) <= 2 * sum(map(len, self.orders)), "endless averagings"
        number, out, began = self._tell(workers[i], *call)
        for peer, message in out:
            if workers[peer] != DEAD:
                link = self._link[i, peer]
                channels = put(channels, link, (*channels[link], int(message)))
        if began is not None and workers[began] != DEAD:
            link = self._link[i, began]
            assert not models[link], "a second model before the first is read"
            others = [self.known[w] for w in workers if w != DEAD]
            assert not all(w.done for w in others), "an averaging after the end"
            models = put(models, link, 1)
        return State(put(workers, i, number), told, channels, models, met)

    def _die(self, state, i):
        """What is on its way to the dead does not matter any more."""
        lost = [receiver == i for _, receiver in self.links]
        channels = zip(state.channels, lost, strict=True)
        models = zip(state.models, lost, strict=True)
        return state._replace(
            workers=(*state.workers[:i], DEAD, *state.workers[i + 1 :]),
            channels=tuple(() if gone else channel for channel, gone in channels),
            models=tuple(0 if gone else model for model, gone in models),
        )


def explore(world):
    """The ends of all histories; fails if there is one without an end."""
    fresh = [True]  # Whether a history that leads here is still being explored.
    marks = {world.start: fresh}
    stack = [(world.start, fresh, iter(world.actions(world.start)))]
    ends = []
    while stack:
        state, unfinished, actions = stack[-1]
        action = next(actions, None)
        if action is None:
            unfinished[0] = False
            stack.pop()
            continue
        state = world.act(state, action)
        fresh = [True]
        mark = marks.setdefault(state, fresh)
        if mark is not fresh:
            assert not mark[0], "workers can talk for ever"
            continue
        following = world.actions(state)
        stack.append((state, mark, iter(following)))
        if not following:
            ends.append(state)
    return ends


def wander(world, rng):
    """The end of one history; fails if it is much longer than its averagings take."""
    state = world.start
    for _ in range(12 * sum(map(len, world.orders))):
        actions = world.actions(state)
        if not actions:
            return state
        # Nobody dies at once, so that there is something to leave behind.
        weights = [0.01 if kind == "die" else 1.0 for kind, _ in actions]
        state = world.act(state, *rng.choices(actions, weights))
    raise AssertionError("workers talk too much")


# What holds at the end.


def survivors(world, state):
    """The workers that live, by rank."""
    return {i: world.known[w] for i, w in enumerate(state.workers) if w != DEAD}


def averagings(world, state):
    """How often each survivor has averaged with another: by (other, survivor)."""
    dead = {i for i, w in enumerate(state.workers) if w == DEAD}
    met = zip(world.links, state.met, strict=True)
    return {link: count for link, count in met if dead.isdisjoint(link)}


def check_rest(world, state):
    """Nothing is under way, and all that have been told to finish have."""
    met = averagings(world, state)
    assert not any(state.channels), "a message is under way"
    for (i, j), count in met.items():
        assert count == met[j, i], "half an averaging"
    for link, model in zip(world.links, state.models, strict=True):
        assert not model or link not in met, "a model is under way"
    for i, worker in survivors(world, state).items():
        assert worker.partner is None, "an averaging does not end"
        assert worker.done == worker.quiet == (FINISH in world.orders[i])


def check_edge_clocks(world, state):
    """Each demand is served once, or at most once if somebody does not wait for it."""
    check_rest(world, state)
    orders = world.orders
    for worker in survivors(world, state).values():
        assert worker.asking is None, "waits for ever"
        assert worker.backlog == 0
    for (i, j), count in averagings(world, state).items():
        demands = orders[i].count(("demand", j)) + orders[j].count(("demand", i))
        early = any(FINISH in order for order in orders)
        assert count == demands or (early and count < demands), "not once"


def check_first_free(world, state):
    """Nothing is left that could be served, and nobody averages without demand."""
    check_rest(world, state)
    alive, met = survivors(world, state), averagings(world, state)
    for i, worker in alive.items():
        assert worker.asking is None, "waits for ever"
        willing = [p for p in worker.neighbors if alive[p].backlog or alive[p].done]
        assert not (worker.backlog and willing), "two do not find each other"
        if world.mortal is None and not worker.done:
            made = sum(met[peer, i] for peer in worker.neighbors)
            assert made + worker.backlog == len(world.orders[i]), "without demand"


def check_fixed_order(world, state):
    """Who waits, waits in the end for a survivor without demand."""
    check_rest(world, state)
    alive = survivors(world, state)
    waits = [(i, w.asking) for i, w in alive.items() if w.asking is not None]
    assert nx.is_directed_acyclic_graph(nx.DiGraph(waits)), "waits for ever"
    for worker in alive.values():
        if worker.asking is not None:
            assert worker.asking in alive, "waits for the dead"
            assert not alive[worker.asking].done, "waits for ever"
        elif worker.neighbors:
            assert worker.backlog == 0


def check_turns(world, state):
    """All demands of a fixed order are served, by whose turn it was."""
    check_fixed_order(world, state)
    met = averagings(world, state)
    for i, worker in survivors(world, state).items():
        assert worker.asking is None and worker.backlog == 0
        turns = itertools.cycle(worker.neighbors)
        turns = collections.Counter(itertools.islice(turns, len(world.orders[i])))
        assert all(met[peer, i] == turns[peer] for peer in worker.neighbors)


def verify(world, check):
    """All histories end well."""
    for state in explore(world):
        check(world, state)


# Workers, their orders, and graphs.


def edge_clocks(topology, policy=EdgeClocks):
    return [policy(i, topology.neighbors(i)) for i in range(topology.size)]


def first_free(topology, choose=None, policy=FirstFree):
    """Each chooses at random, unless all histories are to be explored."""
    return [
        policy(i, topology.neighbors(i), choose or random.Random(i).choice)
        for i in range(topology.size)
    ]


def fixed_order(topology, policy=FixedOrder):
    partners = enumerate(zip(*topology.rounds, strict=True))
    return [policy(i, [p for p in order if p != i]) for i, order in partners]


def ticks(size, pairs):
    """The demands of pairs' clocks, each for the first of the two to serve."""
    return [[("demand", j) for i, j in pairs if i == rank] for rank in range(size)]


def counts(numbers):
    """So many demands for each worker."""
    return [[("demand",)] * number for number in numbers]


def finishing(orders, ranks=None):
    """All workers, or some, finish after their last order."""
    ranks = range(len(orders)) if ranks is None else ranks
    return [[*o, FINISH] if i in ranks else o for i, o in enumerate(orders)]


def renumbered(topology):
    """A graph in every order of its ranks, which decide who waits for whom."""
    names = itertools.permutations(range(topology.size))
    graphs = (nx.relabel_nodes(topology.graph, dict(enumerate(n))) for n in names)
    return list(dict.fromkeys(map(topologies.from_networkx, graphs)))


def orientations(topology):
    """Every choice of the worker at which the clock of a pair ticks."""
    return itertools.product(*((edge, edge[::-1]) for edge in topology.edges))


THREE = [*renumbered(topologies.chain(3)), topologies.ring(3)]
FOUR = [
    topology
    for build in (topologies.chain, topologies.star, topologies.ring)
    for topology in renumbered(build(4))
]

three_workers = pytest.mark.parametrize("topology", THREE, ids=lambda t: str(t.edges))
four_workers = pytest.mark.parametrize("topology", FOUR, ids=lambda t: str(t.edges))
each_mortal = pytest.mark.parametrize("mortal", range(3))
each_choice = pytest.mark.parametrize("choose", [min, max])


# All histories of a few workers.


@three_workers
def test_clocks_of_both_ends(topology):
    pairs = [pair for edge in topology.edges for pair in (edge, edge[::-1])]
    verify(World(edge_clocks(topology), ticks(3, pairs)), check_edge_clocks)


@three_workers
def test_clocks_that_tick_twice(topology):
    for pairs in orientations(topology):
        world = World(edge_clocks(topology), ticks(3, pairs[:2] * 2))
        verify(world, check_edge_clocks)


@four_workers
def test_clocks_of_four(topology):
    for pairs in orientations(topology):
        verify(World(edge_clocks(topology), ticks(4, pairs)), check_edge_clocks)


@three_workers
def test_clocks_finish(topology):
    for pairs in orientations(topology):
        orders = finishing(ticks(3, pairs))
        verify(World(edge_clocks(topology), orders), check_edge_clocks)


def test_clocks_of_four_finish():
    topology = topologies.chain(4)
    orders = finishing(ticks(4, [(0, 1), (2, 1), (2, 3)]))
    verify(World(edge_clocks(topology), orders), check_edge_clocks)


def test_finishing_again_changes_nothing():
    orders = finishing(finishing(ticks(3, [(0, 1), (1, 2)])))
    verify(World(edge_clocks(topologies.ring(3)), orders), check_edge_clocks)


@each_choice
@three_workers
def test_first_free(topology, choose):
    for numbers in itertools.product(range(3), repeat=3):
        world = World(first_free(topology, choose), counts(numbers))
        verify(world, check_first_free)


@each_choice
@four_workers
def test_first_free_of_four(topology, choose):
    for numbers in [(1, 1, 1, 1), (0, 1, 2, 1)]:
        world = World(first_free(topology, choose), counts(numbers))
        verify(world, check_first_free)


@each_choice
@three_workers
def test_first_free_finishes(topology, choose):
    world = World(first_free(topology, choose), finishing(counts([1, 1, 1])))
    verify(world, check_first_free)


@pytest.mark.parametrize("ranks", [(0,), (1,), (2,), (0, 2)])
def test_those_who_are_done_serve_the_others(ranks):
    orders = finishing(counts([1, 1, 2]), ranks)
    verify(World(first_free(topologies.ring(3), min), orders), check_first_free)


@pytest.mark.parametrize(
    "topology", [*FOUR, topologies.complete(4)], ids=lambda t: str(t.edges)
)
def test_fixed_order(topology):
    numbers = [len(topology.neighbors(i)) for i in range(4)]
    verify(World(fixed_order(topology), counts(numbers)), check_turns)


@three_workers
def test_fixed_order_for_several_cycles(topology):
    numbers = [3 * len(topology.neighbors(i)) for i in range(3)]
    verify(World(fixed_order(topology), counts(numbers)), check_turns)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_equal_demands_of_a_fixed_order(count):
    workers = fixed_order(topologies.ring(4))
    verify(World(workers, counts([count] * 4)), check_turns)


@three_workers
def test_unequal_demands_of_a_fixed_order(topology):
    for numbers in itertools.product(range(4), repeat=3):
        verify(World(fixed_order(topology), counts(numbers)), check_fixed_order)


@four_workers
def test_fixed_order_finishes(topology):
    orders = finishing(counts([1, 1, 1, 1]))
    verify(World(fixed_order(topology), orders), check_fixed_order)


@each_mortal
@three_workers
def test_clocks_survive_a_death(topology, mortal):
    for pairs in orientations(topology):
        world = World(edge_clocks(topology), ticks(3, pairs), mortal)
        verify(world, check_edge_clocks)


@pytest.mark.slow
@each_mortal
def test_clocks_finish_after_a_death(mortal):
    orders = finishing(ticks(3, [(0, 1), (1, 2), (2, 0)]), [0, 1])
    verify(World(edge_clocks(topologies.ring(3)), orders, mortal), check_edge_clocks)


@each_mortal
@each_choice
@three_workers
def test_first_free_survives_a_death(topology, choose, mortal):
    world = World(first_free(topology, choose), counts([1, 1, 1]), mortal)
    verify(world, check_first_free)


@each_mortal
def test_first_free_finishes_after_a_death(mortal):
    orders = finishing(counts([1, 1, 1]), [0])
    world = World(first_free(topologies.ring(3), min), orders, mortal)
    verify(world, check_first_free)


@each_mortal
@three_workers
def test_fixed_order_survives_a_death(topology, mortal):
    world = World(fixed_order(topology), counts([3, 3, 3]), mortal)
    verify(world, check_fixed_order)


@each_mortal
def test_fixed_order_finishes_after_a_death(mortal):
    orders = finishing(counts([2, 2, 2]))
    world = World(fixed_order(topologies.ring(3)), orders, mortal)
    verify(world, check_fixed_order)


# Some histories of many workers.

LARGE = [
    topologies.ring(8),
    topologies.hypercube(8),
    topologies.complete(8),
    topologies.from_networkx(nx.connected_watts_strogatz_graph(12, 4, 0.5, seed=0)),
]

many_workers = pytest.mark.parametrize("topology", LARGE, ids=lambda t: t.name)
seeds = pytest.mark.parametrize("seed", range(3))


def wander_all(workers, orders, check, rng):
    """Some workers die, and some demands are dropped at the end."""
    for given in (orders, finishing(orders)):
        for mortal in (None, rng.randrange(len(workers))):
            world = World(workers, given, mortal)
            check(world, wander(world, rng))


@many_workers
@seeds
def test_many_clocks(topology, seed):
    rng = random.Random(seed)
    pairs = [pair for edge in topology.edges for pair in (edge, edge[::-1])]
    rates = [rng.expovariate(1.0) for _ in pairs]
    orders = ticks(topology.size, rng.choices(pairs, rates, k=200))
    wander_all(edge_clocks(topology), orders, check_edge_clocks, rng)


@many_workers
@seeds
def test_many_first_free(topology, seed):
    rng = random.Random(seed)
    workers = first_free(topology)
    numbers = [rng.randrange(20) for _ in workers]
    wander_all(workers, counts(numbers), check_first_free, rng)


@many_workers
@seeds
def test_many_in_fixed_order(topology, seed):
    rng = random.Random(seed)
    numbers = [rng.randrange(40) for _ in range(topology.size)]
    wander_all(fixed_order(topology), counts(numbers), check_fixed_order, rng)


@many_workers
@seeds
def test_many_demands_of_a_fixed_order_are_served(topology, seed):
    numbers = [10 * len(topology.neighbors(i)) for i in range(topology.size)]
    world = World(fixed_order(topology), counts(numbers))
    check_turns(world, wander(world, random.Random(seed)))


@pytest.mark.parametrize("build", [topologies.ring, topologies.hypercube])
def test_first_free_treats_all_pairs_alike(build):
    world = World(first_free(build(8)), counts([100] * 8))
    met = averagings(world, wander(world, random.Random(0))).values()
    mean = sum(met) / len(met)
    assert mean > 0.95 * 8 * 100 / len(met)
    assert 0.7 * mean < min(met) and max(met) < 1.4 * mean


# Protocols that are wrong. The methods of `Pairing` itself take note of nothing.


class Circular(EdgeClocks):
    """Lets everyone wait, whatever its rank."""

    def _requested(self, sender):
        if self.asking in (None, sender):
            super()._requested(sender)
        else:
            self._waiting.append(sender)


class Polite(EdgeClocks):
    """Lets nobody wait, whatever its rank."""

    def _requested(self, sender):
        if self.asking in (None, sender):
            super()._requested(sender)
        else:
            self._out.append((sender, Kind.DECLINE))
            self._owe(sender)


class Impatient(EdgeClocks):
    """Repeats a request that is declined."""

    def _declined(self, peer):
        self._owed.appendleft((peer, self._own))

    _owe = Pairing._owe


class Greedy(EdgeClocks):
    """Accepts while it averages."""

    def _requested(self, sender):
        self.partner = None
        super()._requested(sender)


class Careless(EdgeClocks):
    """Declines, and owes nothing."""

    _owe = Pairing._owe
    _declined = Pairing._declined


class Sharing(EdgeClocks):
    """Serves both ends' demands by one averaging."""

    _crossed = Pairing._crossed


class Doubling(EdgeClocks):
    """Serves neither end's demand by an averaging for both."""

    def _crossed(self, peer):
        self._owed.append((peer, self._own))


class Hasty(EdgeClocks):
    """Says that it is done while it asks."""

    def finish(self):
        self.done = True
        done = [(peer, Kind.DONE) for peer in self.neighbors]
        return done + super().finish()


class Faithful(EdgeClocks):
    """Waits for the dead."""

    def _drop(self, peer):
        self.asking = peer


class Persistent(FirstFree):
    """Asks again whoever has declined."""

    _declined = Pairing._declined


class Forgetful(FirstFree):
    """Takes no note of those it declines."""

    _owe = Pairing._owe


class Deaf(FirstFree):
    """Does not know who is done."""

    _served_by = Pairing._served_by


class Generous(FirstFree):
    """Averages without demand."""

    def _willing(self):
        return True


class Absent(FixedOrder):
    """Takes no note of those who come too early."""

    def _requested(self, sender):
        if self.asking == sender:
            super()._requested(sender)


CIRCLE = ticks(3, [(0, 1), (1, 2), (2, 0)])


def test_who_hands_a_demand_over_still_waits_for_it():
    """And who takes it over does not: a slow worker's gradients need not wait."""
    slow, fast = EdgeClocks(1, [0, 2]), EdgeClocks(2, [1])
    assert slow.receive(0, Kind.REQUEST) == [(0, Kind.ACCEPT)]
    for _ in range(3):
        fast.demand(1)
    assert fast.backlog == 3
    assert slow.receive(2, Kind.REQUEST) == [(2, Kind.DECLINE)]
    (repeated,) = fast.receive(1, Kind.DECLINE)
    assert repeated == (1, Kind.REQUEST) and fast.backlog == 3
    assert slow.backlog == 1  # The averaging with 0.
    slow.receive(2, Kind.REQUEST)
    fast.receive(1, Kind.DECLINE)
    assert slow.ended() == [(2, Kind.RETURN)] and slow.backlog == 0
    # Both ask: the lower rank's question is answered, for the demand that was handed.
    fast.receive(1, Kind.RETURN)
    assert fast.partner == 1 and fast.backlog == 3
    fast.ended()
    assert fast.backlog == 2


@pytest.mark.parametrize(
    "policy, orders, mortal, wrong",
    [
        (Circular, CIRCLE, None, "waits for ever"),
        (Polite, CIRCLE, None, "talk for ever"),
        (Impatient, CIRCLE, None, "talk for ever"),
        (Greedy, CIRCLE, None, "half an averaging"),
        (Careless, CIRCLE, None, "not once"),
        (Sharing, ticks(3, [(0, 1), (1, 0)]), None, "not once"),
        (Doubling, ticks(3, [(0, 1), (1, 0)]), None, "endless averagings"),
        (Hasty, finishing(CIRCLE), None, "after the end"),
        (Faithful, CIRCLE, 1, "waits for ever"),
    ],
)
def test_wrong_clocks_are_found_out(policy, orders, mortal, wrong):
    world = World(edge_clocks(topologies.ring(3), policy), orders, mortal)
    with pytest.raises(AssertionError, match=wrong):
        verify(world, check_edge_clocks)


@pytest.mark.parametrize(
    "policy, orders, wrong",
    [
        (Persistent, counts([1, 1, 1]), "talk for ever"),
        (Forgetful, counts([2, 1, 1]), "do not find each other"),
        (Deaf, finishing(counts([1, 1, 1]), [0]), "do not find each other"),
        (Generous, counts([1, 0, 0]), "without demand"),
    ],
)
def test_wrong_first_free_is_found_out(policy, orders, wrong):
    world = World(first_free(topologies.ring(3), min, policy), orders)
    with pytest.raises(AssertionError, match=wrong):
        verify(world, check_first_free)


def test_who_forgets_those_who_come_early_is_found_out():
    world = World(fixed_order(topologies.ring(3), Absent), counts([2, 2, 2]))
    with pytest.raises(AssertionError, match="a model is under way"):
        verify(world, check_fixed_order)


def test_cycles_without_matchings_are_found_out():
    workers = [FixedOrder(i, [(i + 1) % 3, (i + 2) % 3]) for i in range(3)]
    with pytest.raises(AssertionError, match="waits for ever"):
        verify(World(workers, counts([2, 2, 2])), check_fixed_order)
