"""Runs `tests/mpi` on several ranks."""

import re

import pytest
from launch import mpirun

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(1600)]

# More ranks than cores are slow, since MPI polls.
SUITES = {
    4: "not float32",
    2: "float32 or permute",
    3: "test_communicator_mpi and not cost",
    8: "float32 and relay_overlap",
}


@pytest.mark.parametrize("ranks", SUITES)
def test_suite_under_mpirun(ranks):
    result = mpirun(
        ranks,
        # One rank's exception ends all of them, where the others would wait for it.
        *("-m", "mpi4py", "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider"),
        *("--timeout=300", "--timeout-method=thread", "-n", "0", "tests/mpi"),
        *("-k", SUITES[ranks]),
        fresh=ranks == 2,  # Each has a seed of its own for the order of Python's sets.
        timeout=1500,
    )
    assert result.returncode == 0, result.stdout[-5000:] + result.stderr[-5000:]
    assert result.stdout.count(" passed") == ranks


def test_what_was_counted_is_what_a_run_sends(tmp_path):
    """In whole training steps, from what mpi4jax logs of each call of MPI."""
    program = """
import os, sys
import jax, jax.numpy as jnp
import djax
from djax import communicators, compressors, topologies

MPI, STEPS = communicators.mpi(), 6
(mine,) = MPI.local_ranks
log = os.open(f"{sys.argv[1]}/{mine}", os.O_WRONLY | os.O_CREAT)
os.dup2(log, 1)  # A file for each rank: in one, they would cut into each other.
ring = topologies.ring(3)
params = {"w": jnp.ones((40, 30)), "b": jnp.ones(7)}
code = compressors.top_k(0.1)
mechanisms = {
    4: [
        djax.power_gossip(ring, MPI, rank=2),
        djax.power_gossip(ring, MPI, iterations=5),
        djax.choco_gossip(ring, MPI, code, 0.1),
        djax.every(3, djax.deep_squeeze(ring, MPI, compressors.low_rank(1), 0.1)),
    ],
    1: [djax.moniqua(ring, MPI, 1.0, 0.1)],
}

def run(mechanism):
    def step(carry, _):
        x, state = carry
        u, state = mechanism.update(jax.tree.map(jnp.zeros_like, x), state, x)
        return (u, state), None
    return jax.lax.scan(step, (params, mechanism.init(params)), length=STEPS)[0]

items = messages = 0
for width, some in mechanisms.items():
    for mechanism in some:
        jax.block_until_ready(jax.jit(run, static_argnums=0)(mechanism))
        cost = djax.communication_cost(mechanism, params, ring)
        items += cost.bytes_per_step[mine] * STEPS // width
        messages += cost.messages_per_step[mine] * STEPS
print(f"counted {int(items)} {int(messages)}", flush=True)
"""
    result = mpirun(3, "-c", program, str(tmp_path), timeout=200, MPI4JAX_DEBUG="1")
    assert result.returncode == 0, result.stderr
    for rank in range(3):
        log = (tmp_path / str(rank)).read_text()
        sent = [int(n) for n in re.findall(r" / -> \d \(tag 0, (\d+) items\)", log)]
        assert f"counted {sum(sent)} {len(sent)}" in log


def test_ranks_of_a_node_are_a_group():
    """MPICH makes two nodes of one, to which the ranks belong in turn."""
    program = """
import jax.numpy as jnp
import djax
communicator = djax.communicators.mpi()
try:
    local, across = djax.communicators.grouped(communicator, by="node")
except ValueError as error:
    print(error, flush=True)
else:
    values = local.all_gather(jnp.int32(communicator.rank())).tolist()
    print(values, across.rank(), flush=True)
"""
    node = {"MPIR_CVAR_NUM_CLIQUES": "2"}
    result = mpirun(4, "-c", program, timeout=60, **node)
    assert result.returncode == 0, result.stderr
    for line in ("[0, 2] 0", "[1, 3] 1"):
        assert result.stdout.count(line) == 2
    result = mpirun(3, "-c", program, timeout=60, **node)
    assert result.stdout.count("has 2 workers") == 3


def test_an_exception_on_one_rank_ends_all():
    program = """
import djax
communicator = djax.communicators.mpi()
if communicator.rank() == 1:
    raise RuntimeError("out of cheese")
communicator.gather([None])
"""
    result = mpirun(2, "-c", program, timeout=60)
    assert result.returncode != 0
    assert "rank 1 of 2 failed" in result.stderr
    assert "out of cheese" in result.stderr


def test_an_exception_on_all_ranks_is_told_once():
    program = """
import djax
djax.gossip(djax.topologies.ring(3), djax.communicators.mpi())
"""
    result = mpirun(2, "-c", program, timeout=60)
    assert result.returncode != 0
    assert result.stderr.count("has 3 workers but the communicator has 2") == 1


def test_a_foreign_launcher_is_recognised():
    """What mpirun of another MPI than mpi4py's looks like: n worlds of one rank."""
    program = """
import os
from mpi4py import MPI
os.environ["OMPI_COMM_WORLD_SIZE"] = "4"
import djax
djax.communicators.mpi()
"""
    result = mpirun(1, "-c", program, timeout=60)
    assert result.returncode != 0
    assert "belong to different MPIs" in result.stderr


def test_a_mesh_can_span_processes():
    """Two processes of two devices each are one mesh of four workers."""
    program = """
import os
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"
import jax, jax.numpy as jnp, numpy as np, optax
jax.distributed.initialize(cluster_detection_method="mpi4py")
import djax

communicator, ring = djax.communicators.mesh(4), djax.topologies.ring(4)
gossip = djax.gossip(ring, communicator)
targets = np.arange(4.0, dtype=np.float32)

def worker(x, target):
    return x + gossip.update(target - x, gossip.init(x), x)[0]

local = targets[np.asarray(communicator.local_ranks)]
local = jax.make_array_from_process_local_data(communicator.sharding, local)
start = djax.communicators.replicate(communicator, jnp.float32(0))
mixed = jax.jit(communicator.spmd(worker))(start, local)
for shard in mixed.addressable_shards:
    expected = (ring.mixing_matrix @ targets)[shard.index[0]]
    np.testing.assert_allclose(shard.data, expected, rtol=1e-6)
print("two" if len(mixed.addressable_shards) == 2 else "?")
"""
    result = mpirun(2, "-c", program, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("two") == 2
