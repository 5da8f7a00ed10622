"""What an update sends, against arithmetic by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax import communicators, topologies

PARAMS = {
    "kernel": jax.ShapeDtypeStruct((1024, 512), "float32"),  # 2 MiB: travels alone
    "bias": jax.ShapeDtypeStruct((512,), "float32"),
    "scale": jax.ShapeDtypeStruct((8,), "float32"),
    "half": jax.ShapeDtypeStruct((100,), "bfloat16"),
}
BYTES = 4 * (1024 * 512 + 512 + 8) + 2 * 100
MESSAGES = 3  # the kernel; the small float32; the bfloat16


def cost(make, topology):
    communicator = communicators.simulated(topology.size)
    return djax.communication_cost(make(topology, communicator), PARAMS, topology)


def test_gossip_sends_the_model_to_each_neighbor():
    result = cost(djax.gossip, topologies.star(5))
    assert result.period == 1
    assert result.bytes_per_step == (4 * BYTES, *[BYTES] * 4)
    assert result.messages_per_step == (4 * MESSAGES, *[MESSAGES] * 4)
    assert result.max_bytes == 4 * BYTES
    assert result.mean_bytes == 8 * BYTES / 5
    assert isinstance(result.mean_bytes, (int, float))
    assert all(isinstance(b, int) for b in result.bytes_per_period)


def test_all_reduce_hands_over_its_buffer_once_in_single_precision():
    result = cost(lambda t, c: djax.all_reduce(c), topologies.ring(4))
    assert result.bytes_per_step == (BYTES + 2 * 100,) * 4
    assert result.max_messages == 2  # bfloat16 travels as float32, with the others


def test_chains_and_wrappers_are_seen_through():
    ring = topologies.ring(4)
    plain = cost(djax.gossip, ring)
    assert cost(lambda t, c: djax.dpsgd(0.1, t, c, momentum=0.9), ring) == plain
    assert cost(lambda t, c: djax.on_updates(djax.gossip(t, c)), ring) == plain
    assert cost(lambda t, c: djax.every(1, djax.gossip(t, c)), ring) == plain
    assert cost(lambda t, c: optax.sgd(0.1), ring).mean_bytes == 0


def test_interleaved_trees_share_the_load():
    trees = topologies.double_binary_trees(16)
    communicator = communicators.simulated(16)
    both = djax.interleave([djax.gossip(t, communicator) for t in trees])
    params = jax.ShapeDtypeStruct((1000,), "float32")
    result = djax.communication_cost(both, params, trees[0])
    degrees = [[len(t.neighbors(i)) for i in range(16)] for t in trees]
    expected = [2000 * (a + b) for a, b in zip(*degrees, strict=True)]
    assert list(result.bytes_per_step) == expected
    assert result.max_bytes == 8000


@pytest.mark.parametrize(("outer", "inner"), [(1, 3), (4, 1), (2, 3), (3, 2)])
def test_local_steps_are_averaged_over_their_period(outer, inner):
    ring = topologies.ring(4)
    plain = cost(djax.gossip, ring)
    nested = cost(
        lambda t, c: djax.every(outer, djax.every(inner, djax.gossip(t, c))), ring
    )
    assert nested.period == outer * inner
    assert nested.bytes_per_period == plain.bytes_per_period


def test_costs_add_over_their_least_common_period():
    ring = topologies.ring(4)
    total = cost(
        lambda t, c: optax.chain(
            djax.every(2, djax.gossip(t, c)), djax.every(3, djax.gossip(t, c))
        ),
        ring,
    )
    assert total.period == 6
    assert total.bytes_per_period == (5 * 2 * BYTES,) * 4
    assert total.mean_messages == 5 * 2 * MESSAGES / 6


def test_nothing_is_computed():
    huge = jax.ShapeDtypeStruct((10**12,), "float32")
    ring = topologies.ring(4)
    gossip = djax.gossip(ring, communicators.simulated(4))
    result = djax.communication_cost(gossip, huge, ring)
    assert result.max_bytes == 8 * 10**12
    assert result.max_messages == 2 * -(-(10**12) // (2**31 - 1))


def test_counting_leaves_the_transformation_usable():
    ring, communicator = topologies.ring(4), communicators.simulated(4)
    gossip = djax.gossip(ring, communicator)
    djax.communication_cost(gossip, jnp.ones(3), ring)
    params = jnp.arange(4.0)
    state = communicator.spmd(gossip.init)(params)
    zeros = jnp.zeros_like(params)
    updates, _ = communicator.spmd(gossip.update)(zeros, state, params)
    assert abs(updates).max() > 0


def test_the_size_must_be_the_transformations():
    gossip = djax.gossip(topologies.ring(4), communicators.simulated(4))
    with pytest.raises(ValueError, match="between 4 workers.*asked for 5"):
        djax.communication_cost(gossip, PARAMS, topologies.ring(5))


def test_counting_and_running_do_not_disturb_each_other():
    """jit caches traces: neither of the two may find the other's."""
    ring, communicator = topologies.ring(4), communicators.simulated(4)
    gossip = djax.gossip(ring, communicator)
    jitted = optax.GradientTransformation(jax.jit(gossip.init), jax.jit(gossip.update))
    params = jnp.arange(4.0)

    def run(transformation):
        def worker(x):
            zeros = jnp.zeros_like(x)
            return transformation.update(zeros, transformation.init(x), x)[0]

        return abs(communicator.spmd(worker)(params)).max()

    for transformation in (gossip, jitted):
        for _ in range(3):
            cost = djax.communication_cost(transformation, params[0], ring)
            assert cost.mean_bytes == 8
            assert run(transformation) > 0


def test_loops_count_as_often_as_they_run():
    def thrice(topology, communicator):
        gossip = djax.gossip(topology, communicator)

        def update(updates, state, params):
            def body(_, carry):
                return gossip.update(*carry, params)

            return jax.lax.fori_loop(0, 3, body, (updates, state))

        return optax.GradientTransformation(gossip.init, update)

    ring = topologies.ring(4)
    assert cost(thrice, ring) == cost(djax.gossip, ring).times(3)


def test_sending_that_depends_on_values_is_refused():
    def sometimes(topology, communicator):
        gossip = djax.gossip(topology, communicator)
        return optax.conditionally_transform(gossip, lambda step, *_: step % 4 == 0)

    with pytest.raises(ValueError, match=r"in a cond.*djax\.every"):
        cost(sometimes, topologies.ring(4))


def test_what_asynchronous_workers_send_is_counted_by_their_events():
    with pytest.raises(TypeError, match="Events.averaging_counts by the bytes"):
        cost(lambda *_: djax.adpsgd(optax.sgd(0.1)), topologies.ring(4))


def test_extra_arguments_are_passed_on():
    ring, communicator = topologies.ring(4), communicators.simulated(4)
    chain = optax.chain(optax.polyak_sgd(), djax.gossip(ring, communicator))
    value = jax.ShapeDtypeStruct((), "float32")
    result = djax.communication_cost(chain, PARAMS["bias"], ring, value=value)
    assert result.mean_bytes == 2 * 4 * 512


def test_costs_are_told_by_the_names_of_communicators():
    """As of two levels of a network; what is around a communicator has its name."""
    ring = topologies.ring(4)
    near = communicators.simulated(4, axis_name="near")
    far = communicators.simulated(4, axis_name="far", drop_probability=0.1)
    optimizer = optax.chain(
        djax.on_updates(djax.all_reduce(near)), djax.every(3, djax.gossip(ring, far))
    )
    cost = djax.communication_cost(optimizer, jnp.zeros(100), ring)
    assert set(cost.by_name) == {"near", "far"}
    assert cost.by_name["near"].mean_bytes == 400
    assert cost.by_name["far"].mean_bytes == pytest.approx(800 / 3)
    assert cost.mean_bytes == pytest.approx(400 + 800 / 3)
    once = djax.communication_cost(djax.gossip(ring, near), jnp.zeros(100), ring)
    assert once.by_name == {"near": once}


@pytest.mark.parametrize("name", ["gossip", "power_gossip", "push_sum", "every"])
def test_silent_steps_send_nothing(name):
    """Of a schedule in which a step has no messages, as those of MATCHA."""
    ring = topologies.ring(4).mixing_matrix
    alone = np.eye(4)
    schedule = topologies.from_matrices([ring, alone, ring, alone, alone])
    workers = communicators.simulated(4)
    mechanism = {
        "gossip": lambda: djax.gossip(schedule, workers),
        "power_gossip": lambda: djax.power_gossip(schedule, workers),
        "push_sum": lambda: djax.push_sum(schedule, workers),
        "every": lambda: djax.every(2, djax.gossip(schedule, workers)),
    }[name]()
    cost = djax.communication_cost(mechanism, jnp.zeros((3, 3)), workers)
    steps = 2 if name == "every" else 1
    assert cost.mean_messages == pytest.approx(2 * 2 / 5 / steps)
