"""A worker's model, which gradients and averagings change at the same time."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from asynchronous_parts import clock_of, values

import djax
from djax import asynchronous, topologies
from djax.asynchronous.runtime import _own_time
from djax.asynchronous.runtime._model import Model
from djax.transport import Packing

pytestmark = pytest.mark.usefixtures("as_users")


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
        self.packing = Packing(PARAMS)
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
        assert_close(self.packing.unpack(packed), self.eager.params)
        self.sent, self.unread = (self.eager.params, self.events), None

    def receive(self):
        sent, events = self.sent
        peer = random_like(self.rng, PARAMS)
        before = self.eager.params
        self.model.receive([np.asarray(x) for x in self.packing.pack(peer)])
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
    clock = clock_of(_own_time, monkeypatch)
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
    assert_close(model.packing.unpack(packed), expected)
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
    shapes = [shape for shape, _ in model.packing.layout]
    assert [x.shape for x in model.send()] == shapes


def test_a_large_leaf_is_sent_where_it_is():
    large = {"x": jnp.zeros(2**18), "y": jnp.ones(3)}
    model = make_model(djax.adpsgd(optax.sgd(0.1)), large)
    model.time.share = 0.5
    assert model.send()[0] is large["x"]
    assert model.packing.layout == [((2**18,), jnp.float32), ((3,), jnp.float32)]
