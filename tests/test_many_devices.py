"""Workers that have several devices each, on a mesh with more axes than the workers'.

Eight devices are four workers with two devices, or two with four. All parameters are
divided among a worker's devices, and stay divided: no program gathers one.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import djax
from djax import communicators, compressors, topologies, training
from djax.training._layout import layout_of

pytestmark = pytest.mark.usefixtures("as_users")  # Adam of optax relies on it.
P = PartitionSpec

SHAPES = {"bias": (96,), "kernel": (3, 3, 8, 16), "left": (64, 48), "right": (32, 64)}
SPECS = {
    "bias": P("fsdp"),
    "kernel": P(None, None, None, "fsdp"),
    "left": P("fsdp"),
    "right": P(None, "fsdp"),
}

MECHANISMS = {
    "gossip": lambda c: djax.gossip(topologies.ring(c.size), c),
    "relay": lambda c: djax.relay(topologies.chain(c.size), c),
    "all_reduce": djax.all_reduce,
    "power_gossip": lambda c: djax.power_gossip(topologies.ring(c.size), c),
    "outer": lambda c: djax.outer(2, optax.sgd(0.7, 0.9), djax.all_reduce(c)),
    "outer_power_gossip": lambda c: djax.outer(
        2, optax.sgd(0.5), djax.power_gossip(topologies.ring(c.size), c)
    ),
}
each_mechanism = pytest.mark.parametrize("name", MECHANISMS)

CODED = {
    "top_k": lambda c: choco(c, compressors.top_k(0.2)),
    "random_k": lambda c: choco(c, compressors.random_k(0.2)),
    "sign": lambda c: choco(c, compressors.sign()),
    "quantize": lambda c: choco(c, compressors.quantize(4, unbiased=False)),
    "moniqua": lambda c: djax.moniqua(topologies.ring(c.size), c, 50.0, 0.1),
    "sparse": lambda c: djax.sparse(djax.gossip(topologies.ring(c.size), c), 0.4),
    "interleave": lambda c: djax.interleave(
        [djax.relay(tree, c) for tree in topologies.double_binary_trees(c.size)]
    ),
}
each_coded = pytest.mark.parametrize("name", CODED)


def choco(communicator, code):
    ring = topologies.ring(communicator.size)
    return djax.choco_gossip(ring, communicator, code, 0.1)


def mesh(workers, devices):
    made = jax.make_mesh((workers, devices), ("workers", "fsdp"))
    return communicators.mesh(workers, mesh=made)


def model(dtype=np.float32):
    rng = np.random.default_rng(0)
    return {k: jnp.asarray(rng.normal(size=s), dtype) for k, s in SHAPES.items()}


def targets(communicator, steps, dtype=np.float32):
    """Where the workers' quadratics have their minima, `[workers, steps, ...]`."""
    rng = np.random.default_rng(1)
    shape = communicator.size, steps
    return {k: rng.normal(size=(*shape, *s)).astype(dtype) for k, s in SHAPES.items()}


def gradient_fn(params, model_state, target):
    grads = jax.tree.map(jnp.subtract, params, target)
    return grads, model_state, {"loss": sum(jnp.sum(g) for g in jax.tree.leaves(grads))}


def trained(communicator, mechanism, dtype=np.float32, steps=3, **options):
    """The workers after some steps of Adam."""
    optimizer = optax.chain(optax.adam(0.1), mechanism)
    params = communicators.replicate(communicator, model(dtype), SPECS)
    workers = training.init_workers(optimizer, communicator, params)
    run = training.make_steps(gradient_fn, optimizer, communicator, **options)
    specs = {k: P(None, None, *spec) for k, spec in SPECS.items()}
    data = targets(communicator, steps, dtype)
    workers, _ = run(workers, communicators.from_local(communicator, data, specs))
    return workers


def assert_close(mine, expected, dtype=np.float32):
    tolerance = 3e-2 if dtype == jnp.bfloat16 else 2e-6
    for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(expected), strict=True):
        if not jnp.issubdtype(x.dtype, jax.dtypes.prng_key):
            x, y = np.asarray(x, np.float64), np.asarray(y, np.float64)
            np.testing.assert_allclose(x, y, rtol=tolerance, atol=tolerance)


def assert_divided(tree):
    """Every leaf of a tree like the parameters is divided as they are."""
    for name, x in tree.items():
        wanted = NamedSharding(x.sharding.mesh, P("workers", *SPECS[name]))
        assert x.sharding.is_equivalent_to(wanted, x.ndim)


def compiled(communicator, mechanism):
    """A step of Adam and a mechanism, compiled for workers that stay where they are."""
    optimizer = optax.chain(optax.adam(0.1), mechanism)
    params = communicators.replicate(communicator, model(), SPECS)
    workers = training.init_workers(optimizer, communicator, params)

    def step(workers):
        grads = jax.tree.map(lambda x: x - 1, workers.params)
        updates, state = optimizer.update(grads, workers.opt_state, workers.params)
        return training.Workers(optax.apply_updates(workers.params, updates), state)

    layout = layout_of(communicator, workers)
    program = jax.jit(communicator.spmd(step), donate_argnums=0, out_shardings=layout)
    return program.lower(workers).compile()


def gathered(program):
    """Numbers of entries of all arrays that a compiled program gathers."""
    shapes = re.findall(r"= (.*?) (?:all-gather|all-to-all)[\w-]*\(", program.as_text())
    arrays = re.findall(r"\[([\d,]*)\]", " ".join(shapes))
    return [math.prod(int(n) for n in dims.split(",") if n) for dims in arrays]


def peak(program):
    """Bytes that a program needs on a device."""
    found = program.memory_analysis()
    return (
        found.argument_size_in_bytes
        + found.temp_size_in_bytes
        + found.output_size_in_bytes
        - found.alias_size_in_bytes
    )


@pytest.mark.parametrize(
    ("workers", "devices", "dtype"),
    [(4, 2, np.float32), (2, 4, jnp.bfloat16)],
    ids=["4x2-float32", "2x4-bfloat16"],
)
@each_mechanism
def test_training_gives_the_numbers_of_the_simulation(name, workers, devices, dtype):
    there, here = mesh(workers, devices), communicators.simulated(workers)
    mine = trained(there, MECHANISMS[name](there), dtype)
    assert_close(mine, trained(here, MECHANISMS[name](here), dtype), dtype)
    assert_divided(mine.params)
    assert_divided(mine.opt_state[0][0].mu)


@pytest.mark.parametrize(
    ("workers", "devices", "dtype"),
    [(2, 4, np.float32), (4, 2, jnp.bfloat16)],
    ids=["2x4-float32", "4x2-bfloat16"],
)
def test_a_program_for_each_step_gives_the_same_numbers(workers, devices, dtype):
    there, here = mesh(workers, devices), communicators.simulated(workers)
    gossip = MECHANISMS["gossip"]
    mine = trained(there, gossip(there), dtype, dispatch=True)
    assert_close(mine, trained(here, gossip(here), dtype), dtype)
    assert_divided(mine.params)


@each_mechanism
def test_nothing_is_gathered_and_memory_is_divided(name):
    divided = mesh(4, 2)
    whole = communicators.mesh(4, devices=jax.devices()[:4])
    mine, other = (compiled(c, MECHANISMS[name](c)) for c in (divided, whole))
    # What is gathered are small factors of PowerGossip alone.
    smallest_matrix = min(math.prod(s) for s in SHAPES.values() if len(s) > 1)
    assert max(gathered(mine), default=0) < smallest_matrix / 2
    assert name.endswith("power_gossip") or not gathered(mine)
    assert peak(mine) <= (1 / 2 + 0.1) * peak(other)


def test_the_test_finds_what_is_gathered():
    def whole(tree):
        return jax.tree.map(lambda x: jnp.sort(x.ravel()).reshape(x.shape), tree)

    mechanism = djax.mechanism(
        name="sorts",
        init=lambda params: (),
        mix=lambda model, state: (whole(model), state),
        communicator=mesh(4, 2),
    )
    assert max(gathered(compiled(mesh(4, 2), mechanism))) >= 64 * 48


@each_coded
def test_a_code_for_each_shard_gives_the_numbers_of_the_simulation(name):
    there, here = mesh(4, 2), communicators.simulated(4)
    mine = trained(there, djax.per_shard(CODED[name](there), SPECS))
    other = trained(here, djax.per_shard(CODED[name](here), SPECS, {"fsdp": 2}))
    assert_close(mine, other)
    assert_divided(mine.params)


@pytest.mark.parametrize("name", ["top_k", "sparse"])
def test_a_code_for_each_shard_gathers_nothing(name):
    there = mesh(4, 2)
    assert not gathered(compiled(there, djax.per_shard(CODED[name](there), SPECS)))


@each_coded
def test_a_code_that_numbers_entries_names_the_remedy(name):
    there = mesh(4, 2)
    with pytest.raises(ValueError, match=r"needs whole parameters.* djax\.per_shard"):
        trained(there, CODED[name](there))


def test_what_each_shard_sends_is_counted():
    here, specs = communicators.simulated(4), {"fsdp": 2}
    shapes = {"w": jnp.zeros((8, 6)), "b": jnp.zeros(6)}
    code = choco(here, compressors.sign())
    halves = djax.per_shard(code, {"w": P("fsdp"), "b": P()}, specs)
    # To each of two neighbours: 24 bits and a scale of each half, 6 bits and a scale.
    bytes_ = 2 * (2 * (3 + 4) + (1 + 4))
    assert djax.communication_cost(halves, shapes, here).mean_bytes == bytes_
    there = djax.per_shard(choco(mesh(4, 2), compressors.sign()), P("fsdp"))
    assert djax.communication_cost(there, shapes, mesh(4, 2)).size == 4


@settings(max_examples=12)
@given(
    st.permutations(["a", "b", None]).flatmap(
        lambda names: st.integers(0, 3).map(lambda n: names[:n])
    ),
    st.booleans(),
)
def test_a_mechanism_that_knows_no_order_ignores_the_shards(names, together):
    """Gossip of all parts is gossip, whatever the division."""
    if together and {"a", "b"} <= set(names):
        names = [("a", "b"), *[None] * (len(names) - 1)]
    axes, here = {"a": 2, "b": 3}, communicators.simulated(3)
    gossip = djax.gossip(topologies.ring(3), here)
    params = jnp.arange(3 * 6 * 6 * 12, dtype=jnp.float32).reshape(3, 6, 6, 12)[
        (..., *[0] * (3 - len(names)))
    ]

    def once(mechanism):
        def step(params):
            state = mechanism.init(params)
            return mechanism.update(jnp.zeros_like(params), state, params)[0]

        return here.spmd(step)(params)

    parts = djax.per_shard(gossip, P(*names), axes)
    np.testing.assert_array_equal(once(parts), once(gossip))


def test_leaves_may_be_divided_along_different_axes():
    made = jax.make_mesh((2, 2, 2), ("workers", "a", "b"))
    there, here = communicators.mesh(2, mesh=made), communicators.simulated(2)
    specs = {
        "both": P("a", "b"),
        "one": P(None, "b"),
        "none": P(),
        "joint": P(("b", "a")),
    }
    params = {k: jnp.arange(64.0).reshape(8, 8) * i for i, k in enumerate(specs)}
    own = communicators.from_local(there, jnp.asarray([1.0, 3.0]))

    def run(communicator, own):
        code = choco(communicator, compressors.top_k(0.25))
        mechanism = djax.per_shard(code, specs, {"a": 2, "b": 2})

        def step(params, factor):
            params = jax.tree.map(lambda x: x * factor, params)
            state = mechanism.init(params)
            for _ in range(2):
                zeros = jax.tree.map(jnp.zeros_like, params)
                updates, state = mechanism.update(zeros, state, params)
                params = optax.apply_updates(params, updates)
            return params, state

        whole = communicators.replicate(communicator, params, specs)
        return jax.jit(communicator.spmd(step))(whole, own)

    mine, other = run(there, own), run(here, jnp.asarray([1.0, 3.0]))
    assert_close(mine, other)
    found = mine[1].axes.names
    assert found == ((), ("a", "b"), ("b",))


def test_a_run_goes_on_from_a_checkpoint_with_the_same_bits(tmp_path):
    there = mesh(4, 2)
    optimizer = optax.chain(optax.adam(0.1), MECHANISMS["power_gossip"](there))
    run = training.make_steps(gradient_fn, optimizer, there)
    data = targets(there, 4)
    first = {k: x[:, :2] for k, x in data.items()}
    second = {k: x[:, 2:] for k, x in data.items()}

    def begin():
        params = communicators.replicate(there, model(), SPECS)
        return training.init_workers(optimizer, there, params)

    def saver(resume):
        options = training.Checkpoints(tmp_path, resume=resume)
        return training.Checkpointer(options, there)

    workers, _ = run(begin(), first)
    saving = saver(resume=False)
    saving.save(2, workers)
    saving.close()
    expected, _ = run(workers, second)
    restored, _ = saver(resume=True).restore(begin())
    assert_divided(restored.params)
    found, _ = run(restored, second)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)


def test_the_memory_of_workers_is_used_again():
    there = mesh(4, 2)
    optimizer = optax.chain(optax.adam(0.1), MECHANISMS["gossip"](there))
    params = communicators.replicate(there, model(), SPECS)
    workers = training.init_workers(optimizer, there, params)
    run = training.make_steps(gradient_fn, optimizer, there)
    run(workers, targets(there, 2))
    assert all(x.is_deleted() for x in jax.tree.leaves(workers.params))
    assert not any(x.is_deleted() for x in jax.tree.leaves(params))


def test_arrays_keep_the_layout_that_they_have():
    """Also if the axes of the user's mesh are explicit, as JAX makes them."""
    explicit = jax.make_mesh((4, 2), ("workers", "fsdp"))
    there = communicators.mesh(4, mesh=explicit)
    assert set(there.mesh.axis_types) == {AxisType.Auto}
    x = jax.device_put(np.zeros((6, 8)), NamedSharding(explicit, P(None, "fsdp")))
    assert communicators.replicate(there, x).sharding.spec == P("workers", None, "fsdp")
    rows = jax.device_put(np.zeros((4, 8)), NamedSharding(explicit, P(None, "fsdp")))
    placed = communicators.from_local(there, rows)
    assert placed.sharding.spec == P("workers", "fsdp")
    assert communicators.to_local(there, placed).shape == (4, 8)


def test_keys_and_all_dtypes_are_laid_out_and_read():
    there = mesh(4, 2)
    keys = jax.random.split(jax.random.key(0), 4)
    rows = {"key": keys, "i": np.arange(4, dtype=np.int8)}
    placed = communicators.from_local(there, rows)
    read = communicators.to_local(there, placed)
    np.testing.assert_array_equal(read["key"], jax.random.key_data(keys))
    np.testing.assert_array_equal(read["i"], np.arange(4))
    of_zero = jax.jit(there.spmd(there.broadcast))(placed)
    assert set(communicators.to_local(there, of_zero)["i"]) == {0}


def test_the_order_of_ranks_is_that_of_the_axis():
    grid = np.array(jax.devices()).reshape(2, 4).T
    there = communicators.mesh(4, mesh=Mesh(grid, ("workers", "fsdp")))
    assert [d.id for d in there.devices] == [0, 4, 1, 5, 2, 6, 3, 7]
    ranks = jax.jit(there.spmd(lambda x: x + there.rank()))(jnp.zeros(4, jnp.int32))
    np.testing.assert_array_equal(ranks, range(4))
    assert repr(there) == "mesh(4, mesh=(workers: 4, fsdp: 2))"


def test_one_worker_may_have_all_devices():
    alone = mesh(1, 8)
    for name in ("all_reduce", "gossip"):
        workers = trained(alone, MECHANISMS[name](alone))
        assert_close(workers.params, trained(alone, optax.identity()).params)


@pytest.mark.parametrize(
    ("call", "error"),
    [
        (lambda: communicators.mesh(4, mesh="fsdp"), r"must be a jax\.sharding\.Mesh"),
        (
            lambda: communicators.mesh(
                2, mesh=jax.make_mesh((4, 2), ("workers", "fsdp"))
            ),
            "need an axis 'workers' of length 2",
        ),
        (
            lambda: communicators.mesh(
                4, mesh=jax.make_mesh((4, 2), ("w", "fsdp")), axis_name="dp"
            ),
            "pass axis_name=",
        ),
        (
            lambda: communicators.mesh(
                4,
                mesh=mesh(4, 2).mesh,
                devices=jax.devices(),
            ),
            "leave out devices= or mesh=",
        ),
        (
            lambda: communicators.replicate(mesh(4, 2), {"w": jnp.zeros(3)}, P("fsdp")),
            r"does not fit \['w'\] of shape \(3,\)",
        ),
        (
            lambda: communicators.replicate(mesh(4, 2), jnp.zeros(4), P("tensor")),
            "does not fit the array",
        ),
        (
            lambda: communicators.replicate(
                mesh(4, 2), {"w": jnp.zeros(4)}, {"v": P()}
            ),
            "specs must be a PartitionSpec, or a tree",
        ),
        (
            lambda: communicators.replicate(mesh(4, 2), jnp.zeros(4), "fsdp"),
            "specs must be PartitionSpecs",
        ),
        (
            lambda: communicators.from_local(mesh(4, 2), jnp.zeros(3)),
            "leading axis of the 4 workers",
        ),
        (
            lambda: djax.per_shard(MECHANISMS["gossip"](mesh(4, 2)), P("tensor")),
            r"divides along \['tensor'\]",
        ),
        (
            lambda: djax.per_shard(
                MECHANISMS["gossip"](mesh(4, 2)), P("fsdp"), {"fsdp": 4}
            ),
            "the workers of the mesh have",
        ),
        (
            lambda: djax.per_shard(
                MECHANISMS["gossip"](communicators.simulated(4)), P("fsdp")
            ),
            "in simulation pass axes=",
        ),
        (
            lambda: djax.per_shard(
                MECHANISMS["gossip"](communicators.simulated(4)), "fsdp", {"fsdp": 2}
            ),
            r"must be jax\.sharding\.PartitionSpecs",
        ),
        (
            lambda: djax.per_shard(
                MECHANISMS["gossip"](communicators.simulated(4)), P("fsdp"), {"fsdp": 2}
            ).init({"w": jnp.zeros(3)}),
            r"does not divide params\['w'\]",
        ),
    ],
)
def test_mistakes_are_named(call, error):
    with pytest.raises((TypeError, ValueError), match=error):
        call()
