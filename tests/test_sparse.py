"""Averaging of few coordinates: which they are, what travels, and what is refused."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references
import scipy.stats
from test_golden import GOLDEN, assert_close, trajectory

import djax
from djax import communicators, compressors, testing, topologies
from djax.corrections import _coordinates, _sparse

N = 8
RING, WORKERS = topologies.ring(N), communicators.simulated(N)
GOSSIP, EXACT = djax.gossip(RING, WORKERS), djax.all_reduce(WORKERS)
KEY = jax.random.key(0)

SPARTA = dict(np.load(GOLDEN / "misc_n8.npz"))
CASES = json.loads((GOLDEN / "misc_n8.json").read_text())
CASES = {name: case for name, case in CASES.items() if name.startswith("sparta")}


@pytest.mark.parametrize("case", CASES)
def test_follows_the_published_code(case, monkeypatch, as_users):
    """With the masks that the published code has drawn."""
    options, masks = CASES[case], SPARTA[f"mask__{case}"]
    sizes = masks.sum(1)
    places = np.full((len(masks), sizes.max()), masks.shape[1], np.int32)
    for row, mask in zip(places, masks, strict=True):
        row[: mask.sum()] = np.flatnonzero(mask)

    def select(selection, fraction, key, step, leaves):
        return [jnp.asarray(places)[step]]

    monkeypatch.setattr(_sparse, "select", select)
    rate = options["lr"]
    adamw = optax.adamw(rate, b1=0.9, b2=0.95, weight_decay=0.1)
    averaging = djax.sparse(EXACT, options["p"], selection=options["sel"])
    optimizer = optax.chain(
        optax.sgd(rate) if options["inner"] == "sgd" else adamw, averaging
    )
    problem = SPARTA | {"kept_steps": np.arange(options["steps"] + 1)}
    with jax.enable_x64(True):
        actual = trajectory(optimizer, WORKERS, problem, lambda x: x, lambda x: x)
    assert_close(actual, SPARTA[f"x__{case}"])


@pytest.mark.parametrize("case", [c for c in CASES if "random" not in c])
def test_parts_have_the_sizes_of_the_published_code(case):
    options, masks = CASES[case], SPARTA[f"mask__{case}"]
    steps, size = jnp.arange(len(masks), dtype=jnp.int32), masks.shape[1]
    (places,) = selected(options["sel"], options["p"], steps, [size])
    np.testing.assert_array_equal((places < size).sum(1), masks.sum(1))


def selected(selection, fraction, steps, sizes):
    """`int32[steps, k]` for each leaf."""

    def at(step):
        return _sparse.select(selection, fraction, KEY, step, sizes)

    return [np.asarray(x) for x in jax.jit(jax.vmap(at))(steps)]


SIZES = [1, 2, 3, 7, 48, 0, 500]


@pytest.mark.parametrize("selection", ["shuffled", "partitioned"])
@pytest.mark.parametrize("fraction", [1.0, 0.3, 0.01])
def test_each_coordinate_has_its_turn_once_in_a_cycle(selection, fraction):
    parts = int(np.ceil(1 / fraction))
    steps = jnp.arange(2 * parts, dtype=jnp.int32)
    for size, places in zip(
        SIZES, selected(selection, fraction, steps, SIZES), strict=True
    ):
        period = min(parts, max(1, size)) if selection == "partitioned" else parts
        cycles = places[: 2 * period].reshape(2, -1)
        for cycle in cycles:
            inside = cycle[cycle < size]
            np.testing.assert_array_equal(np.sort(inside), np.arange(size))
        counts = (places < size).sum(1)
        assert counts.max() - counts.min() <= 1
        if size == 500 and fraction < 1:
            again = (cycles[0] == cycles[1]).all()
            assert again == (selection == "shuffled")


def test_all_orders_are_equally_probable():
    def order(key):
        (tables,) = _coordinates._orders(key, {4: 1})
        return _coordinates._permuted(tables, jnp.arange(4, dtype=jnp.int32), 4)[0]

    orders = jax.jit(jax.vmap(order))(jax.random.split(KEY, 24_000))
    _, counts = np.unique(orders, axis=0, return_counts=True)
    assert len(counts) == 24 and scipy.stats.chisquare(counts).pvalue > 1e-3


@pytest.mark.parametrize(
    ("fraction", "size"), [(0.3, 50), (0.005, 2000), (1.0, 7), (1e-9, 5), (0.97, 30)]
)
def test_random_coordinates_are_independent_of_each_other(fraction, size):
    times = 4000
    steps = jnp.arange(times, dtype=jnp.int32)
    (places,) = selected("random", fraction, steps, [size])
    assert (np.diff(places, axis=1) >= (places[:, 1:] < size)).all()
    mask = np.zeros((times, size + 1), bool)
    np.put_along_axis(mask, places, True, axis=1)
    mask = mask[:, :-1]
    variance = fraction * (1 - fraction)
    for found in (mask.mean(0).mean(), mask[:, : size // 2].mean()):
        deviation = (variance / times / (size // 2)) ** 0.5
        assert abs(found - fraction) <= 5 * deviation + 1e-8
    counts, neighbours = mask.sum(1), (mask[:, 1:] & mask[:, :-1]).mean()
    assert abs(counts.var() - size * variance) <= 0.15 * size * variance + 1e-8
    assert abs(neighbours - fraction**2) <= 6 * (fraction**2 / times / size) ** 0.5


@pytest.mark.parametrize(("fraction", "size"), [(0.005, 10**6), (0.3, 10), (1.0, 4)])
def test_there_is_room_for_nearly_every_draw(fraction, size):
    room = _coordinates.capacity(fraction, size)
    more_than = scipy.stats.binom(size, fraction).sf
    assert more_than(room) < 1e-9 and (room == size or more_than(room - 1) >= 1e-9)


def test_what_does_not_fit_is_left_out():
    """The rest of the leaf, on all workers alike, and no coordinate twice."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_coordinates, "capacity", lambda fraction, size: 3)
        (places,) = selected("random", 0.9, jnp.arange(50, dtype=jnp.int32), [20])
    assert places.shape == (50, 3) and (np.diff(places, axis=1) > 0).all()


@pytest.mark.parametrize("selection", ["shuffled", "partitioned"])
def test_parts_match_the_dense_reference(selection):
    """The random selection is in the table of all mechanisms."""

    def reference(*args):
        *some, matrices = args
        return references.sparse(selection, 0.4)(*some, matrices[0])

    testing.assert_matches(
        lambda graph, workers: djax.sparse(
            djax.gossip(graph, workers), 0.4, selection=selection
        ),
        reference,
        RING,
        [WORKERS],
        dtype="float64",
    )


@pytest.mark.parametrize(
    ("selection", "count"),
    [("random", 5429 + 23), ("shuffled", 5000 + 5), ("partitioned", 5000 + 5)],
)
def test_the_cost_is_what_travels(selection, count):
    params = {
        "w": jax.ShapeDtypeStruct((1000, 1000), "float32"),
        "b": jax.ShapeDtypeStruct((1000,), "float32"),
    }
    for mechanism, copies in ((EXACT, 1), (GOSSIP, 2)):
        averaging = djax.sparse(mechanism, 0.005, selection=selection)
        cost = djax.communication_cost(averaging, params, WORKERS)
        assert cost.bytes_per_step == (copies * 4 * count,) * N
        rarely = djax.communication_cost(djax.every(4, averaging), params, WORKERS)
        assert rarely.mean_bytes == copies * count


@pytest.mark.parametrize("selection", ["random", "shuffled", "partitioned"])
def test_no_array_of_a_step_is_as_long_as_a_leaf_but_what_holds_it(selection):
    """Nothing of a leaf's size is drawn or sorted; it is read and written in place."""
    size = 10**6
    averaging = djax.sparse(GOSSIP, 0.005, selection=selection)
    x = jnp.zeros((N, size))
    state = jax.eval_shape(WORKERS.spmd(averaging.init), x)
    update = jax.make_jaxpr(WORKERS.spmd(averaging.update))(x, state, x)
    large = [
        equation.primitive.name
        for equation in update.jaxpr.eqns
        if any(v.aval.size >= size for v in equation.outvars)
    ]
    assert set(large) == {"scatter"}


def test_local_coordinates_stay_as_the_local_step_made_them():
    x = jnp.asarray(np.random.default_rng(0).normal(size=(N, 12)), jnp.float32)
    averaging = djax.sparse(EXACT, 0.25, selection="shuffled")

    def worker(x):
        state = averaging.init(x)
        u, state = averaging.update(0.5 * x, state, x)
        return x + u

    moved = np.asarray(jax.jit(WORKERS.spmd(worker))(x))
    mean = np.broadcast_to(1.5 * x.mean(0, keepdims=True), x.shape)
    averaged = np.isclose(moved, mean, atol=1e-5).all(0)
    assert averaged.sum() == 3
    np.testing.assert_array_equal(moved[:, ~averaged], (x + 0.5 * x)[:, ~averaged])


def relative_spread(mechanism, steps):
    x = testing.run(mechanism, WORKERS, steps=steps, learning_rate=0.0)
    start = testing.quadratics(N).start
    return x.std(0).max() / start.std(0).max()


def test_works_inside_and_outside_of_others():
    sparse = djax.sparse(djax.every(2, GOSSIP), 0.5)
    assert relative_spread(djax.every(2, sparse), 500) < 1e-3
    bodies = djax.sparse(djax.only({"b": True, "w": False}, EXACT), 0.5)
    found = testing.run(bodies, WORKERS, steps=40, learning_rate=0.0)
    assert found[:, :2].std(0).max() < 1e-6 < found[:, 2:].std(0).min()
    some = djax.interleave([djax.sparse(EXACT, 1.0), GOSSIP])
    assert relative_spread(some, 100) < 1e-3


def test_reaches_the_optimum_with_gradient_tracking():
    tracking = djax.gradient_tracking(djax.sparse(GOSSIP, 0.5))
    found = testing.run(tracking, WORKERS, steps=4000, learning_rate=0.01)
    optimum = testing.quadratics(N).optimum
    np.testing.assert_allclose(found, np.tile(optimum, (N, 1)), atol=1e-4)


def test_goes_before_outer_steps():
    """Sparse averages in each step, and a step of DiLoCo after every fourth one."""
    outer = djax.outer(4, optax.sgd(1.0), EXACT)
    optimizer = optax.chain(djax.sparse(EXACT, 0.3), outer)
    params = jax.ShapeDtypeStruct((1000,), "float32")
    room = _coordinates.capacity(0.3, 1000)
    cost = djax.communication_cost(optimizer, params, WORKERS)
    assert cost.mean_bytes == 4 * (room + 1000 / 4)
    found = testing.run(optimizer, WORKERS, steps=8)
    np.testing.assert_allclose(found, np.tile(found[:1], (N, 1)), atol=1e-6)


def test_check_accepts_it_and_finds_a_wrong_order():
    params = {"w": jax.ShapeDtypeStruct((30, 20), "float32")}
    averaging = djax.sparse(GOSSIP, 0.05)
    djax.check(optax.chain(optax.sgd(0.1), averaging), WORKERS, params)
    with pytest.raises(ValueError, match="do not come together"):
        djax.check(optax.chain(averaging, optax.sgd(0.1)), WORKERS, params)


@pytest.mark.parametrize(
    "key", [None, jax.random.key(3), jax.random.PRNGKey(3), jax.random.key(3)]
)
def test_the_key_is_compared_between_ranks(key, monkeypatch):
    given = {}
    monkeypatch.setattr(_sparse, "check_same", lambda *a, **facts: given.update(facts))
    averaging = djax.sparse(GOSSIP, 0.5, key=key)
    WORKERS.spmd(averaging.init)(jnp.zeros((N, 3)))
    expected = jax.random.key(0 if key is None else 3)
    assert (jax.random.key_data(given["key"]) == jax.random.key_data(expected)).all()
    assert given["fraction"] == 0.5 and given["selection"] == "random"


DIRECTED = topologies.from_matrices([[[0.5, 0.25], [0.5, 0.75]]])
TWO = communicators.simulated(2)
PAIRS = djax.gossip(topologies.base_graph(N), WORKERS)
TREE = topologies.chain(N)

REFUSED = {
    "no fraction": (lambda: djax.sparse(GOSSIP, 0.0), r"fraction must be in \(0, 1\]"),
    "a selection": (
        lambda: djax.sparse(GOSSIP, 0.1, selection="cyclic"),
        "selection must be one of 'random', 'shuffled', 'partitioned'; got 'cyclic'",
    ),
    "an optimizer": (
        lambda: djax.sparse(djax.quasi_global_momentum(0.1, GOSSIP), 0.1),
        "give sparse the mechanism alone",
    ),
    "a chain": (
        lambda: djax.sparse(optax.chain(optax.sgd(0.1), GOSSIP), 0.1),
        "sparse takes a mechanism alone",
    ),
    "weights of models": (
        lambda: djax.sparse(djax.push_sum(DIRECTED, TWO), 0.1),
        "push_sum has one weight for all coordinates.*doubly stochastic",
    ),
    "in step with a schedule": (
        lambda: djax.sparse(PAIRS, 1 / 3, selection="shuffled"),
        'the 3 parts take turns .* of gossip.*use selection="partitioned"',
    ),
    "in step with local steps": (
        lambda: djax.sparse(djax.every(2, GOSSIP), 0.5, selection="shuffled"),
        "the 2 parts take turns in step with the 2 matrices",
    ),
    "d2 around it": (
        lambda: djax.d2(djax.sparse(GOSSIP, 0.5)),
        "sparse averages some of them .* use gradient_tracking in place of d2",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_goes_wrong_is_refused(name):
    make, message = REFUSED[name]
    with pytest.raises(ValueError, match=message):
        make()


def test_turns_that_meet_all_matrices_are_taken():
    averaging = djax.sparse(PAIRS, 0.5, selection="shuffled")
    assert PAIRS.graph.period == 3 and relative_spread(averaging, 400) < 1e-3
    djax.sparse(PAIRS, 1 / 3, selection="partitioned")
    djax.sparse(djax.every(2, GOSSIP), 0.5)


HOLDS_COORDINATES = {
    "choco_gossip": djax.choco_gossip(RING, WORKERS, compressors.top_k(0.5), 0.3),
    "deep_squeeze": djax.deep_squeeze(RING, WORKERS, compressors.top_k(0.5), 0.05),
    "dcd": djax.dcd(RING, WORKERS, compressors.quantize(8)),
    "relay": djax.relay(TREE, WORKERS),
    "all_reduce": djax.all_reduce(WORKERS, overlap=True),
    "d2": djax.d2(GOSSIP),
    "every": djax.every(2, djax.relay(TREE, WORKERS)),
}


@pytest.mark.parametrize("name", HOLDS_COORDINATES)
def test_states_of_coordinates_are_refused(name):
    averaging = djax.sparse(HOLDS_COORDINATES[name], 0.5)
    with pytest.raises(
        ValueError, match=f"but {name} keeps a state for each.*use gossip or all_reduce"
    ):
        WORKERS.spmd(averaging.init)({"w": jnp.zeros((N, 6))})


def test_compression_of_matrices_is_refused():
    averaging = djax.sparse(djax.power_gossip(RING, WORKERS), 0.5)
    with pytest.raises(ValueError, match="power_gossip without sparse"):
        WORKERS.spmd(averaging.init)({"w": jnp.zeros((N, 6, 2))})


def test_leaves_that_are_too_large_to_be_numbered_are_refused():
    averaging = djax.sparse(GOSSIP, 0.5)
    large = {"w": jax.ShapeDtypeStruct((2**16, 2**15), "float32")}
    with pytest.raises(ValueError, match=r"params\['w'\] has 2147483648 coordinates"):
        jax.eval_shape(averaging.init, large)


def test_overlap_and_other_dtypes():
    averaging = djax.sparse(djax.gossip(RING, WORKERS, overlap=True), 0.5)
    found = testing.run(averaging, WORKERS, steps=4, dtype="bfloat16")
    assert averaging.overlap and found.dtype == jnp.bfloat16
