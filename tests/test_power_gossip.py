"""Tests of PowerGossip beyond the common and the golden ones."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import networkx as nx
import numpy as np
import optax
import pytest

import djax
from djax import communicators, metrics, topologies
from djax.mechanisms._power_gossip import blocks as _blocks
from djax.mechanisms._power_gossip import orthonormal as _orthonormal
from djax.mechanisms._power_gossip import products as _products
from djax.mechanisms._power_gossip import rows as _rows
from experiments.powergossip.published import resnet20_shapes

SIZE = 8
RING, COMMUNICATOR = topologies.ring(SIZE), communicators.simulated(SIZE)


@pytest.fixture(autouse=True)
def double_precision():
    with jax.enable_x64(True):
        yield


def run(mechanism, x, updates=None, *, steps=1, communicator=None):
    """Feeds `updates [workers, steps, ...]`, or none; returns the last x and state."""
    communicator = communicator or communicators.simulated(len(jax.tree.leaves(x)[0]))
    if updates is None:
        updates = jax.tree.map(
            lambda v: jnp.zeros((len(v), steps, *v.shape[1:]), v.dtype), x
        )

    def worker(x, updates):
        def step(carry, u):
            x, state = carry
            u, state = mechanism.update(u, state, x)
            return (optax.apply_updates(x, u), state), None

        return jax.lax.scan(step, (x, mechanism.init(x)), updates)[0]

    return jax.jit(communicator.spmd(worker))(x, updates)


def normal(seed, *shape):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape))


def by_edge(factor, topology):
    """`[workers, rounds, ...]` to a list of what both ends of each edge hold."""
    return [
        (factor[i, r], factor[source[i], r])
        for r, source in enumerate(topology.rounds)
        for i in range(topology.size)
        if source[i] > i
    ]


@pytest.mark.parametrize("iterations", [1, 2])
def test_full_rank_on_square_matrices_is_gossip(iterations):
    x = {"w": normal(0, SIZE, 5, 5), "b": normal(1, SIZE, 3)}
    power = djax.power_gossip(
        RING, COMMUNICATOR, 5, iterations, consensus_rate=0.9, vector_rate=0.9
    )
    actual, _ = run(power, x, steps=7)
    mixing = np.eye(SIZE) + 0.9 * (RING.mixing_matrix - np.eye(SIZE))
    for leaf, times in (("w", 7 * iterations), ("b", 7)):
        mixed = np.tensordot(np.linalg.matrix_power(mixing, times), x[leaf], 1)
        np.testing.assert_allclose(actual[leaf], mixed, atol=1e-7)


@pytest.mark.slow
@hypothesis.given(rank=st.integers(1, 3), seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=4)
def test_a_low_rank_difference_is_gone_once_the_basis_has_turned_to_it(rank, seed):
    """Of two workers: after one iteration on each side."""
    with jax.enable_x64(True):
        pair = topologies.complete(2)
        common, columns, rows = (
            normal(seed + i, *shape)
            for i, shape in enumerate([(9, 6), (9, rank), (rank, 6)])
        )
        x = jnp.stack([common, common + columns @ rows])
        power = djax.power_gossip(pair, communicators.simulated(2), rank)
        last, _ = run(power, x, steps=4)
    assert jnp.abs(last[1] - last[0]).max() < 1e-7 * jnp.abs(x[1] - x[0]).max()
    np.testing.assert_allclose(last.mean(0), x.mean(0), atol=1e-13)


@pytest.mark.slow
def test_the_mean_stays_on_any_graph():
    x = {"w": normal(0, 9, 6, 4), "b": normal(1, 9, 3), "s": normal(2, 9)}
    for seed in range(4):
        tree = nx.random_labeled_tree(9, seed=seed)
        graph = nx.compose(tree, nx.gnp_random_graph(9, 0.3, seed=seed))
        power = djax.power_gossip(
            topologies.from_networkx(graph), communicators.simulated(9), 2
        )
        last, _ = run(power, x, steps=20)
        for leaf, before in x.items():
            np.testing.assert_allclose(last[leaf].mean(0), before.mean(0), atol=1e-14)


@pytest.mark.parametrize("warm_start", [True, False])
def test_both_ends_of_an_edge_hold_the_same_and_edges_differ(warm_start):
    power = djax.power_gossip(
        RING, COMMUNICATOR, 2, warm_start=warm_start, key=jax.random.key(3)
    )
    for steps in (0, 5):
        _, state = run(power, normal(0, SIZE, 6, 4), steps=steps)
        for factor in (state.left, state.right):
            pairs = by_edge(np.asarray(factor), RING)
            for mine, theirs in pairs:
                np.testing.assert_array_equal(mine, theirs)
            assert len({mine.tobytes() for mine, _ in pairs}) == SIZE


@pytest.mark.slow
def test_a_cold_start_draws_anew_and_converges_slower():
    x = normal(0, SIZE, 10, 8)
    cold = djax.power_gossip(RING, COMMUNICATOR, warm_start=False)
    warm = djax.power_gossip(RING, COMMUNICATOR)
    used = [np.asarray(run(cold, x, steps=t)[1].right) for t in (0, 2)]
    # The right factors of odd iterations are replaced after the even ones.
    assert (used[0] != used[1]).all()
    spread = [
        float(jnp.square(last - last.mean(0, keepdims=True)).sum())
        for last, _ in (run(m, x, steps=100) for m in (cold, warm))
    ]
    assert spread[1] < 0.5 * spread[0]


def consensus_distance(x):
    distance = communicators.simulated(SIZE).spmd(
        lambda x: metrics.consensus_distance(x, COMMUNICATOR)
    )
    return float(distance(x)[0])


@pytest.mark.slow
@pytest.mark.parametrize("rank", [1, 2])
@pytest.mark.parametrize("overlap", [True, False])
def test_equal_starts_and_frozen_leaves_do_not_stop_it(overlap, rank):
    """The products are zero as long as the models are equal; the factors stay."""
    power = djax.power_gossip(RING, COMMUNICATOR, rank, overlap=overlap)
    x = {"w": jnp.ones((SIZE, 6, 4)), "frozen": jnp.ones((SIZE, 5, 3))}
    moves = {"w": normal(0, SIZE, 30, 6, 4), "frozen": normal(1, SIZE, 30, 5, 3)}
    moves["frozen"] = moves["frozen"].at[:, :10].set(0)
    apart, state = run(power, x, moves)
    assert consensus_distance(apart) > 1
    still = jax.tree.map(lambda v: jnp.zeros((SIZE, 300, *v.shape[1:])), x)
    moves = jax.tree.map(lambda a, b: jnp.concatenate([a, b], 1), moves, still)
    last, state = run(power, x, moves)
    assert consensus_distance(last) < 1e-8
    for leaf, v in last.items():
        expected = 1 + moves[leaf].sum(1).mean(0)
        np.testing.assert_allclose(v.mean(0), expected, atol=1e-12)
    assert all(jnp.isfinite(f).all() for f in jax.tree.leaves(state))


def test_a_diverged_neighbour_spoils_no_factor():
    x = normal(0, SIZE, 6, 4)
    power = djax.power_gossip(RING, COMMUNICATOR, 2)
    last, state = run(power, x.at[3].set(jnp.nan), steps=3)
    assert jnp.isfinite(state.left).all() and jnp.isfinite(state.right).all()
    assert jnp.isnan(last[2:5]).all()  # As gossip, it does not hide it.
    assert (np.linalg.norm(state.right, axis=-1) > 0).all()


@pytest.mark.slow
@pytest.mark.parametrize("axis", [-1, 0, 1, -2])
def test_any_axis_can_have_the_rows(axis):
    """As if that axis had been moved to the front by hand."""
    x = normal(0, SIZE, 3, 4, 5, 6)
    moved = jnp.moveaxis(x, axis % 4 + 1, 1)
    there = djax.power_gossip(RING, COMMUNICATOR, 2, rows_axis=axis)
    front = djax.power_gossip(RING, COMMUNICATOR, 2, rows_axis=0)
    last, state = run(there, x, steps=6)
    expected, _ = run(front, moved, steps=6)
    np.testing.assert_allclose(
        jnp.moveaxis(last, axis % 4 + 1, 1), expected, atol=1e-12
    )
    rows = x.shape[axis % 4 + 1]
    assert state.left.shape == (SIZE, 2, 2, rows)
    assert state.right.shape == (SIZE, 2, 2, 360 // rows)


def test_what_is_no_matrix_is_gossiped_whole_once_a_step():
    x = {"w": normal(0, SIZE, 4, 3), "b": normal(1, SIZE, 7), "s": normal(2, SIZE)}
    power = djax.power_gossip(
        RING, COMMUNICATOR, iterations=3, consensus_rate=0.5, vector_rate=0.8
    )
    last, state = run(power, x)
    mixing = 0.2 * np.eye(SIZE) + 0.8 * RING.mixing_matrix
    for leaf in ("b", "s"):
        np.testing.assert_allclose(last[leaf], mixing @ x[leaf], atol=1e-14)
        assert state.left[leaf] is None and state.right[leaf] is None


@pytest.mark.slow
def test_the_published_code_does_nothing_in_its_first_step():
    x = {"w": normal(0, SIZE, 4, 3), "b": normal(1, SIZE, 7)}
    options = dict(iterations=2, idle_first_step=True)
    idle = djax.power_gossip(RING, COMMUNICATOR, **options)
    last, _ = run(idle, x)
    np.testing.assert_array_equal(last["w"], x["w"])
    np.testing.assert_allclose(last["b"], RING.mixing_matrix @ x["b"], atol=1e-14)
    before = jax.jit(COMMUNICATOR.spmd(idle.init))(x)
    nothing = jax.tree.map(jnp.zeros_like, x)
    _, state = jax.jit(COMMUNICATOR.spmd(idle.update))(nothing, before, x)
    np.testing.assert_array_equal(state.left["w"], before.left["w"])
    again, _ = run(idle, x, steps=2)
    assert jnp.abs(again["w"] - x["w"]).max() > 0.01


def test_rank_one_removes_the_factors_of_the_sign_variant_too():
    sign = djax.power_gossip(RING, COMMUNICATOR, sign=True)
    last, _ = run(sign, normal(0, SIZE, 6, 4), steps=300)
    assert jnp.square(last - last.mean(0, keepdims=True)).sum() < 1e-4


@pytest.mark.usefixtures("as_users")
@pytest.mark.parametrize(
    ("iterations", "per_neighbor"), [(1, 19_410), (2, 32_508), (None, 1_089_896)]
)
def test_bytes_of_resnet20_are_the_published_ones(iterations, per_neighbor):
    params = resnet20_shapes()
    leaves = jax.tree.leaves(params)
    assert sum(x.size for x in leaves) == 272_474
    assert sum(x.size for x in leaves if x.ndim == 1) == 1_578
    if iterations is None:
        mechanism = djax.gossip(RING, COMMUNICATOR)
    else:
        mechanism = djax.power_gossip(RING, COMMUNICATOR, iterations=iterations)
    cost = djax.communication_cost(mechanism, params, RING)
    assert cost.period == (2 if iterations == 1 else 1)
    assert cost.mean_bytes == cost.max_bytes == 2 * per_neighbor


@pytest.mark.parametrize("iterations", [1, 2, 3, 4, 7])
def test_one_message_for_each_neighbour_and_iteration(iterations):
    """Whatever the sizes and dtypes of the parameters."""
    params = {
        "w": jnp.ones((400, 300), jnp.float32),
        "half": jnp.ones((3, 4), jnp.bfloat16),
        "b": jnp.ones(300_000, jnp.float32),
        "s": jnp.ones((), jnp.float16),
    }
    power = djax.power_gossip(RING, COMMUNICATOR, iterations=iterations)
    cost = djax.communication_cost(power, params, RING)
    assert cost.mean_messages == 2 * iterations
    matrices = 4 * (700 + 7) * iterations / 2
    assert cost.mean_bytes == 2 * (4 * 300_001 + matrices)


def dots_with(jaxpr, elements):
    """Numbers of matrix products that read or make an array of this size."""
    count = 0
    for equation in jaxpr.eqns:
        arrays = [*equation.invars, *equation.outvars]
        if equation.primitive.name == "dot_general":
            count += any(v.aval.size == elements for v in arrays)
        for value in equation.params.values():
            for inner in value if isinstance(value, (tuple, list)) else [value]:
                inner = getattr(inner, "jaxpr", inner)
                count += dots_with(inner, elements) if hasattr(inner, "eqns") else 0
    return count


# A ring's 8 products are summed without a product of matrices; 28 are one more.
@pytest.mark.parametrize(("graph", "dots"), [("ring", 4), ("complete", 5)])
def test_a_matrix_is_read_once_an_iteration_and_written_once(graph, dots):
    topology = getattr(topologies, graph)(SIZE)
    power = djax.power_gossip(topology, COMMUNICATOR, iterations=4)
    x = jnp.ones((17, 19))

    def worker(state):
        return power.update(x, state, x)

    state = jax.vmap(lambda _: power.init(x), axis_name=COMMUNICATOR.axis_name)(
        jnp.arange(SIZE)
    )
    program = jax.make_jaxpr(worker, axis_env=[(COMMUNICATOR.axis_name, SIZE)])(
        jax.tree.map(lambda v: v[0], state)
    )
    assert dots_with(program.jaxpr, x.size) == dots


@pytest.mark.slow
@pytest.mark.parametrize("rows_axis", [-1, 0, 1])
def test_a_sum_of_few_products_is_a_product_of_matrices(rows_axis, monkeypatch):
    x = {"a": normal(0, SIZE, 3, 5, 7), "b": normal(1, SIZE, 6, 4)}
    power = djax.power_gossip(RING, COMMUNICATOR, 2, 3, rows_axis=rows_axis)
    summed = run(power, x, steps=2)
    monkeypatch.setattr(_products, "FEW", 0)
    multiplied = run(power, x, steps=2)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, atol=1e-12), summed, multiplied
    )


@pytest.mark.parametrize(
    ("shape", "rows", "blocks"),
    [
        ((192, 64), 4, "[3,64,64]"),
        ((256, 70), 2, "[2,128,70]"),
        ((147, 64), 4, None),  # No block of 64 or 128 rows.
        ((128, 64), 4, None),
        ((256, 5), 4, None),
        ((256, 64), 9, None),  # The basis is copied for every block.
    ],
)
def test_a_product_by_blocks_is_the_product(shape, rows, blocks):
    basis, matrix = normal(0, 3, 1, rows, shape[1]), normal(1, 3, *shape)
    product = _products._along_last
    program = str(jax.make_jaxpr(product)(basis[0], matrix[0]))
    assert ("platform_index" in program) == (blocks is not None)
    assert blocks is None or f"{blocks} = reshape" in program
    expected = np.einsum("wrcb,wab->wrca", basis, matrix)
    one, all_of = (
        product(basis[0], matrix[0]),
        jax.jit(jax.vmap(product))(basis, matrix),
    )
    np.testing.assert_allclose(one, expected[0], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(all_of, expected, rtol=1e-5, atol=1e-5)


def orthonormalized(factors):
    """Orthonormalizes the left factors of square matrices, `[edges, r, m]` each."""
    leaves = [jnp.ones((x.shape[-1],) * 2, x.dtype) for x in factors.values()]
    rank = max(x.shape[1] for x in factors.values())
    layout, _ = _rows.layouts_of(leaves, _blocks.blocks_of(leaves), rank, -1)
    bases = _orthonormal.orthonormal(_rows.joined(factors, layout), layout)
    return _rows.separated(bases, layout)


def test_messages_get_zeros_where_the_joined_factors_have_them():
    # A block of three, whose factors end with zeros, between factors that do not.
    leaves = [jnp.ones((n, n)) for n in [32, 64, 7, 33, 7, 32, 7, 5]]
    (layout,) = _rows.layouts_of(leaves, _blocks.blocks_of(leaves), 2, -1)[0].values()
    factors = {i: normal(i, 3, 2, len(x)) for i, x in enumerate(leaves)}
    rows = layout.join(factors)
    message = layout.message(layout.blocks(rows))
    assert message.shape == (3, 2, sum(map(len, leaves)))
    np.testing.assert_array_equal(layout.place(message), rows)


def test_matrices_of_any_shape_are_orthonormalized_together():
    factors = {i: normal(i, 2, 3, n) for i, n in enumerate([7, 5, 7, 7])}
    bases = orthonormalized(factors)
    assert bases.keys() == factors.keys()
    for i, before in factors.items():
        for rows, basis in zip(before, bases[i], strict=True):
            np.testing.assert_allclose(basis @ basis.T, np.eye(3), atol=1e-6)
            onto = rows @ basis.T @ basis  # Spans the same space.
            np.testing.assert_allclose(onto, rows, atol=1e-6)


@pytest.mark.slow
def test_a_higher_rank_than_the_difference_does_no_harm():
    """What is left of dependent columns are rounding errors, in any direction."""
    rows = normal(0, SIZE, 8, 1) * normal(3, SIZE, 1, 40)
    bases = orthonormalized({0: rows.astype(jnp.float32)})[0]
    assert max(np.linalg.norm(basis, 2) for basis in bases) < 1.001
    x = (normal(1, SIZE, 30, 1) * normal(2, SIZE, 1, 20)).astype(jnp.float32)
    power = djax.power_gossip(RING, COMMUNICATOR, 8, consensus_rate=1.308)
    distances = [consensus_distance(run(power, x, steps=t)[0]) for t in range(6)]
    assert (np.diff(distances) < 0).all()


def test_the_rate_can_follow_a_schedule():
    make = optax.inject_hyperparams(
        djax.power_gossip, static_args=("rank", "iterations", "rows_axis")
    )
    scheduled = make(
        RING, COMMUNICATOR, consensus_rate=lambda step: jnp.where(step < 1, 0.5, 0.1)
    )
    x = normal(0, SIZE, 4, 3)
    last, _ = run(scheduled, x, steps=1)
    fixed = djax.power_gossip(RING, COMMUNICATOR, consensus_rate=0.5)
    np.testing.assert_allclose(last, run(fixed, x)[0], atol=1e-12)


def test_mistakes_are_named():
    with pytest.raises(ValueError, match="sign=True is for rank 1, not 2"):
        djax.power_gossip(RING, COMMUNICATOR, 2, sign=True)
    with pytest.raises(ValueError, match="rank must be an integer of at least 1"):
        djax.power_gossip(RING, COMMUNICATOR, 0)
    with pytest.raises(ValueError, match="iterations must be an integer"):
        djax.power_gossip(RING, COMMUNICATOR, 1, 0)
    with pytest.raises(ValueError, match="vector_rate must be positive"):
        djax.power_gossip(RING, COMMUNICATOR, vector_rate=0.0)
    power = djax.power_gossip(RING, COMMUNICATOR, rows_axis=2)
    with pytest.raises(ValueError, match=r"rows_axis=2, but params\['w'\] has 2"):
        power.init({"w": jnp.ones((2, 3))})
    with pytest.raises(TypeError, match=r"real arrays, but params\['z'\] is complex"):
        power.init({"z": jnp.ones((2, 3), complex)})
    overlapping = djax.power_gossip(RING, COMMUNICATOR, overlap=True)
    with pytest.raises(ValueError, match="use power_gossip without overlap"):
        djax.d2(overlapping).init(jnp.ones((2, 3)))


@pytest.mark.slow
def test_an_edge_that_recurs_within_a_period_changes_its_sides():
    """A period of equal graphs is that graph."""
    ring, communicator = djax.topologies.ring(4), communicators.simulated(4)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8)), jnp.float32)

    def after(graph):
        averaging = djax.power_gossip(graph, communicator)

        def worker(x):
            def step(carry, _):
                x, state = carry
                updates, state = averaging.update(0 * x, state, x)
                return (x + updates, state), None

            return jax.lax.scan(step, (x, averaging.init(x)), length=20)[0][0]

        return jax.jit(communicator.spmd(worker))(x)

    matrix = ring.mixing_matrix
    expected = after(ring)
    for period in (1, 2, 3):
        found = after(djax.topologies.from_matrices([matrix] * period))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
