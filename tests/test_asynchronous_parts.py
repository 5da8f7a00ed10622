"""The pieces of an asynchronous run, in one process without MPI."""

import collections
import functools
import json
import math
import sys
import threading
import time
import types

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import (
    asynchronous,
    communicators,
    topologies,
)
from djax.asynchronous.runtime import (
    _members,
    _model,
    _record,
)
from djax.asynchronous.runtime._averager import as_bytes
from djax.asynchronous.runtime._ending import Ending
from djax.asynchronous.runtime._members import (
    Members,
    Say,
    Status,
    encode,
)
from djax.asynchronous.runtime._model import (
    Model,
    OwnTime,
    make_packing,
    sketch,
)
from djax.asynchronous.runtime._pairing import (
    EdgeClocks,
    FirstFree,
    FixedOrder,
)
from djax.asynchronous.runtime._record import Record
from djax.asynchronous.runtime._report import Report
from djax.asynchronous.runtime._settings import (
    Clocks,
    Settings,
    check_participants,
)
from djax.asynchronous.simulator._batches import OwnBatches
from djax.transport._messages import ZMQTransport

RING = topologies.ring(4)

pytestmark = pytest.mark.usefixtures("as_users")


class Hands:
    """Of a clock, moved by hand: stands for the module `time`."""

    def __init__(self):
        self.now = 100.0

    def perf_counter(self):
        return self.now

    monotonic = perf_counter


def clock_of(module, monkeypatch):
    hands = Hands()
    monkeypatch.setattr(module, "time", hands)
    return hands


def make_settings(topology=RING, rate=1.0, **options):
    defaults = {
        "gradients": 100,
        "seconds": None,
        "pairing": "edge_clocks",
        "random_times": True,
        "max_backlog": None,
        "looks": 20,
        "keep_looks": False,
        "transport": "mpi",
        "timeout": 60.0,
        "seed": 0,
    }
    return Settings(topology, rate, **(defaults | options))


# ---- A worker's time -------------------------------------------------------------


def test_own_time_counts_gradients_and_the_share_of_the_current_one(monkeypatch):
    clock = clock_of(_model, monkeypatch)
    own = OwnTime(finished=3)
    own.begin()
    clock.now += 50
    assert own() == 3  # Nobody knows how long the first one takes.
    assert own.until(4) == 1
    clock.now -= 48
    own.end()
    assert (own.finished, own.duration, own()) == (4, 2, 4)
    clock.now += 9
    assert own() == 4  # Between two gradients.
    own.begin()
    clock.now += 0.5
    assert own() == 4.25
    assert own.until(4.75) == 1
    assert own.until(4) == -0.5
    clock.now += 1000
    assert own() == 5  # Who stalls ages by one gradient.


def test_durations_are_averaged_with_halving_weights(monkeypatch):
    clock = clock_of(_model, monkeypatch)
    own = OwnTime()
    for seconds, mean in ((4, 4), (8, 6), (2, 4), (2, 3)):
        own.begin()
        clock.now += seconds
        own.end()
        assert own.duration == mean


# ---- When averagings are wanted --------------------------------------------------


def make_clocks(rates, random=False, seed=0, start=0.0):
    return Clocks(rates, start, random, np.random.default_rng(seed))


def test_constant_clocks_tick_in_order():
    clocks = make_clocks({7: 1 / 2, 3: 1 / 5, 1: 0.0}, start=10.0)
    assert clocks.next == 12
    assert clocks.ticks(11.9) == []
    assert clocks.ticks(18.5) == [7, 7, 3, 7, 7]  # At 12, 14, 15, 16 and 18.
    assert clocks.next == 20
    assert clocks.ticks(18.5) == []
    assert sorted(clocks.ticks(20)) == [3, 7]
    assert make_clocks({0: 0.0}).next == math.inf


def tick_times(clocks, count):
    times = []
    for _ in range(count):
        times.append(clocks.next)
        assert len(clocks.ticks(clocks.next)) == 1
    return times


def test_random_clocks_are_poisson():
    times = tick_times(make_clocks({0: 2.0}, random=True), 4000)
    gaps = np.diff(times, prepend=0)
    np.testing.assert_allclose(gaps.mean(), 0.5, rtol=5 / np.sqrt(4000))
    np.testing.assert_allclose(gaps.std() / gaps.mean(), 1, atol=0.1)
    np.testing.assert_allclose((gaps > 0.5).mean(), np.exp(-1), atol=0.04)
    assert abs(np.corrcoef(gaps[1:], gaps[:-1])[0, 1]) < 0.08
    again = tick_times(make_clocks({0: 2.0}, random=True), 50)
    other = tick_times(make_clocks({0: 2.0}, random=True, seed=1), 50)
    assert again == times[:50] and other != again


def test_each_clock_has_its_own_rate():
    rates = {0: 2.0, 5: 0.5, 2: 0.0}
    counts = collections.Counter(make_clocks(rates, random=True).ticks(1000.0))
    assert counts.keys() == {0, 5}
    for key, count in counts.items():
        assert abs(count - 1000 * rates[key]) < 5 * np.sqrt(1000 * rates[key])


def test_each_end_of_a_pair_has_half_of_its_clock():
    settings = make_settings(topologies.star(4), 1.5)  # Of an edge: 0.5.
    for rank, peers in ((0, {1, 2, 3}), (2, {0})):
        clocks = settings.make_clocks(rank, 5.0, np.random.default_rng(rank))
        counts = collections.Counter(clocks.ticks(5.0 + 4000))
        assert counts.keys() == peers
        assert all(abs(count - 1000) < 5 * np.sqrt(1000) for count in counts.values())


def test_other_pairings_have_one_clock():
    rng = np.random.default_rng(0)
    settings = make_settings(rate=4, pairing="first_free", random_times=False)
    clocks = settings.make_clocks(1, 2.0, rng)
    assert clocks.ticks(3.1) == [None] * 4 and clocks.next == 3.25
    alone = make_settings(topologies.complete(1), 4, pairing="first_free")
    assert alone.make_clocks(0, 0.0, rng).next == math.inf


# ---- Settings --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1}, "rate must be a finite number .* got -1"),
        ({"rate": np.eye(4)}, r"rate\[0, 0\] = 1.0 has no edge"),
        ({"pairing": "random"}, "pairing must be one of .*'first_free'.*got 'random'"),
        ({"transport": "udp"}, "transport must be one of .*'mpi', 'zmq'.* got 'udp'"),
        ({"random_times": False}, "random_times=False is for pairing="),
        (
            {"pairing": "first_free", "rate": asynchronous.edge_rates(RING)},
            '"first_free" takes one rate for all; a matrix is for "edge_clocks"',
        ),
        (
            {"pairing": "fixed_order", "rate": asynchronous.edge_rates(RING)},
            '"fixed_order" takes one rate',
        ),
        ({"gradients": None}, "give the number of gradients, or the seconds"),
        ({"gradients": 0}, "gradients must be a whole number from 1 on, got 0"),
        ({"gradients": 10.0}, "gradients must be a whole number from 1 on, got 10.0"),
        ({"seconds": 0}, "seconds must be a positive number, got 0"),
        ({"seconds": -1.5}, "seconds must be a positive number, got -1.5"),
        ({"seconds": math.inf}, "seconds must be a positive number, got inf"),
        ({"max_backlog": -1}, "max_backlog must be a whole number from 0 on, got -1"),
        ({"max_backlog": 0.5}, "max_backlog must be a whole number from 0 on, got 0.5"),
        ({"looks": 0}, "looks must be a whole number from 1 on, got 0"),
        ({"looks": 1.5}, "looks must be a whole number from 1 on"),
        ({"timeout": 0}, "timeout must be a positive number, got 0"),
        ({"timeout": math.nan}, "timeout must be a positive number, got nan"),
        ({"seed": -1}, "seed must be a whole number from 0 on, got -1"),
        ({"gradients": True}, "gradients must be a whole number from 1 on, got True"),
        ({"looks": None}, "looks must be a whole number from 1 on, got None"),
        ({"seconds": "3"}, "seconds must be a positive number, got '3'"),
        ({"seed": "a"}, "seed must be a whole number from 0 on, got 'a'"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        make_settings(**options)


def test_a_schedule_is_no_setting():
    with pytest.raises(TypeError, match="a Schedule has no fixed neighbours"):
        make_settings(topologies.one_peer_exponential(4))


def test_the_least_settings_are_possible():
    settings = make_settings(
        rate=0, gradients=None, seconds=0.1, max_backlog=0, looks=1, seed=np.int64(0)
    )
    assert not settings.rates.any()


def test_the_share_is_of_whatever_ends_first():
    assert make_settings().share(25, 1e9) == 0.25
    assert make_settings(gradients=None, seconds=8.0).share(10**9, 2.0) == 0.25
    both = make_settings(seconds=8.0)
    assert (both.share(50, 1.0), both.share(25, 6.0)) == (0.5, 0.75)


def test_what_ranks_have_in_common():
    assert make_settings().common == make_settings(topologies.ring(4)).common
    # The same graph under another name.
    shapes = topologies.ring, topologies.complete
    ring, complete = (make_settings(make(3)).common for make in shapes)
    assert ring == complete
    for other in (
        make_settings(topologies.star(4)),
        make_settings(rate=2.0),
        make_settings(gradients=99),
        make_settings(seconds=3.0),
        make_settings(max_backlog=0),
        make_settings(pairing="first_free"),
        make_settings(looks=3),
        make_settings(transport="zmq"),
        make_settings(timeout=2.0),
        make_settings(seed=1),
    ):
        assert other.common != make_settings().common


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("edge_clocks", EdgeClocks),
        ("first_free", FirstFree),
        ("fixed_order", FixedOrder),
    ],
)
def test_pairings_are_of_the_neighbours(name, kind):
    topology = topologies.exponential(8)
    settings = make_settings(topology, pairing=name)
    for rank in range(8):
        pairing = settings.make_pairing(rank, np.random.default_rng(0))
        assert type(pairing) is kind and pairing.rank == rank
        assert sorted(pairing.neighbors) == sorted(topology.graph[rank])


def test_a_fixed_order_is_that_of_the_rounds():
    settings = make_settings(pairing="fixed_order")
    for rank in range(4):
        pairing = settings.make_pairing(rank, np.random.default_rng(0))
        assert pairing.neighbors == [r[rank] for r in RING.rounds if r[rank] != rank]


def test_participants_are_checked():
    acid = djax.acid(optax.sgd(0.1), djax.acid_constants(RING))
    mpi = types.SimpleNamespace(host_comm=None, size=4)
    check_participants(acid, mpi, RING)
    with pytest.raises(TypeError, match="asynchronous algorithm.* got Gradient"):
        check_participants(optax.sgd(0.1), mpi, RING)
    with pytest.raises(TypeError, match="one process per worker.*simulated"):
        check_participants(acid, communicators.simulated(4), RING)
    with pytest.raises(TypeError, match="run needs a Topology, .*no fixed neighbours"):
        check_participants(acid, mpi, topologies.one_peer_exponential(4))
    with pytest.raises(ValueError, match="topology has 5 workers, .* started 4 ranks"):
        check_participants(acid, mpi, topologies.ring(5))


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": -1.0}, {"every": math.nan}, {"keep": 0}]
)
def test_impossible_checkpoints_are_named(options):
    with pytest.raises(ValueError, match="Checkpoints: every and keep must be pos"):
        asynchronous.Checkpoints("somewhere", **options)


# ---- Batches ---------------------------------------------------------------------


def test_own_batches_are_taken_epoch_by_epoch():
    made = []

    def batches(epoch):
        made.append(epoch)
        return {"x": np.arange(6).reshape(1, 3, 2) + 6 * epoch, "y": np.ones((1, 3))}

    own = OwnBatches(batches)
    assert own.example["x"].tolist() == [0, 1] and own.example["y"] == 1
    for turn in [0, 1, 2, 3, 5, 6, 20]:
        data, step = own.locate(turn)
        np.testing.assert_array_equal(data["x"][0, step], [2 * turn, 2 * turn + 1])
    assert made == [0, 1, 2, 6]  # Each is made once, and one that is left out, never.


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"x": np.ones((2, 3))}, r"run: batches.*\['x'\].* shape \(2, 3\)"),
        ({"x": np.float32(1)}, r"shape \(\)"),
        ({"x": np.ones(1)}, r"two leading axes.*got \[\(\)\] steps"),
        ({"x": np.ones((1, 0))}, r"two leading axes.*got \[\(0,\)\] steps"),
        (
            {"x": np.ones((1, 3)), "y": np.ones((1, 2))},
            r"the same for all; got \[\(2,\), \(3,\)\] steps",
        ),
        ({}, r"two leading axes.*got \[\] steps"),
    ],
)
def test_batches_that_do_not_fit_are_named(made, message):
    with pytest.raises(ValueError, match=message):
        OwnBatches(lambda epoch: made)


def test_epochs_have_the_same_number_of_steps():
    own = OwnBatches(lambda epoch: np.ones((1, 3 + epoch)))
    with pytest.raises(ValueError, match="epoch 1 has 4 steps, but epoch 0 has 3"):
        own.locate(3)
    with pytest.raises(TypeError, match="function from the number of an epoch.*ndarr"):
        OwnBatches(np.ones((1, 3)))


# ---- Packing ---------------------------------------------------------------------


def values(shape, dtype, seed=0):
    x = np.random.default_rng(seed).standard_normal(shape) * 100
    return jnp.asarray(x).astype(dtype)


MIXED = {
    "large": values((512, 512), "float32"),
    "just small": values((2**18 - 1,), "float32", seed=1),
    "large, bfloat16": values((2**19, 1), "bfloat16"),
    "matrix": values((2, 3), "float32", seed=2),
    "scalar": values((), "bfloat16"),
    "empty": values((0, 3), "float32"),
    "halves": (values((2,), "bfloat16"), values((5, 1), "bfloat16")),
    "numbers": values((4,), "int32"),
    "mask": jnp.asarray([True, False]),
}


def test_a_tree_travels_as_few_arrays():
    pack, unpack = make_packing(MIXED)
    packed = pack(MIXED)
    assert packed[0] is MIXED["large"] and packed[1] is MIXED["large, bfloat16"]
    sizes = {str(x.dtype): x.size for x in packed[2:]}
    assert sizes == {"float32": 2**18 + 5, "bfloat16": 8, "int32": 4, "bool": 2}
    arrived = [np.asarray(x) for x in packed]
    for back in (unpack(arrived), jax.jit(unpack)(arrived)):
        jax.tree.map(np.testing.assert_array_equal, back, MIXED)
        dtypes = [jax.tree.map(lambda x: x.dtype, tree) for tree in (back, MIXED)]
        assert dtypes[0] == dtypes[1]
    with pytest.raises(ValueError):
        unpack(arrived[:-1])


def test_one_array_alone_is_not_copied():
    x = values((3, 2), "float32")
    pack, unpack = make_packing([x])
    assert pack([x])[0] is x
    np.testing.assert_array_equal(unpack([np.asarray(x).ravel()])[0], x)


def test_jit_returns_what_it_was_given_as_it_was():
    def function(a, b):
        changed = None if b["y"] is None else b["y"] + a
        return {"a": a, "sum": a + b["x"]}, b["x"], (a, changed)

    program = _model._jit(function)
    for a in (np.float32(2), jnp.ones(3)):
        for y in (None, jnp.arange(3.0), None):
            x = jnp.asarray([1.0, 5.0, 7.0])
            first, second, (third, fourth) = program(a, {"x": x, "y": y})
            assert first["a"] is a and second is x and third is a
            np.testing.assert_array_equal(first["sum"], a + x)
            assert (fourth is None) == (y is None)
            if y is not None:
                np.testing.assert_array_equal(fourth, y + a)


# ---- Sketches --------------------------------------------------------------------


def test_a_small_model_is_its_own_sketch():
    tree = {"a": values((1000,), "bfloat16"), "b": values((4, 6), "float32")}
    flat = np.concatenate([np.float32(tree["a"]), np.ravel(tree["b"])])
    assert flat.size == 1024
    np.testing.assert_array_equal(sketch(tree), flat)
    assert sketch({**tree, "c": jnp.ones(1)}).shape == (1024,)
    assert sketch({**tree, "c": jnp.ones(3000)}).shape == (1024,)


def large_model(kind, seed):
    shapes = {"a": (30, 101), "b": (1024,), "c": (7,), "d": (), "e": (2, 2500)}
    if kind == "constant":
        return {name: jnp.full(shape, 1.0 + seed) for name, shape in shapes.items()}
    if kind == "same leaves":  # Their signs have to differ, not to add up.
        return {name: values((1030,), "float32", seed) for name in shapes}
    return {
        name: values(shape, "float32", (seed, number))
        for number, (name, shape) in enumerate(shapes.items())
    }


@pytest.mark.parametrize("kind", ["random", "constant", "same leaves"])
def test_sketches_keep_distances(kind):
    """Their standard deviation is 4.4 percent."""
    models = [large_model(kind, seed) for seed in range(6)]
    sketches = [np.asarray(sketch(model)) for model in models]
    for i in range(6):
        for j in range(i):
            gap = jax.tree.map(jnp.subtract, models[i], models[j])
            exact = sum(np.sum(np.square(x)) for x in jax.tree.leaves(gap))
            ours = np.sum((sketches[i] - sketches[j]) ** 2)
            np.testing.assert_allclose(ours, exact, rtol=0.25)


def test_all_workers_flip_the_same_signs():
    a, b = (large_model("random", seed) for seed in range(2))
    difference = sketch(jax.tree.map(jnp.subtract, a, b))
    np.testing.assert_allclose(sketch(a) - sketch(b), difference, atol=2e-3)
    assert np.abs(difference).mean() > 100
    jax.tree.map(np.testing.assert_array_equal, sketch(a), jax.jit(sketch)(a))


# ---- The model -------------------------------------------------------------------

PARAMS = {"w": values((2, 3), "float32") / 100, "b": values((), "float32", 1) / 100}
ALGORITHMS = {
    "acid": lambda base: djax.acid(base, djax.acid_constants(topologies.ring(8))),
    "adpsgd": djax.adpsgd,
}


class Share:
    """A worker's time that moves by hand, in steps that float32 has."""

    def __init__(self):
        self.finished, self.share = 0, 0.0

    def __call__(self):
        return self.finished + self.share

    def end(self):
        self.finished, self.share = self.finished + 1, 0.0

    def advance(self, rng, most):
        self.share = max(self.share, int(rng.integers(16 * most + 1)) / 16)


def make_model(algorithm, params=PARAMS):
    model = Model(algorithm, params, algorithm.init(params))
    model.time = Share()
    return model


def random_like(rng, tree):
    return jax.tree.map(
        lambda x: jnp.asarray(rng.standard_normal(x.shape), x.dtype), tree
    )


def assert_close(actual, expected):
    close = functools.partial(np.testing.assert_allclose, rtol=2e-4, atol=2e-5)
    jax.tree.map(close, actual, expected)


class Eager:
    """What a worker is whose events are applied at once."""

    def __init__(self, algorithm, params):
        self.params, self.state = params, algorithm.init(params)
        self._algorithm, self._time = algorithm, 0.0
        self._update = jax.jit(algorithm.update)

    def mix(self, now):
        self.params, self.state = self._algorithm.mix(
            self.params, self.state, now - self._time
        )
        self._time = now

    def update(self, grads, now, step):
        updates, self.state = self._update(
            grads, self.state, self.params, elapsed=now - self._time, global_step=step
        )
        self.params, self._time = optax.apply_updates(self.params, updates), now

    def average(self, peer, sent):
        updates, self.state = self._algorithm.average(
            peer, self.state, self.params, sent=sent
        )
        self.params = optax.apply_updates(self.params, updates)


class History:
    """Random events of a Model, and of an Eager one, each with its effects compared."""

    def __init__(self, algorithm, seed):
        self.rng = np.random.default_rng(seed)
        self.model, self.eager = make_model(algorithm), Eager(algorithm, PARAMS)
        self.pack, self.unpack = make_packing(PARAMS)
        self.sent = self.unread = None
        self.events, self.averagings, self.seen = 0, 0, set()

    def update(self):
        grads, step = random_like(self.rng, PARAMS), int(self.rng.integers(100))
        assert self.model.update(grads, step) == self.averagings
        self.eager.update(grads, float(self.model.time.finished), step)
        self.unread = None
        self.events += 1

    def send(self):
        if self.sent is not None:
            return self.receive()
        packed = self.model.send()
        self.eager.mix(self.model.time())
        assert_close(self.unpack(packed), self.eager.params)
        self.sent, self.unread = (self.eager.params, self.events), None

    def receive(self):
        sent, events = self.sent
        peer = random_like(self.rng, PARAMS)
        before = self.eager.params
        self.model.receive([np.asarray(x) for x in self.pack(peer)])
        self.eager.average(peer, sent)
        self.sent, self.unread = None, before
        self.averagings += 1
        self.seen.add("late" if events < self.events else "at once")

    def settle(self):
        now = self.model.time()
        params, state = self.model.settle()
        self.eager.mix(now)
        assert_close((params, state), (self.eager.params, self.eager.state))
        self.unread = None
        self.events += 1

    def snapshot(self):
        settled = bool(self.rng.integers(2))
        now = self.model.time()
        unread = self.unread is not None and not settled
        params, averagings = self.model.snapshot(settled)
        assert averagings == self.averagings - unread
        if self.unread is not None and settled:
            self.eager.mix(now)
            assert_close(params, self.eager.params)
            self.events += 1
            self.unread = None
            self.seen.add("settled snapshot")
        elif unread:
            self.seen.add("snapshot without the last averaging")


@pytest.mark.parametrize("seed", range(2))
@pytest.mark.parametrize("name", ALGORITHMS)
def test_averagings_that_wait_are_as_good_as_those_made_at_once(name, seed):
    schedule = asynchronous.in_global_steps(optax.linear_schedule(0.2, 0.0, 100))
    base = optax.inject_hyperparams(optax.sgd)(schedule, momentum=0.9)
    history = History(ALGORITHMS[name](base), seed)
    events = [history.update, history.send, history.settle, history.snapshot]
    for _ in range(150):
        event = history.rng.choice(4, p=[0.25, 0.5, 0.05, 0.2])
        if history.rng.integers(2):
            history.model.time.advance(history.rng, 15 / 16)
        events[event]()
    history.settle()
    assert history.seen == {
        "late",
        "at once",
        "settled snapshot",
        "snapshot without the last averaging",
    }


class Pair:
    """Two workers that exchange models, in an order that is drawn."""

    def __init__(self, algorithm, seed):
        self.rng = np.random.default_rng(seed)
        starts = [random_like(self.rng, PARAMS) for _ in range(2)]
        self.models = [make_model(algorithm, start) for start in starts]
        self.sent, self.open, self.late = [None, None], [False, False], 0
        self.sent_at = [0.0, 0.0]

    def update(self, which):
        grads = random_like(self.rng, PARAMS)
        self.models[which].update(grads, 0)
        return grads

    def exchange(self, which):
        model, other = self.models[which], 1 - which
        if self.sent[which] is None:
            self.sent[which], self.open[which] = model.send(), True
            self.sent_at[which] = model.time()
        elif self.sent[other] is not None and self.open[which]:
            self.late += self.sent_at[which] < model.time.finished
            arrived = [np.asarray(x) for x in self.sent[other]]
            model.receive(arrived)
            self.open[which] = False
            if self.open == [False, False]:
                self.sent = [None, None]

    def finish(self):
        while self.sent != [None, None]:
            for which in range(2):
                self.exchange(which)

    def total(self):
        """The sum that averagings keep: of all copies of the models."""
        states = [model.settle() for model in self.models]
        copies = [
            copy
            for params, state in states
            for copy in (params, getattr(state, "momentum", params))
        ]
        return jax.tree.map(lambda *xs: sum(xs), *copies)


def run_pair(pair, most):
    """Returns what the total should be."""
    expected = pair.total()
    for _ in range(200):
        which = int(pair.rng.integers(2))
        pair.models[which].time.advance(pair.rng, most)
        if pair.rng.random() < 0.3:
            moved = pair.update(which)
            expected = jax.tree.map(lambda x, g: x - 2 * 0.1 * g, expected, moved)
        else:
            pair.exchange(which)
    pair.finish()
    assert pair.late > 10
    return expected


@pytest.mark.parametrize("name", ALGORITHMS)
def test_exchanges_keep_the_sum_of_all_copies(name):
    pair = Pair(ALGORITHMS[name](optax.sgd(0.1)), seed=3)
    expected = run_pair(pair, 15 / 16)
    assert_close(pair.total(), expected)
    # They have met, and did exchange.
    first, second = (model.params["w"] for model in pair.models)
    assert np.abs(first - second).max() < 1


@pytest.mark.parametrize("name", ALGORITHMS)
def test_so_they_do_when_gradients_take_longer_than_expected(name):
    """A worker's time stands at its next gradient then; models are sent at that."""
    pair = Pair(ALGORITHMS[name](optax.sgd(0.1)), seed=3)
    expected = run_pair(pair, 1)
    assert_close(pair.total(), expected)


def test_time_is_that_of_the_worker(monkeypatch):
    """The flow of A²CiD² goes by the clock between events, and not by their number."""
    clock = clock_of(_model, monkeypatch)
    acid = ALGORITHMS["acid"](optax.sgd(0.0))
    momentum = jax.tree.map(lambda x: x + 1, PARAMS)
    model = Model(acid, PARAMS, acid.init(PARAMS)._replace(momentum=momentum))
    for _ in range(2):
        model.time.begin()
        clock.now += 2.0
        model.update(PARAMS, 0)
    model.time.begin()
    clock.now += 1.0  # Half a gradient.
    packed, (params, _) = model.send(), model.settle()
    expected, _ = acid.mix(PARAMS, acid.init(PARAMS)._replace(momentum=momentum), 2.5)
    assert_close(model.unpack(packed), expected)
    assert_close(params, expected)


def test_compiling_changes_nothing_and_is_all_that_compiles(caplog):
    acid = ALGORITHMS["acid"](optax.sgd(0.1, momentum=0.9))
    model = make_model(acid)
    state = model.state
    model.compile(jax.eval_shape(lambda: PARAMS))
    assert model.params is PARAMS and model.state is state
    assert model.time() == 0 and model.averagings == 0
    model.update(PARAMS, 0)
    with jax.log_compiles():
        for late in (False, True):
            sent = model.send()
            if late:
                model.update(PARAMS, 3)
            model.receive([np.array(x) for x in sent])
            model.time.share = 0.5
            model.snapshot(settled=True) if late else model.update(PARAMS, 3)
            model.settle()
    assert [r.message for r in caplog.records if "ompil" in r.message] == []
    assert [x.shape for x in model.send()] == [shape for shape, _ in model.layout]


def test_a_large_leaf_is_sent_where_it_is():
    large = {"x": jnp.zeros(2**18), "y": jnp.ones(3)}
    model = make_model(djax.adpsgd(optax.sgd(0.1)), large)
    model.time.share = 0.5
    assert model.send()[0] is large["x"]
    assert model.layout == [((2**18,), jnp.float32), ((3,), jnp.float32)]


# ---- Records and their report ----------------------------------------------------


def test_records_arrive_as_they_were(monkeypatch):
    clock = clock_of(_record, monkeypatch)
    record = Record()
    clock.now += 1
    record.gradient(0.25, staleness=3)
    record.look(1, np.float32([1, 2]))
    clock.now += 1
    record.gradient(1.5, staleness=0)
    record.averaging(7, 0.5)
    record.look(1, np.float32([3, 4]))
    packed = record.pack()
    assert all(x.dtype == np.uint8 and x.ndim == 1 for x in packed)
    found = Record.unpack([np.frombuffer(x.tobytes(), np.uint8) for x in packed])
    expected = {
        "gradients": np.array([[0.25, 1], [1.5, 2]]),
        "staleness": np.int32([3, 0]),
        "averagings": np.array([[0.5, 2.0]]),
        "peers": np.int32([7]),
        "looks": np.array([1.0, 2.0]),
        "sketches": np.float32([[1, 2], [3, 4]]),
    }
    assert list(found) == list(Record.NAMES)
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_worker_without_gradients_has_a_record():
    record = Record()
    record.look(1, np.zeros(5, np.float32))
    found = Record.unpack(record.pack())
    shapes = {name: array.shape for name, array in found.items()}
    assert shapes["gradients"] == shapes["averagings"] == (0, 2)
    assert shapes["staleness"] == shapes["peers"] == (0,)
    assert shapes["sketches"] == (1, 5)


def test_a_worker_without_looks_has_a_record():
    record = Record()
    record.gradient(0.0, 0)
    found = Record.unpack(record.pack())
    assert len(found["gradients"]) == 1 and len(found["sketches"]) == 0


def noted(gradients, meetings, looks=(), sketches=None):
    """A record; `gradients` are begin, end, staleness, `meetings` begin, end, peer."""
    gradients = np.array(gradients, np.float64).reshape(-1, 3)
    meetings = np.array(meetings, np.float64).reshape(-1, 3)
    return {
        "before": np.zeros(1, np.int32),
        "gradients": gradients[:, :2],
        "staleness": gradients[:, 2].astype(np.int32),
        "averagings": meetings[:, :2],
        "peers": meetings[:, 2].astype(np.int32),
        "looks": np.array(looks, np.float64),
        "look_numbers": np.arange(1, len(looks) + 1, dtype=np.int32),
        "sketches": np.array(sketches, np.float32),
    }


RECORDS = {
    1: noted([(0, 2, 5)], [(0.5, 0.8, 0), (4.4, 5.2, 0)]),
    0: noted([(0, 1, 1), (2, 4, 3)], [(0.5, 0.75, 1), (2.5, 3.0, 2), (4.5, 5.0, 1)]),
    2: noted([], [(2.4, 3.1, 0)]),
}
PAIRS = [[0, 2, 1], [2, 0, 0], [1, 0, 0]]


def make_report(records=RECORDS, lost=()):
    return Report.of(make_settings(topologies.star(3)), records, dict(lost))


def test_what_a_report_says():
    report = make_report()
    np.testing.assert_allclose(report.rate, [1, 0.5, 0.5])
    assert report.gradient_counts.tolist() == [2, 1, 0]
    assert report.pair_counts.tolist() == PAIRS
    assert report.averaging_counts.tolist() == [3, 2, 1]
    assert report.ends.tolist() == [4, 2, 0] and report.seconds == 4
    assert report.realized_rate.tolist() == [1, 1, 0]  # Those at 5 come too late.
    assert report.gradients_per_second.tolist() == [0.5, 0.5, 0]
    assert report.averagings_per_second.tolist() == [0.5, 0.5, 0]
    assert report.idle_share.tolist() == [0.25, 0, 0]
    assert report.staleness.tolist() == [1, 3, 5]
    assert repr(report).startswith("Report(3 workers: 3 gradients and 3 averagings in")


def test_one_rate_is_everyones():
    settings = make_settings(topologies.star(3), 2.5, pairing="first_free")
    assert Report.of(settings, RECORDS, {}).rate.tolist() == [2.5] * 3


def test_a_report_as_events():
    events = make_report().events
    assert events.time.tolist() == [0.75, 1, 2, 3, 4, 5] and events.duration == 5
    assert events.worker.tolist() == [0, 0, 1, 0, 0, 0]
    assert events.peer.tolist() == [1, -1, -1, 2, -1, 1]
    assert events.pair_counts.tolist() == PAIRS
    assert events.gradient_counts.tolist() == [2, 1, 0]
    assert len(make_report(dict.fromkeys(range(3), noted([], []))).events) == 0


@pytest.mark.parametrize("lost", range(3))
def test_survivors_know_whom_they_met(lost):
    records = {rank: record for rank, record in RECORDS.items() if rank != lost}
    report = make_report(records, {lost: "has failed"})
    assert report.pair_counts.tolist() == PAIRS
    assert report.events.pair_counts.tolist() == PAIRS
    counts = [2, 1, 0]
    counts[lost] = 0
    assert report.gradient_counts.tolist() == counts
    assert report.events.gradient_counts.tolist() == counts
    assert f"3 workers, lost [{lost}]: {sum(counts)} gradients" in repr(report)


def test_the_consensus_distance_is_the_models_variance():
    models = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)
    looks = np.arange(12.0).reshape(3, 4)
    counts = [4, 3, 4]  # One has not looked for the last time.
    records = {
        rank: noted([], [], looks[rank, :count], models[rank, :count])
        for rank, count in enumerate(counts)
    }
    report = make_report(records)
    exact = np.var(models[:, :3].astype(np.float64), axis=0).sum(-1)
    np.testing.assert_allclose(report.consensus_distance, exact, rtol=1e-12)
    assert report.look_times.tolist() == [4, 5, 6]


def test_a_timeline_in_chromes_format(tmp_path):
    make_report().save_trace(tmp_path / "trace.json")
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert all(event["ph"] in "MX" for event in events)
    threads = {}
    for rank in range(3):
        own = [event for event in events if event["pid"] == rank]
        names = [e["args"]["name"] for e in own if e["name"] == "process_name"]
        assert names == [f"worker {rank}"]
        for event in own:
            if event["name"] == "thread_name":
                threads[rank, event["tid"]] = event["args"]["name"]
        assert len([key for key in threads if key[0] == rank]) == 2
    spans = collections.defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            thread = threads[event["pid"], event["tid"]]
            spans[event["pid"], thread].append((event["ts"], event["dur"]))
    assert spans[0, "gradients"] == [(0, 1e6), (2e6, 2e6)]
    assert spans[1, "gradients"] == [(0, 2e6)] and (2, "gradients") not in spans
    assert spans[0, "averagings"] == [(5e5, 2.5e5), (2.5e6, 5e5), (4.5e6, 5e5)]
    assert [len(spans[rank, "averagings"]) for rank in range(3)] == [3, 2, 1]


# ---- Members ---------------------------------------------------------------------


class Network:
    """Channels between any two workers, in this process's memory."""

    def __init__(self, size):
        self.size = size
        self.channels = {
            (a, b): collections.deque()
            for a in range(size)
            for b in range(size)
            if a != b
        }
        self.forgotten = []

    def line(self, rank):
        """A worker's transport, as far as this file's workers need it."""

        def send(peer, header, buffers=()):
            self.channels[rank, peer].append((header, [np.array(b) for b in buffers]))

        def forget(peer):
            self.forgotten.append((rank, peer))

        return types.SimpleNamespace(send=send, forget=forget, survives=True)


def make_members(monkeypatch, size=3, **options):
    """Worker 0's view, the clock, and a function that says whom it has told what."""
    clock, network = clock_of(_members, monkeypatch), Network(size)
    settings = make_settings(topologies.complete(size), **options)
    members = Members(0, size, settings, network.line(0))

    def told():
        said = {
            peer: [json.loads(header) for header, _ in network.channels[0, peer]]
            for peer in range(1, size)
        }
        for channel in network.channels.values():
            channel.clear()
        return said

    return members, clock, told


def hear_status(members, sender, *status):
    members.hear(sender, Say.STATUS, list(status))


def test_who_is_silent_is_named_with_its_phase(monkeypatch):
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    hear_status(members, 1, 5, True, False, "computing gradient 6 for 1 s")
    for seconds in (4, 3):
        clock.now += seconds
        assert members.silent() == {}
    members.hear(2, Say.PAIR, [1])  # Any message is a sign of life.
    clock.now += 1.5
    silent = members.silent()
    assert silent == {1: "was not heard of for 8 s, last computing gradient 6 for 1 s"}
    members.lose(1, silent[1])
    assert members.silent() == {}
    clock.now += 4
    assert members.silent() == {}
    clock.now += 4
    assert members.silent() == {2: "was not heard of for 8 s, last starting"}


def test_who_was_away_itself_listens_before_it_gives_others_up(monkeypatch):
    """Its process was stopped: what others have said meanwhile is still unread."""
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    clock.now += 100
    assert members.silent() == {}
    members.hear(2, Say.PAIR, [1])
    for seconds in (4, 3.5):
        clock.now += seconds
        assert members.silent() == {}
    members.hear(2, Say.PAIR, [1])
    clock.now += 1
    assert list(members.silent()) == [1]


def stay(members, clock, seconds, statuses):
    """Time passes in which others say that they live, in what phase whatever."""
    end, found = clock.now + seconds, {}
    while clock.now < end:
        clock.now += 1
        for peer, status in statuses.items():
            hear_status(members, peer, *status, f"busy for {clock.now:.0f} s")
        members.tell()
        found |= members.silent()
    return found


def test_who_keeps_all_others_waiting_is_named(monkeypatch):
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    one_works = {1: (9, True, False), 2: (9, True, True)}
    members.own = Status(9, True, False)
    assert stay(members, clock, 50, one_works) == {}  # So does this one.
    members.own.done = True
    assert stay(members, clock, 8, one_works) == {}
    one_works[1] = (10, True, False)  # A gradient at last.
    assert stay(members, clock, 8, one_works) == {}
    found = stay(members, clock, 2, one_works)
    assert found == {1: f"has held up everyone: busy for {clock.now:.0f} s"}


def test_who_does_not_get_ready_has_ten_times_as_long(monkeypatch):
    members, clock, _ = make_members(monkeypatch, timeout=8.0)
    one_compiles = {1: (0, False, False), 2: (0, True, False)}
    members.own.ready = True
    assert stay(members, clock, 80, one_compiles) == {}
    assert list(stay(members, clock, 2, one_compiles)) == [1]


def test_gradients_are_counted_as_far_as_they_are_known(monkeypatch):
    members, *_ = make_members(monkeypatch)
    members.own.gradients = 4
    hear_status(members, 1, 10, True, False, "")
    hear_status(members, 2, 20, True, False, "")
    assert members.gradients == 34 and members.alive == [0, 1, 2]
    members.lose(1, "has died")
    hear_status(members, 1, 99, True, False, "")  # Too late.
    assert members.gradients == 34 and members.alive == [0, 2]
    assert members.lost == {1: "has died"}
    assert members.everyone == [members.own, members.others[2]]


def test_a_loss_is_told_to_everyone(monkeypatch):
    members, _, told = make_members(monkeypatch)
    members.lose(2, "has died")
    lost = [["lost", 2, "has died"]]
    assert told() == {1: lost, 2: lost}


def test_statuses_are_told_when_they_matter(monkeypatch):
    members, clock, told = make_members(monkeypatch, gradients=120, timeout=10.0)

    def tells(**changes):
        for name, value in changes.items():
            setattr(members.own, name, value)
        members.tell()
        said = told()
        assert said[1] == said[2] and len(said[1]) <= 1
        return bool(said[1])

    assert not tells()
    assert not tells(gradients=8)  # Of 112 that are left, 8 matter little,
    assert tells(gradients=9)  # and a twelfth does.
    hear_status(members, 1, 100, True, False, "")
    assert tells(gradients=10)  # Of 11 each does.
    assert not tells()
    assert tells(ready=True) and tells(done=True) and not tells(phase="idle")
    clock.now += 1.9
    assert not tells()
    clock.now += 0.2
    assert tells() and not tells()  # A fifth of the timeout is over.


def test_what_changes_while_it_is_told_is_told_next(monkeypatch):
    """The other thread gets ready while this one sends."""
    members, _, told = make_members(monkeypatch, gradients=12)
    send = members._transport.send

    def get_ready(*message):
        send(*message)
        members.own.ready = True

    members._transport.send = get_ready
    members.own.gradients = 5
    members.tell()
    members.tell()
    assert [status[2] for status in told()[1]] == [False, True]


def test_a_run_for_a_time_counts_nothing(monkeypatch):
    members, clock, told = make_members(monkeypatch, gradients=None, seconds=9.0)
    members.own.gradients = 50
    members.tell()
    assert told() == {1: [], 2: []}
    members.own.ready = True
    members.tell()
    assert told()[2] == [["status", 50, True, False, "starting", False]]


# ---- The end ---------------------------------------------------------------------


class Worker:
    """One that has done its part, and only takes part in the end."""

    def __init__(self, rank, network, model):
        settings = make_settings(topologies.complete(network.size))
        self.members = Members(rank, network.size, settings, network.line(rank))
        record = Record()
        record.gradient(float(rank), rank)
        record.look(1, np.full(3, rank, np.float32))
        layout = [(x.shape, x.dtype) for x in model]
        self.ending = Ending(
            self.members, lambda: [*map(as_bytes, model), *record.pack()], layout
        )
        self.over = False

    def advance(self):
        self.over = self.over or self.ending.advance()

    def lose(self, peer):
        if peer not in self.members.lost:
            self.members.lose(peer, "has died")

    def handle(self, sender, header, buffers):
        kind, *content = json.loads(header)
        if sender not in self.members.others:
            return
        if kind == Say.LOST:
            self.lose(content[0])
        else:
            self.ending.hear(sender, kind, content, buffers)


def models_of(size, dtype):
    first = [[256, 1, 1, 5][rank] for rank in range(size)]  # 256 + 1 == 256 there.
    return [
        [jnp.asarray([x, rank], dtype), values((2, 3), "float32", rank)]
        for rank, x in enumerate(first)
    ]


def end_together(models, rng, dies_after=math.inf, patient=True):
    """Delivers messages in random order until all have left.

    Args:
      models: of the workers.
      rng: draws the order.
      dies_after: number of messages after which worker 0 does nothing any more.
      patient: whether nobody notices before all messages have arrived; or else, before
        those of worker 0 have arrived there.

    Returns:
      The workers that have not died.
    """
    network = Network(len(models))
    workers = [Worker(rank, network, model) for rank, model in enumerate(models)]
    living, count = dict(enumerate(workers)), 0
    for worker in workers:
        worker.advance()
    while True:
        if count >= dies_after:
            living.pop(0, None)
        here = [rank for rank, worker in living.items() if not worker.over]
        if not here:
            return list(living.values())
        moving = [
            ends
            for ends, queue in network.channels.items()
            if queue and ends[1] in here
        ]
        noticing = []
        if 0 not in living and not (patient and moving):
            noticing = [
                (0, rank)
                for rank in here
                if (0, rank) not in moving and 0 in workers[rank].members.others
            ]
        choices = moving + noticing
        assert choices, "all wait for ever"
        sender, receiver = choices[rng.integers(len(choices))]
        if (sender, receiver) in moving:
            message = network.channels[sender, receiver].popleft()
            workers[receiver].handle(sender, *message)
        else:
            workers[receiver].lose(sender)
        workers[receiver].advance()
        if workers[receiver].over:  # Nobody leaves before everyone has the result.
            assert all(worker.ending.result for worker in living.values())
        count += 1


def check_results(workers, models):
    """All have the same; returns whose it is."""
    ranks = sorted(workers[0].ending.result.records)
    for worker in workers:
        mean, records = worker.ending.result
        assert sorted(records) == ranks
        for rank, record in records.items():
            assert record["gradients"][:, 0].tolist() == [rank]
            assert record["staleness"].tolist() == [rank]
            np.testing.assert_array_equal(record["sketches"], [[rank] * 3])
        for k, ours in enumerate(mean):
            theirs = [np.asarray(models[rank][k], np.float64) for rank in ranks]
            assert ours.dtype == models[0][k].dtype
            exact = np.float32(np.mean(theirs, 0)).astype(ours.dtype)
            np.testing.assert_allclose(
                np.float32(ours), np.float32(exact), rtol=1e-6, atol=1e-6
            )
    return ranks


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("size", [1, 3])
def test_all_end_with_the_mean_and_all_records(size, dtype):
    models = models_of(size, dtype)
    workers = end_together(models, np.random.default_rng(size))
    assert len(workers) == size
    assert check_results(workers, models) == list(range(size))


@pytest.mark.parametrize("patient", [True, False])
def test_when_the_root_is_lost_the_next_one_starts_over(patient):
    models, rng = models_of(4, "bfloat16"), np.random.default_rng(0)
    seen = collections.Counter()
    for dies_after in range(18):
        for _ in range(4):
            survivors = end_together(models, rng, dies_after, patient)
            assert {worker.members.rank for worker in survivors} >= {1, 2, 3}
            seen[len(check_results(survivors, models))] += 1
    assert seen[3] > 10 and seen[4] > 10  # Before, and after it had sent the mean.


def test_another_loss_does_not_stop_the_end():
    """Worker 2 dies before it has sent anything; the root learns of it late."""
    models = models_of(3, "float32")
    network = Network(3)
    workers = [Worker(rank, network, models[rank]) for rank in range(2)]
    for _ in range(2):
        for receiver, worker in enumerate(workers):
            worker.advance()
            channel = network.channels[1 - receiver, receiver]
            while channel:
                worker.handle(1 - receiver, *channel.popleft())
    assert not any(worker.over for worker in workers)
    workers[0].lose(2)
    for _ in range(3):
        for receiver, worker in enumerate(workers):
            channel = network.channels[1 - receiver, receiver]
            while channel:
                worker.handle(1 - receiver, *channel.popleft())
            worker.advance()
    assert all(worker.over for worker in workers)
    assert check_results(workers, models) == [0, 1]
    assert set(network.forgotten) == {(0, 2), (1, 2)}


def test_who_has_the_result_can_leave_after_one_that_has_left():
    """The root dies between telling two others that it has the result."""
    models, network = models_of(3, "float32"), Network(3)
    workers = [Worker(rank, network, model) for rank, model in enumerate(models)]

    def deliver(sender, receiver):
        while network.channels[sender, receiver]:
            message = network.channels[sender, receiver].popleft()
            workers[receiver].handle(sender, *message)
        workers[receiver].advance()

    for worker in workers:
        worker.advance()
    deliver(1, 0)
    deliver(2, 0)  # The root sends the mean, and its last words after it.
    network.channels[0, 2].pop()  # Which do not reach worker 2.
    deliver(0, 2)
    deliver(0, 1)
    deliver(2, 1)
    assert workers[1].over and not workers[2].over
    deliver(1, 2)
    workers[2].lose(0)
    workers[2].advance()
    assert workers[2].over
    assert check_results(workers[1:], models) == [0, 1, 2]


# ---- Sockets ---------------------------------------------------------------------


class Comm:
    """MPI, as far as it is needed, between threads of this process."""

    def __init__(self, rank, barrier, shared):
        self.rank, self.size = rank, barrier.parties
        self._barrier, self._shared = barrier, shared

    def allgather(self, value):
        self._shared[self.rank] = value
        self._barrier.wait(10)
        values = list(self._shared)
        self._barrier.wait(10)
        return values


def connect(monkeypatch, hosts):
    """Transports of workers on these machines, none of which starts MPI."""
    pytest.importorskip("zmq")
    names = {}
    mpi = types.SimpleNamespace(Get_processor_name=lambda: names[threading.get_ident()])
    monkeypatch.setitem(sys.modules, "mpi4py", types.SimpleNamespace(MPI=mpi))
    barrier, shared = threading.Barrier(len(hosts)), [None] * len(hosts)
    transports = [None] * len(hosts)

    def make(rank):
        names[threading.get_ident()] = hosts[rank]
        transports[rank] = ZMQTransport(Comm(rank, barrier, shared))

    threads = [threading.Thread(target=make, args=(r,)) for r in range(len(hosts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return transports


@pytest.fixture
def sockets(monkeypatch):
    opened = []

    def make(*hosts):
        opened.extend(connect(monkeypatch, hosts))
        return opened[-len(hosts) :]

    yield make
    for transport in opened:
        if not transport._inbox.closed:
            transport.close()


def take(transport, count):
    messages, end = [], time.monotonic() + 20
    while len(messages) < count and time.monotonic() < end:
        messages += transport.poll(1.0)
    assert len(messages) == count
    return messages


@pytest.mark.parametrize("hosts", [["here"] * 3, ["localhost", "127.0.0.1"]])
def test_messages_arrive_in_order(sockets, hosts):
    transports = sockets(*hosts)
    sizes = [0, 1, 1000, 3 * 2**20, 7, 2**20]
    sent = [np.random.default_rng(n).bytes(n) for n in sizes]
    arrays = [np.frombuffer(data, np.uint8) for data in sent]
    for rank, transport in enumerate(transports):
        for peer in range(len(transports)):
            if peer != rank:
                for number, array in enumerate(arrays):
                    transport.send(peer, b"%d %d" % (rank, number), [array, arrays[1]])
                transport.send(peer, b"end")
    for rank, transport in enumerate(transports):
        messages = take(transport, (len(transports) - 1) * (len(sizes) + 1))
        for peer in set(range(len(transports))) - {rank}:
            own = [message for message in messages if message.sender == peer]
            heads = [b"%d %d" % (peer, number) for number in range(len(sizes))]
            assert [message.header for message in own] == [*heads, b"end"]
            assert [m.buffers[0].tobytes() for m in own[:-1]] == sent
            assert all(m.buffers[1].tobytes() == sent[1] for m in own[:-1])
            assert own[-1].buffers == []


def test_waking_ends_one_wait(sockets):
    transport, _ = sockets("here", "here")
    threading.Timer(0.05, transport.wake).start()
    began = time.perf_counter()
    assert transport.poll(30.0) == []
    assert time.perf_counter() - began < 15
    began = time.perf_counter()
    assert transport.poll(0.1) == []  # It is not woken again.
    assert 0.09 < time.perf_counter() - began < 15


def test_who_is_forgotten_gets_nothing_any_more(sockets):
    first, second = sockets("here", "here")
    first.send(1, b"before")
    assert take(second, 1)[0].header == b"before"
    first.forget(1)
    first.forget(1)
    first.send(1, b"after")
    assert second.poll(0.1) == []
    second.send(0, b"a last word")
    assert take(first, 1)[0].header == b"a last word"


def test_what_was_sent_arrives_after_the_sender_has_closed(sockets):
    first, second = sockets("here", "here")
    large = np.arange(2**20, dtype=np.uint32).view(np.uint8)
    for _ in range(16):
        first.send(1, b"large", [large])
    first.close()
    for message in take(second, 16):
        np.testing.assert_array_equal(message.buffers[0], large)


def test_strangers_are_not_heard(sockets):
    import zmq

    first, second = sockets("here", "here")
    with zmq.Context() as context, context.socket(zmq.DEALER) as stranger:
        stranger.setsockopt(zmq.LINGER, 0)
        stranger.connect(second._inbox.getsockopt_string(zmq.LAST_ENDPOINT))
        stranger.send_multipart([encode(Say.LOST, 0, "so I say")])
        assert second.poll(1.0) == []
        first.send(1, b"hello")
        assert [message.header for message in take(second, 1)] == [b"hello"]
