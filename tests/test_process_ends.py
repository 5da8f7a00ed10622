"""That a job of several processes ends, whatever happens to one of them."""

import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from launch import GUARD, ROOT, mpirun, python

from djax.transport import _start

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(200)]

JOINED = """
import os, sys, time
import djax
communicator = djax.communicators.mpi()
rank = communicator.rank()
everybody = communicator.host_comm
"""


def end(program, **options):
    """Runs a program that begins by joining the others."""
    command = "-c", JOINED + program
    return mpirun(2, *command, timeout=90, DJAX_EXIT_TIMEOUT="3", **options)


# ---- The end -------------------------------------------------------------------------


def test_an_exit_code_of_one_rank_ends_all_with_it():
    result = end("sys.exit(3) if rank == 1 else everybody.Barrier()", fresh=True)
    assert result.returncode == 3
    assert "rank 1 of 2 ended with exit code 3: all ranks end." in result.stderr


def test_exit_codes_that_all_ranks_have_need_no_words():
    result = end("sys.exit(3)")
    assert result.returncode == 3
    assert not result.stderr


@pytest.mark.parametrize(
    "leave", ["sys.exit(0)", "raise SystemExit", "pass  # fewer steps"]
)
def test_who_waits_for_a_rank_that_has_left_ends_all(leave):
    result = end(f"""
def wait():
    everybody.Barrier()

if rank == 1:
    {leave}
else:
    wait()
""")
    assert result.returncode == 1
    assert "rank 0 of 2 stands at <string>:9, in wait, for " in result.stderr
    assert "rank 1 ended before" in result.stderr


def test_late_work_is_waited_for():
    """An exit that was caught is none; nor is a pause in a loop a standstill."""
    result = end("""
try:
    sys.exit(3)
except SystemExit:
    pass
if rank == 0:
    for _ in range(10):
        time.sleep(0.5)
    print("the pictures are written")
""")
    assert result.returncode == 0, result.stderr
    assert "the pictures are written" in result.stdout


def test_a_frozen_rank_is_not_waited_for(tmp_path):
    result = end(f"""
import signal
pathname = {str(tmp_path / "pid")!r}
if rank == 1:
    open(pathname, "w").write(str(os.getpid()))
    os.kill(os.getpid(), signal.SIGSTOP)
""")
    assert result.returncode == 1
    assert "rank 0 of 2 has ended; rank 1 has given no sign of life" in result.stderr


# ---- The start -----------------------------------------------------------------------

FEW_SECONDS = {"DJAX_START_TIMEOUT": "3"}


def test_ranks_that_do_not_join_are_named():
    """One that has started MPI, but does not join."""
    program = """
import sys, time
from mpi4py import MPI
if MPI.COMM_WORLD.rank == 1:
    time.sleep(60)
import djax
djax.communicators.mpi()
"""
    result = mpirun(3, "-c", program, timeout=60, **FEW_SECONDS)
    assert result.returncode == 1
    assert "rank 1 of 3 has not come to djax.communicators.mpi()" in result.stderr
    assert "ranks [1] have not called it within 3 s" in result.stderr


def test_ranks_that_do_not_start_mpi_are_named():
    program = """
import os, time
if os.environ["PMI_RANK"] == "1":
    time.sleep(60)
import djax
djax.communicators.mpi()
"""
    result = mpirun(2, "-c", program, fresh=True, timeout=60, **FEW_SECONDS)
    assert result.returncode != 0
    said = r"rank 0 of 2 is starting MPI since \d+ s: rank 1 has not come"
    assert re.search(said, result.stderr)
    assert "rank 0 of 2 ends after " in result.stderr


@pytest.mark.parametrize("text", ["0", "-1", "soon", "nan"])
def test_limits_are_positive_numbers(monkeypatch, text):
    monkeypatch.setenv("DJAX_START_TIMEOUT", text)
    with pytest.raises(ValueError, match=f"DJAX_START_TIMEOUT={text} must be"):
        _start.seconds_of(_start.START_TIMEOUT)


# ---- Processes that are killed -------------------------------------------------------


def test_the_start_does_not_wait_for_the_dead():
    program = """
import os, signal
if os.environ["PMI_RANK"] == "1":
    os.kill(os.getpid(), signal.SIGKILL)
import djax
djax.communicators.mpi()
"""
    command = "-m", "djax.guard", "-c", program
    options = ("-disable-auto-cleanup",)
    result = mpirun(3, *command, fresh=True, options=options, timeout=60)
    assert result.returncode != 0
    assert "rank 1 was ended by SIGKILL" in result.stderr
    for rank in (0, 2):  # Neither is held up by what the launcher says of the other.
        assert re.search(rf"rank {rank} of 3 ends starting MPI: .* died", result.stderr)


@pytest.mark.parametrize("rest", ["print('my table')", "everybody.Barrier()"])
def test_the_end_does_not_wait_for_the_dead(rest):
    """Neither MPI's end nor a message that a dead rank will never send."""
    program = f"""
import signal
everybody.Barrier()
if rank == 1:
    os.kill(os.getpid(), signal.SIGKILL)
time.sleep(1)
{rest}
"""
    result = end(program, guarded=True)
    assert result.returncode != 0
    if rest.startswith("print"):
        assert "my table" in result.stdout
        assert "has ended; rank 1 has given no sign of life" in result.stderr
    else:
        assert "another rank has died: it ends" in result.stderr


def start(tmp_path, *guard):
    """A job of two ranks that sleep; returns it and their process ids."""
    program = (
        JOINED
        + f"""
open({str(tmp_path)!r} + f"/{{rank}}", "w").write(str(os.getpid()))
os.rename({str(tmp_path)!r} + f"/{{rank}}", {str(tmp_path)!r} + f"/rank {{rank}}")
time.sleep(90)
"""
    )
    launcher = pathlib.Path(sys.executable).parent / "mpirun"
    job = subprocess.Popen(
        [launcher, "-n", "2", sys.executable, *guard, "-c", program],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    files = [tmp_path / f"rank {rank}" for rank in range(2)]
    wait_until(lambda: all(file.exists() for file in files), 60)
    return job, [int(file.read_text()) for file in files]


def wait_until(condition, seconds):
    """Looks often."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def stat(process):
    """State and parent of a process, or Nones where there is none."""
    try:
        text = pathlib.Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return None, None
    state, parent = text.rpartition(")")[2].split()[:2]
    return (None, None) if state in "ZX" else (state, int(parent))


def all_gone(processes):
    """Whether none of them lives."""
    return not any(stat(process)[0] for process in processes)


def test_a_guard_outlives_the_news_of_other_deaths():
    """Which come by a signal, until it has ended; a launcher would end all others."""
    program = "print('up', flush=True)"
    for _ in range(5):
        guard = subprocess.Popen(
            [sys.executable, GUARD, "-c", program], stdout=subprocess.PIPE
        )
        with guard.stdout as said:
            assert said.readline() == b"up\n"
        while guard.poll() is None:
            guard.send_signal(signal.SIGUSR1)
            time.sleep(1e-4)
        assert guard.returncode == 0


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's kernel")
def test_nobody_outlives_a_guard_that_is_killed(tmp_path):
    job, ranks = start(tmp_path, GUARD)
    try:
        os.kill(stat(ranks[0])[1], signal.SIGKILL)
        wait_until(lambda: all_gone(ranks), 20)
    finally:
        job.kill()
        job.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="of Linux's kernel")
@pytest.mark.parametrize("guard", [(), (GUARD,)])
def test_nobody_outlives_a_launcher_that_is_killed(tmp_path, guard):
    job, ranks = start(tmp_path, *guard)
    try:
        proxy = stat(ranks[0])[1]
        if guard:
            proxy = stat(proxy)[1]
        os.kill(proxy, signal.SIGKILL)
        wait_until(lambda: all_gone(ranks), 20)
    finally:
        job.kill()
        job.wait()


# ---- Command lines -------------------------------------------------------------------


def test_a_mistake_on_one_rank_is_said_by_that_rank():
    """By a rank other than the first, which has nothing to complain about."""
    program = """
import argparse, os, sys
from experiments.lib import errors
errors.PATIENCE = 2.0
with errors.heard_once():
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed")
    wrong = ["--sead", "1"] if os.environ["PMI_RANK"] == "1" else []
    parser.parse_args(wrong)
    from mpi4py import MPI
    MPI.COMM_WORLD.Barrier()
"""
    result = mpirun(2, "-c", program, timeout=60)
    assert result.returncode == 2
    assert "rank 1: usage:" in result.stderr
    assert "unrecognized arguments: --sead 1" in result.stderr


def test_output_that_nobody_reads_ends_quietly():
    program = """
import os, sys
from experiments.lib import errors
read, write = os.pipe()
os.dup2(write, 1)
os.close(write)
os.close(read)
with errors.readers_may_leave():
    print("a long list")
"""
    result = python("-c", program)
    assert result.returncode == 128 + signal.SIGPIPE
    assert not result.stderr


# ---- Exchanges in the background -----------------------------------------------------

STREAMING = """
import jax, jax.numpy as jnp, optax
from djax.communicators import _background
outer = djax.outer(4, optax.sgd(1.0), djax.all_reduce(communicator), delay=2)
params = jnp.float32(rank)
state = outer.init(params)

@jax.jit
def step(params, state):
    updates, state = outer.update(jnp.ones_like(params), state, params)
    return optax.apply_updates(params, updates), state

def steps(params, state, count):
    for _ in range(count):
        params, state = jax.block_until_ready(step(params, state))
    return params, state
"""


def test_an_exchange_that_nobody_waits_for_is_finished():
    """After 4 steps, the model has been sent, and the exchange is not yet compiled."""
    result = end(f"{STREAMING}steps(params, state, 4)", fresh=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr


def test_an_exit_code_does_not_wait_for_an_exchange():
    result = end(f"""{STREAMING}
steps(params, state, 4)
sys.exit(3) if rank == 1 else everybody.Barrier()
""")
    assert result.returncode == 3
    assert "rank 1 of 2 ended with exit code 3: all ranks end." in result.stderr


def test_an_error_in_the_second_thread_ends_all():
    result = end(f"""{STREAMING}
def make(self, values):
    raise RuntimeError("out of cheese")

if rank == 1:
    _background.Exchange._make = make
steps(params, state, 8)
""")
    assert result.returncode != 0
    assert "rank 1 of 2 failed" in result.stderr
    assert "out of cheese" in result.stderr


def test_an_exchange_of_one_rank_alone_ends_all():
    result = end(f"{STREAMING}steps(params, state, 3 + rank)")
    assert result.returncode == 1
    assert "rank 1 of 2 has ended, and so have all others, but " in result.stderr
