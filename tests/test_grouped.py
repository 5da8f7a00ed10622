"""Two levels of workers: within groups and between them."""

import functools
import math

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import ALGORITHMS
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import PartitionSpec

import djax
from djax import communicators, testing, topologies
from djax._arrays.shares import collect_shares, own_share
from djax.communicators import _grouped, grouped

GROUPS, MEMBERS = 4, 2
SIZE = GROUPS * MEMBERS
LOCAL = np.arange(SIZE).reshape(GROUPS, MEMBERS)
CIRCLES = {"local": LOCAL, "across": LOCAL.T}
RING = topologies.ring(GROUPS)

each_place = pytest.mark.parametrize(
    "make", [communicators.simulated, communicators.mesh]
)


def large_workers(size):
    """Workers of two devices each."""
    mesh = jax.make_mesh((size, 2), ("workers", "fsdp"))
    return communicators.mesh(size, mesh=mesh)


@pytest.mark.parametrize(
    ("make", "size"),
    [
        (communicators.simulated, SIZE),
        (communicators.mesh, SIZE),
        (large_workers, SIZE // 2),
    ],
)
def test_workers_exchange_within_their_level(make, size):
    whole, x = make(size), np.random.default_rng(0).normal(size=(size, 3))
    levels = grouped(whole, MEMBERS)

    def verbs(c, x):
        cycle = tuple(np.roll(np.arange(c.size), 1))
        stay = tuple(range(c.size))
        return {
            "rank": jnp.asarray(c.rank()),
            "permute": c.permute(x, cycle),
            "one of": c.permute_one_of(x, [stay, cycle], c.agreed(jnp.int32(1))),
            "mean": c.mean(x),
            "broadcast": c.broadcast(x),
            "all": c.all_gather(x),
        }

    x = x.astype(np.float32)
    found = jax.jit(whole.spmd(lambda x: [verbs(c, x) for c in levels]))(x)
    members = np.arange(size).reshape(-1, MEMBERS)
    for circles, level in zip((members, members.T), jax.device_get(found), strict=True):
        for circle in circles:
            mine = {name: array[circle] for name, array in level.items()}
            everyone = np.broadcast_to(x[circle], mine["all"].shape)
            np.testing.assert_array_equal(mine["rank"], range(len(circle)))
            np.testing.assert_array_equal(mine["permute"], np.roll(x[circle], 1, 0))
            np.testing.assert_array_equal(mine["one of"], mine["permute"])
            np.testing.assert_array_equal(mine["broadcast"], everyone[:, 0])
            np.testing.assert_array_equal(mine["all"], everyone)
            np.testing.assert_allclose(mine["mean"], everyone.mean(1), rtol=1e-5)


@each_place
def test_all_gather_keeps_every_bit(make):
    workers = make(3)
    trees = [conformance.every_dtype(rank) for rank in range(3)]
    stacked = jax.tree.map(lambda *x: jnp.stack(x), *trees)
    found = jax.device_get(jax.jit(workers.spmd(workers.all_gather))(stacked))
    for rank in range(3):
        mine = jax.tree.map(lambda x, rank=rank: x[rank], found)
        conformance.assert_same_bits(mine, stacked)


def test_levels_keep_what_the_communicator_does_to_messages():
    options = {"message_dtype": "bfloat16", "rounding_seed": 3}
    for level in grouped(communicators.simulated(SIZE, **options), MEMBERS):
        assert {name: getattr(level, name) for name in options} == options


@each_place
def test_between_programs_a_level_has_all_workers(make):
    whole = make(SIZE)
    for level in grouped(whole, MEMBERS):
        assert level.rows == SIZE
        assert list(level.local_ranks) == list(range(SIZE))
        assert level.gather(list(range(SIZE))) == list(range(SIZE))
        assert level.whole == whole == whole.whole
        ranks = level.spmd(lambda x: x + whole.rank())(jnp.zeros(SIZE, jnp.int32))
        np.testing.assert_array_equal(ranks, range(SIZE))
        assert communicators.replicate(level, 0.0).shape == (SIZE,)


def test_groups_that_cannot_be():
    workers = communicators.simulated(SIZE)
    local, _ = grouped(workers, MEMBERS)
    for wrong, text in (
        (lambda: grouped(workers, 3), "must be one of 1, 2, 4, 8"),
        (lambda: grouped(workers, 0), "at least 1"),
        (lambda: grouped(workers), "either a group_size"),
        (lambda: grouped(workers, 2, by="node"), "either a group_size"),
        (lambda: grouped(workers, by="rack"), "by must be one of 'node'"),
        (lambda: grouped(workers, by="node"), "pass a group_size"),
        (lambda: grouped(communicators.lossy(workers, 0.1), 2), "Group first"),
        (lambda: grouped(local, 2), "one level of groups already"),
    ):
        with pytest.raises(ValueError, match=text):
            wrong()
    for other in (3, RING, workers.spmd):
        with pytest.raises(TypeError, match="grouped"):
            grouped(other, 2)


def test_hosts_form_groups():
    """In the order in which their first workers come; names need not differ."""
    hosts = [("a", 0), ("b", 1), ("a", 0), ("a", 2), ("a", 2), ("b", 1)]
    assert _grouped._of_hosts(hosts) == [[0, 2], [1, 5], [3, 4]]
    with pytest.raises(ValueError, match="a has 2 workers, b has 1 worker. Start"):
        _grouped._of_hosts([("a", 0), ("a", 0), ("b", 0)])
    local, across = grouped(communicators.mesh(SIZE), by="node")
    assert (local.size, across.size) == (SIZE, 1)


def hierarchical(mechanism, communicator, around=lambda mechanism: mechanism):
    """An optimizer that is exact within groups.

    Args:
      mechanism: is made of a communicator between groups.
      communicator: the communicator of all workers.
      around: what is around the sharded mechanism.
    """
    local, across = grouped(communicator, MEMBERS)
    return optax.chain(
        djax.on_updates(djax.all_reduce(local)),
        optax.sgd(0.1),
        around(djax.sharded(mechanism(across), local)),
    )


def problems():
    """One for all workers, of whom those of a group start equal; one for all groups."""
    problem = testing.quadratics(SIZE)
    hessian, target = (x.reshape(GROUPS, MEMBERS, -1) for x in problem[:2])
    start, mean = problem.start[:GROUPS], hessian.mean(axis=1)
    everyones = problem._replace(start=np.repeat(start, MEMBERS, axis=0))
    return everyones, testing.Problem(mean, (hessian * target).mean(1) / mean, start)


def trees(problem):
    return jax.tree.map(lambda x: jax.vmap(testing._unflatten)(jnp.asarray(x)), problem)


def program(optimizer, problem):
    """What one worker does; the problem may be that of a share."""

    def step(carry, _):
        params, state = carry
        apart = jax.tree.map(jnp.subtract, params, problem.target)
        gradient = jax.tree.map(jnp.multiply, problem.hessian, apart)
        updates, state = optimizer.update(gradient, state, params)
        return (optax.apply_updates(params, updates), state), None

    carry = problem.start, optimizer.init(problem.start)
    return jax.lax.scan(step, carry, length=20)[0][0]


def trained(optimizer, communicator, problem):
    run = communicator.spmd(functools.partial(program, optimizer))
    return jax.device_get(jax.jit(run)(trees(problem)))


def trained_shares(mechanism):
    """What a worker for each group does on the shares of the groups' mean gradients."""
    workers = communicators.simulated(GROUPS)
    optimizer = optax.chain(optax.sgd(0.1), mechanism(workers))

    def shares(x):  # Of matrices [2, 2] and vectors [2], on an axis in front.
        return jnp.stack(jnp.split(x, MEMBERS, axis=1))

    run = jax.vmap(workers.spmd(functools.partial(program, optimizer)))
    found = jax.jit(run)(jax.tree.map(shares, trees(problems()[1])))
    return jax.tree.map(lambda x: np.concatenate(list(x), axis=1), found)


def assert_groups_are(found, wanted, **tolerances):
    """All members of a group are equal bit for bit, and equal to one model."""
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        for place in range(MEMBERS):
            np.testing.assert_array_equal(x[LOCAL[:, 0]], x[LOCAL[:, place]])
        np.testing.assert_allclose(x[LOCAL[:, 0]], y, **tolerances)


ROUNDING = {"rtol": 1e-12, "atol": 1e-13}  # Of float64.
OF_A_SHARE = "power_gossip choco dcd deep_squeeze moniqua beer demo sparse interleaved"
"""Mechanisms that depend on which coordinates they are given together."""


SKIPPED = "quasi_global_adam power_gossip_iterations power_gossip_overlap".split()
"""The first is refused, and the others do nothing new here and take two seconds."""


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name not in SKIPPED])
def test_a_group_is_one_worker_with_the_mean_gradient(name):
    """As the dense reference says; mechanisms of coordinates together, on shares."""
    topology, workers = topologies.star(GROUPS), communicators.simulated(SIZE)
    mechanism = functools.partial(conformance.make, name, topology)
    algorithm, (everyones, together) = ALGORITHMS[name], problems()
    with jax.enable_x64(True):
        if any(word in name for word in OF_A_SHARE.split()):
            wanted = trained_shares(mechanism)
        else:
            matrix = algorithm.graph(topology).mixing_matrix
            arguments = together.gradient, together.start, 0.1, 20, matrix
            wanted = jax.vmap(testing._unflatten)(algorithm.reference(*arguments))
        found = trained(hierarchical(mechanism, workers), workers, everyones)
    assert_groups_are(found, wanted, **ROUNDING)


NESTEROV = optax.sgd(0.7, 0.6, nesterov=True)
AROUND = {
    "every": (lambda m: djax.every(3, m), "gossip_every"),
    "d2": (djax.d2, "d2"),
    "gradient_tracking": (djax.gradient_tracking, "gradient_tracking"),
    "outer": (lambda m: djax.outer(3, NESTEROV, m), "outer"),
}


@pytest.mark.parametrize("name", AROUND)
def test_corrections_may_be_around_sharded_mechanisms(name):
    around, same = AROUND[name]
    rate, workers = 0.5 if name == "d2" else 1.0, communicators.simulated(SIZE)

    def mechanism(across):
        return djax.gossip(RING, across, consensus_rate=rate)

    everyones, together = problems()
    arguments = together.gradient, together.start, 0.1, 20, RING.mixing_matrix
    with jax.enable_x64(True):
        wanted = jax.vmap(testing._unflatten)(ALGORITHMS[same].reference(*arguments))
        optimizer = hierarchical(mechanism, workers, around)
        found = trained(optimizer, workers, everyones)
    assert_groups_are(found, wanted, **ROUNDING)


@pytest.mark.parametrize(
    ("make", "size", "name"),
    [
        (communicators.mesh, SIZE, "gossip_in_time"),
        (communicators.mesh, SIZE, "relay"),
        (communicators.mesh, SIZE, "power_gossip"),
        (large_workers, SIZE // 2, "gossip"),
    ],
)
def test_same_on_a_mesh(make, size, name):
    topology = topologies.star(size // MEMBERS)
    mechanism = functools.partial(conformance.make, name, topology)

    def around(sharded):
        return djax.per_shard(sharded, PartitionSpec()) if divided else sharded

    divided, problem = make is large_workers, testing.quadratics(size)
    found, wanted = (
        trained(hierarchical(mechanism, workers, around), workers, problem)
        for workers in (make(size), communicators.simulated(size))
    )
    for x, y in zip(*map(jax.tree.leaves, (found, wanted)), strict=True):
        np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6)


def test_members_lose_the_same_messages():
    """Of each link between groups, as if every group were one worker."""
    workers, (everyones, together) = communicators.simulated(SIZE), problems()

    def mechanism(communicator):
        lossy = communicators.lossy(communicator, 0.4, seed=2)
        return djax.push_sum(conformance.directed(GROUPS), lossy)

    found = trained(hierarchical(mechanism, workers), workers, everyones)
    groups = communicators.simulated(GROUPS)
    wanted = trained(optax.chain(optax.sgd(0.1), mechanism(groups)), groups, together)
    assert_groups_are(found, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("graph", ["complete", "ring"])
def test_many_groups_are_simulated_as_fast_as_many_workers(graph):
    """By the product of a matrix, where a step has many rounds, or by a loop."""
    topology, whole = getattr(topologies, graph)(24), communicators.simulated(48)
    _, across = grouped(whole, MEMBERS)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(48, 5)), jnp.float32)
    moved = jax.jit(whole.spmd(lambda x: djax.mixing.displacement(x, topology, across)))
    matrix = topology.mixing_matrix - np.eye(24)
    for place in range(MEMBERS):
        places = np.s_[place::MEMBERS]
        np.testing.assert_allclose(moved(x)[places], matrix @ x[places], atol=1e-5)
    rounds = str(jax.make_jaxpr(moved)(x)).count("gather[")
    assert rounds < 24


def gossip(communicator):
    return djax.gossip(RING, communicator)


@each_place
def test_loops_take_any_level_for_all_workers(make, tmp_path):
    whole, x = make(SIZE), np.arange(SIZE, dtype=np.float32)
    optimizer = hierarchical(gossip, whole)

    def gradient(x, state, target):
        return x - target, state, {"loss": (x - target) ** 2}

    def score(x, _):
        return {"loss": x**2}

    found = []
    for i, workers in enumerate((whole, *grouped(whole, MEMBERS))):
        start = communicators.replicate(workers, 0.0)
        trained = djax.training.init_workers(optimizer, workers, start)
        steps = djax.training.make_steps(gradient, optimizer, workers)
        trained, _ = steps(trained, np.tile(x[:, None], 5))
        scores = djax.metrics.evaluate(score, trained.params, [()], workers)["loss"]
        options = djax.training.Checkpoints(tmp_path / str(i))
        saver = djax.training.Checkpointer(options, workers)
        saver.save(1, trained, wait=True)
        saver.close()
        names = [path.name for path in (tmp_path / str(i)).glob("workers*")]
        found.append((np.asarray(trained.params), *scores, names))
    for other in found[1:]:
        for mine, theirs in zip(found[0], other, strict=True):
            np.testing.assert_array_equal(mine, theirs)


@pytest.mark.slow
def test_the_check_starts_members_equal():
    workers = communicators.simulated(SIZE)
    shape = {"w": jnp.zeros((5, 2)), "s": jnp.zeros(())}
    djax.check(hierarchical(gossip, workers), workers, shape)
    local, across = grouped(workers, MEMBERS)
    late = optax.chain(djax.sharded(gossip(across), local), optax.sgd(0.1))
    with pytest.raises(ValueError, match="do not come together"):
        djax.check(late, workers, shape)


def test_costs_of_both_levels():
    """Of a star, whose hub is a whole group."""
    star, workers = topologies.star(GROUPS), communicators.simulated(SIZE)
    weights = jax.ShapeDtypeStruct((1000,), "float32")

    def mechanism(across):
        return djax.every(2, djax.gossip(star, communicators.lossy(across, 0.1)))

    optimizer = hierarchical(mechanism, workers)
    cost = djax.communication_cost(optimizer, weights, workers)
    share = 4 * 500
    assert cost["local"].bytes_per_step == (4000 + share,) * SIZE
    hub, other = (3 * share / 2,) * MEMBERS, (share / 2,) * (SIZE - MEMBERS)
    assert cost["across"].bytes_per_step == hub + other
    assert cost.mean_bytes == cost["local"].mean_bytes + cost["across"].mean_bytes
    assert "across: CommunicationCost(" in repr(cost)
    for level in grouped(workers, MEMBERS):
        assert djax.communication_cost(optimizer, weights, level) == cost
    with pytest.raises(KeyError, match="'near' sends anything, only local, across"):
        cost["near"]


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda _, local, across: djax.sharded(gossip(across), across), "the first of"),
        (lambda all_, local, _: djax.sharded(djax.all_reduce(all_), local), "`across`"),
        (lambda _, local, __: djax.sharded(djax.all_reduce(local), local), "`across`"),
        (
            lambda _, local, across: djax.sharded(
                optax.chain(djax.sharded(gossip(across), local)), local
            ),
            "sharded already",
        ),
        (
            lambda _, local, across: djax.sharded(
                djax.quasi_global_adam(0.1, gossip(across)), local
            ),
            "norm of the whole model",
        ),
        (
            lambda all_, local, _: djax.sharded(
                djax.all_reduce(grouped(all_, 4)[1]), local
            ),
            "`across`",
        ),
    ],
)
def test_mechanisms_that_would_mix_coordinates_are_refused(make, text):
    workers = communicators.simulated(SIZE)
    with pytest.raises(ValueError, match=text):
        mechanism = make(workers, *grouped(workers, MEMBERS))
        workers.spmd(mechanism.init)(jnp.zeros((SIZE, 3)))


@settings(max_examples=12)
@given(
    shape=st.lists(st.integers(0, 7), max_size=3), members=st.sampled_from([1, 2, 3, 5])
)
def test_shares_put_together_are_the_whole(shape, members):
    local, _ = grouped(communicators.simulated(members), members)
    x = jnp.arange(1.0, 1 + math.prod(shape)).reshape(shape)

    def worker(x):
        share = own_share(x, local)
        return share, collect_shares(share, x, local)

    copies = jnp.broadcast_to(x, (members, *shape))
    shares, collected = local.spmd(worker)(copies)
    np.testing.assert_array_equal(collected, copies)
    assert np.sort(shares[shares > 0]).tolist() == x.ravel().tolist()
    *others, longest = sorted(shape or [1])
    assert shares[0].size == math.prod(others) * -(-longest // members)
