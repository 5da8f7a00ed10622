"""Every step is lowered for GPUs of NVIDIA, on machines without any.

Lowering finds operations that CUDA lacks. It compiles nothing and runs nothing.
"""

import conformance
import jax
import jax.numpy as jnp
import optax
import pytest
from conformance import each_algorithm
from jax.sharding import PartitionSpec

import djax
from djax import communicators, compressors, topologies

SIZE = 4
CODES = {
    "top_k": compressors.top_k(0.5),
    "random_k": compressors.random_k(0.5),
    "sign": compressors.sign(),
    "quantize": compressors.quantize(4, unbiased=False),
    "low_rank": compressors.low_rank(1),
    "dct": compressors.dct(1),
}


def for_cuda(optimizer, communicator):
    """The text of a step's program, lowered for CUDA alone."""
    shapes = {"b": (3,), "w": (4, 2)}
    params = {k: jnp.ones((SIZE, *shape), jnp.float32) for k, shape in shapes.items()}

    def step(params, state):
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(communicator.spmd(optimizer.init), params)
    program = jax.jit(communicator.spmd(step)).trace(params, state)
    return program.lower(lowering_platforms=("cuda",)).as_text()


def large(size):
    """A mesh whose workers have two devices each."""
    devices = jax.make_mesh((size, 2), ("workers", "fsdp"))
    return communicators.mesh(size, mesh=devices)


each_place = pytest.mark.parametrize(
    "where", [communicators.simulated, communicators.mesh]
)


@each_algorithm
@each_place
def test_a_step_of_every_algorithm(name, where):
    communicator = where(SIZE)
    mechanism = conformance.make(name, topologies.star(SIZE), communicator)
    optimizer = optax.chain(optax.sgd(0.1), mechanism)
    assert "func.func public @main" in for_cuda(optimizer, communicator)


@each_algorithm
def test_a_step_of_workers_with_two_devices(name):
    communicator = large(SIZE)
    mechanism = conformance.make(name, topologies.star(SIZE), communicator)
    specs = {"b": PartitionSpec(), "w": PartitionSpec("fsdp")}
    optimizer = optax.chain(optax.sgd(0.1), djax.per_shard(mechanism, specs))
    assert "func.func public @main" in for_cuda(optimizer, communicator)


@each_place
@pytest.mark.parametrize("name", ["gossip", "power_gossip"])
def test_a_step_of_groups(where, name):
    communicator = where(SIZE)
    local, across = communicators.grouped(communicator, 2)
    mechanism = conformance.make(name, topologies.ring(2), across)
    optimizer = optax.chain(
        djax.on_updates(djax.all_reduce(local)),
        optax.sgd(0.1),
        djax.sharded(mechanism, local),
    )
    assert "func.func public @main" in for_cuda(optimizer, communicator)


@pytest.mark.parametrize("code", CODES)
def test_a_message_of_every_code(code):
    communicator = communicators.simulated(SIZE)
    mechanism = djax.choco_gossip(
        topologies.ring(SIZE), communicator, CODES[code], consensus_rate=0.1
    )
    assert "func.func public @main" in for_cuda(mechanism, communicator)


@each_place
def test_what_is_made_for_processors_stays_there(where):
    """The conditionals that hide offsets from XLA are for its CPU backend alone."""
    communicator = where(SIZE)
    mechanism = djax.choco_gossip(
        topologies.ring(SIZE), communicator, CODES["sign"], consensus_rate=0.1
    )
    assert "stablehlo.case" not in for_cuda(mechanism, communicator)
