"""That a process which waits for others says for whom, and where it stands."""

import re

import pytest
from launch import mpirun, python

from djax import communicators, transport

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(200)]

PROGRAM = """
import os, sys, time
import jax, jax.numpy as jnp, optax
import djax
communicator = djax.communicators.mpi()
rank = communicator.rank()
everybody = communicator.host_comm
ring = djax.topologies.ring(communicator.size)
optimizer = optax.chain(optax.sgd(0.1), djax.gossip(ring, communicator))
params = jnp.zeros((1, 16))

@jax.jit
@communicator.spmd
def step(params):
    updates, _ = optimizer.update(jnp.ones_like(params), state, params)
    return optax.apply_updates(params, updates)

def start():
    global state
    state = optimizer.init(params[0])
    jax.block_until_ready(step(params))
    everybody.Barrier()

everybody.Barrier()
start()
"""

LATE = """
def draw():
    time.sleep(2.3)

def late(work):
    if rank == 0:
        draw()
    jax.block_until_ready(work())

def often(params):  # Waits that are longer than the limit, all together.
    for _ in range(200):
        if rank == 0:
            time.sleep(0.01)
        params = jax.block_until_ready(step(params))

def alone():  # No rank waits.
    time.sleep(2)

late(lambda: step(params))
often(params)
alone()
everybody.Barrier()
late(lambda: communicator.gather([rank]))
late(lambda: communicator.mean(params))
"""


def said(result, rank):
    """What a rank of a job has said after the ranks had started."""
    lines = [x for x in result.stderr.splitlines() if x.startswith(f"rank {rank} of 2")]
    return [line for line in lines if ", in start." not in line]


def test_a_rank_that_waits_long_for_another_says_so_and_the_other_says_where_it_is():
    result = mpirun(2, "-c", PROGRAM + LATE, timeout=90, DJAX_WATCHDOG="1.5")
    assert result.returncode == 0, result.stderr
    said_by_1 = [
        "rank 1 of 2 has waited for rank 0 for 2 s, in "
        rf"{exchange}; Python stands at <string>:\d+, in (late|<lambda>)\. Do all .*"
        for exchange in [r"round 1 of 1 of gossip \(permute\)", "gather", "mean"]
    ]
    assert all(map(re.fullmatch, said_by_1, said(result, 1))), result.stderr
    assert len(said(result, 1)) == 3, result.stderr
    answer = "rank 0 of 2, for which rank 1 waits, is in no exchange; Python stands at "
    answer += r"<string>:\d+, in draw\."
    answers = said(result, 0)
    assert len(answers) == 3
    assert all(re.fullmatch(answer, x) for x in answers), answers


def test_a_conditional_on_a_rank_around_a_mechanism_is_found():
    program = """
@jax.jit
def sometimes(params):
    return jax.lax.cond(communicator.rank() == 0, lambda x: x, step, params)

def train():
    jax.block_until_ready(sometimes(params))

train()
"""
    limits = {"DJAX_WATCHDOG": "1", "DJAX_EXIT_TIMEOUT": "4"}
    result = mpirun(2, "-c", PROGRAM + program, timeout=90, **limits)
    assert result.returncode == 1
    first, *_ = said(result, 1)
    assert re.match(
        r"rank 1 of 2 has waited for rank 0 for \d s, in round 1 of 1 of gossip "
        r"\(permute\); Python stands at <string>:\d+, in train\. Do all ranks come to "
        r"this exchange\? The usual reason is a condition around a mechanism",
        first,
    )
    end = "is in no exchange; Python stands at no line of your program."
    assert any(line.endswith(end) for line in said(result, 0)), result.stderr


def test_programs_do_not_depend_on_those_that_were_traced_before():
    """So that compiled programs are found again; and some have no watchdog."""
    program = """
def text(mechanism):
    def average(x):
        return mechanism.mix(x, mechanism.init(x))[0]
    return jax.jit(communicator.spmd(average)).lower(params).as_text()

def gossip():
    return text(djax.gossip(ring, communicator))

first = gossip()
text(djax.all_reduce(communicator))
assert gossip() == first
os.environ["DJAX_WATCHDOG"] = "0"
watched, communicator = communicator, djax.communicators.mpi()
assert communicator.watchdog is None
assert "mpi_send_ffi" in first
assert "mpi_send_ffi" not in gossip()
"""
    result = mpirun(2, "-c", PROGRAM + program, timeout=90)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


def test_a_process_that_waits_for_a_result_says_where():
    program = """
import os, sys, time
import jax, jax.numpy as jnp
import djax
from djax import transport
os.environ["DJAX_WATCHDOG"] = "0.5"
transport.watch_results("process 1 of 2")
workers = djax.communicators.simulated(2)
gossip = djax.gossip(djax.topologies.ring(2), workers)

def late(x):
    time.sleep(1.4 * bool(x[0]))
    return x

@jax.jit
def step(x):
    moved, _ = workers.spmd(lambda x: gossip.mix(x, gossip.init(x)))(x)
    return jax.pure_callback(late, x, x + moved)

def often():  # Each wait is short.
    for _ in range(100):
        time.sleep(0.01)
        jax.block_until_ready(step(jnp.zeros(2)))

def once():
    jax.block_until_ready(step(jnp.ones(2)))

often()
print("once", file=sys.stderr)
once()
"""
    result = python("-c", program)
    assert result.returncode == 0, result.stderr
    before, _, after = result.stderr.partition("once\n")
    assert "in often" not in before
    # JAX calls the callback in this thread or in another one.
    where = r"process 1 of 2 has stood at <string>:\d+, in (late|once) for \d s\. "
    assert re.match(f"{where}.*: gossip\\.\n", after), result.stderr


@pytest.mark.parametrize("text", ["-1", "soon", "nan"])
def test_the_limit_is_a_number_of_seconds(monkeypatch, text):
    monkeypatch.setenv("DJAX_WATCHDOG", text)
    with pytest.raises(ValueError, match=f"DJAX_WATCHDOG={text} must be a number of"):
        communicators.mpi()


def test_the_limit_may_be_none(monkeypatch):
    monkeypatch.setenv("DJAX_WATCHDOG", "0")
    assert transport.watchdog_seconds() == 0
