"""Ranks that start different things learn what differs, in place of going wrong."""

import jax.numpy as jnp
import numpy as np
import pytest
from launch import mpirun

from djax import topologies
from djax._mechanism.agreement import _facts, around, differences

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(300)]

PROGRAM = """
import jax, jax.numpy as jnp, networkx as nx, optax
import djax
from djax import communicators, compressors, topologies

MPI = communicators.mpi()
rank, odd, size = MPI.rank(), MPI.rank() == 1, MPI.size
ring, star = topologies.ring(size), topologies.star(size)
x = {"b": jnp.ones(2), "w": jnp.ones((4, 3))}

def step(optimizer, x):
    return optimizer.update(x, optimizer.init(x), x)

def tell(case, program, *args):
    try:
        jax.block_until_ready(program(*args))
        said = "passed"
    except (ValueError, jax.errors.JaxRuntimeError) as error:
        said = str(error).splitlines()[-1]
    for who, line in enumerate(MPI.gather([said])):
        if rank == 0:  # Ranks that print at once cut into each other's lines.
            print(f"{case}@{who}: {line}", flush=True)
"""

DIFFERENT = """
light = topologies.from_networkx(nx.star_graph(size - 1), weights=0.125)
gossip = djax.gossip(ring, MPI)
k = 3 if odd else 4
code = compressors.top_k(0.5 if odd else 0.25)
cases = {
    "shape": (gossip, x | {"w": jnp.ones((k, 3))}),
    "dtype": (gossip, x | {"w": x["w"].astype("bfloat16" if odd else "float32")}),
    "name": (djax.all_reduce(MPI), {"b" if odd else "w": jnp.ones(2)}),
    "graph": (djax.relay(topologies.chain(size) if odd else star, MPI), x),
    "weights": (djax.gossip(light if odd else star, MPI), x),
    "mechanism": (djax.moniqua(ring, MPI, 1.0, 0.1) if odd else gossip, x),
    "rate": (djax.gossip(ring, MPI, consensus_rate=0.5 if odd else 1.0), x),
    "every": (optax.chain(optax.sgd(0.1), djax.every(k, gossip)), x),
    "led": (djax.led(4, gossip, 0.1 if odd else 0.2), x),
    "coins": (djax.prox_skip(0.5, gossip, 0.1, key=jax.random.key(k)), x),
    "code": (djax.choco_gossip(ring, MPI, code, 0.1), x),
    "key": (djax.power_gossip(ring, MPI, key=jax.random.key(k)), x),
    "schedule": (
        djax.push_sum(topologies.one_peer_exponential(size), MPI, rounds=k), x
    ),
}
for case, (optimizer, params) in cases.items():
    tell(case, optimizer.init, params)
tell("compiled shape", jax.jit(lambda x: step(gossip, x)), cases["shape"][1])
tell("compiled key", jax.jit(cases["key"][0].init), x)
rate = jax.jit(MPI.spmd(cases["rate"][0].init))
tell("compiled rate", rate, communicators.replicate(MPI, x))
"""

NAMED = {
    "shape": "params['w'] is float32[4, 3] on ranks 0, 2 but float32[3, 3] on rank 1",
    "dtype": "params['w'] is float32[4, 3] on ranks 0, 2 but bfloat16[4, 3] on rank 1",
    "name": "params['w'] is float32[2] on ranks 0, 2 but missing on rank 1",
    "graph": "the graph is star of 3 workers",
    "weights": "the graph's weights is",
    "mechanism": "the mechanism is gossip on ranks 0, 2 but moniqua on rank 1",
    "rate": "consensus_rate is 1.0 on ranks 0, 2 but 0.5 on rank 1",
    "every": "the mechanism is every(4, gossip) on ranks 0, 2 but every(3, gossip)",
    "led": "the mechanism is led(4, gossip, 0.2, share=1.0) on ranks 0, 2 but led(4, ",
    "coins": "the mechanism is prox_skip(0.5, the key [0, 4], gossip, 0.1, share=0.5) ",
    "code": "the compressor's messages is",
    "key": "key is the key [0, 4] on ranks 0, 2 but the key [0, 3] on rank 1",
    "compiled key": "key is the key [0, 4] on ranks 0, 2 but the key [0, 3] on rank 1",
    "schedule": "rounds is 4 on ranks 0, 2 but 3 on rank 1",
    "compiled shape": "params['w'] is float32[4, 3] on ranks 0, 2 but float32[3, 3]",
    "compiled rate": "consensus_rate is 1.0 on ranks 0, 2 but 0.5 on rank 1",
}


def test_what_differs_is_named_on_every_rank():
    """Shapes, graphs, weights, mechanisms and options; also within `jax.jit`."""
    result = mpirun(3, "-c", PROGRAM + DIFFERENT, timeout=200)
    assert result.returncode == 0, result.stderr
    for case, text in NAMED.items():
        for rank in range(3):
            (line,) = [
                line
                for line in result.stdout.splitlines()
                if line.startswith(f"{case}@{rank}: ")
            ]
            assert text in line, line
            assert "the ranks do not start the same" in line


EQUAL = """
code = compressors.quantize(4, unbiased=False)
mechanisms = {
    "chain": optax.chain(djax.gossip(ring, MPI), djax.all_reduce(MPI)),
    "every": djax.every(2, djax.on_updates(djax.all_reduce(MPI))),
    "interleave": djax.interleave([djax.gossip(ring, MPI), djax.relay(star, MPI)]),
    "choco_gossip": djax.choco_gossip(ring, MPI, code, 0.1),
    "dcd": djax.dcd(ring, MPI, compressors.quantize(8)),
    "tracking": djax.gradient_tracking(djax.gossip(ring, MPI)),
    "injected": optax.inject_hyperparams(
        lambda consensus_rate: djax.gossip(ring, MPI, consensus_rate=consensus_rate)
    )(optax.constant_schedule(0.5)),
    "MultiSteps": optax.MultiSteps(djax.gossip(ring, MPI), 2),
    # Worker's own: which of its messages are lost.
    "keys": djax.gossip(ring, MPI, key=jax.random.key(rank)),
}
if odd:  # Nothing runs: nobody is waited for.
    jax.eval_shape(mechanisms["chain"].init, x)
    djax.communication_cost(mechanisms["chain"], x, ring)
for case, optimizer in mechanisms.items():
    tell(case, optimizer.init, x)
tell("compiled", jax.jit(lambda x: [m.init(x) for m in mechanisms.values()]), x)
tell("many", jax.vmap(mechanisms["keys"].init), jnp.ones((3, 2)))

def again(x):  # Between other exchanges of one program.
    x, _ = step(mechanisms["chain"], MPI.broadcast(x))
    return jax.lax.scan(lambda c, _: step(mechanisms["keys"], c), x, length=2)

tell("scan", jax.jit(again), x)
"""


def test_what_is_the_same_passes():
    """Several mechanisms in one program, wrapped ones, and within loops."""
    result = mpirun(2, "-c", PROGRAM + EQUAL, timeout=200)
    assert result.returncode == 0, result.stderr
    lines = result.stdout.splitlines()
    assert len(lines) == 2 * (9 + 3), result.stdout
    assert all(line.endswith(": passed") for line in lines), result.stdout


@pytest.mark.parametrize("how", ["", "jax.jit"])
def test_ranks_that_differ_all_end(how):
    program = f"""
optimizer = djax.gossip(ring, MPI)
{how}(optimizer.init)({{"w": jnp.ones(3 + rank)}})
print("went on", flush=True)
"""
    result = mpirun(2, "-c", PROGRAM + program, timeout=60)
    assert result.returncode != 0
    assert "went on" not in result.stdout
    text = "params['w'] is float32[3] on rank 0 but float32[4] on rank 1"
    assert text in result.stderr


@pytest.mark.parametrize("how", ["", "jax.jit"])
def test_a_rank_that_starts_alone_does_not_wait_for_ever(how):
    program = f"""
import os, time
os.environ["DJAX_START_TIMEOUT"] = "1"
if odd:
    time.sleep(100)
{how}(djax.gossip(ring, MPI).init)(x)
"""
    result = mpirun(2, "-c", PROGRAM + program, timeout=60)
    assert result.returncode != 0
    assert "init of gossip: ranks [1] have not called it within 1 s" in result.stderr


def facts(topology, name="gossip", **options):
    return _facts(name, {"w": jnp.ones(3)}, {"topology": topology, **options})


def test_graphs_that_differ_by_name_or_rounding_alone_are_the_same():
    ring = topologies.ring(4)
    weights = ring.mixing_matrix * (1 + 1e-15)
    nearly = facts(topologies.Topology(ring.graph, weights, "ring"))
    assert not differences([facts(ring), nearly])
    assert differences([facts(ring), facts(topologies.star(4))])


def test_one_line_however_many_ranks():
    rates = [facts(topologies.ring(9), consensus_rate=1.0)] * 3
    rates += [facts(topologies.ring(9), consensus_rate=np.float32(0.5))] * 6
    (line,) = differences(rates)
    assert line == (
        "consensus_rate is 1.0 on ranks 0, 1, 2 but 0.5 on ranks 3, 4, 5, 6 and 2 more"
    )


def test_what_is_around_a_mechanism_counts():
    with around("every(4, {})"), around("interleave(1 of 2: {})"):
        inside = facts(topologies.ring(4))
    assert inside["the mechanism"] == "every(4, interleave(1 of 2: gossip))"
