"""Processes that JAX connects, without MPI: a mesh over all of their devices."""

import json
import pickle
import signal

import jax
import numpy as np
import pytest
from launch import processes

from experiments import train

pytestmark = [pytest.mark.xdist_group("mpi"), pytest.mark.timeout(400)]

# Each process dumps what it finds. The simulation of the same workers runs in the same
# process, on its first device.
PROGRAM = """
import pathlib, pickle, sys
import djax
djax.communicators.start_processes()
import jax, jax.numpy as jnp, numpy as np, optax
from jax.sharding import PartitionSpec as P

folder, large = pathlib.Path(sys.argv[1]), int(sys.argv[2])
process, size = jax.process_index(), jax.device_count() // large
found = {"process": process}
mesh = jax.make_mesh((size, large), ("workers", "fsdp"))
there = djax.communicators.mesh(size, mesh=mesh)
here = djax.communicators.simulated(size)
local = list(there.local_ranks)
specs = {"w": P("fsdp"), "b": P()}
rng = np.random.default_rng(0)
inputs = rng.normal(size=(size, 6, 8, 4)).astype("float32")
batches = {"x": inputs, "y": np.sin(inputs.sum(-1, keepdims=True))}

def loss_fn(params, batch):
    found = jnp.tanh(batch["x"] @ params["w"].T) + params["b"]
    return jnp.mean((found - batch["y"]) ** 2)

def gradient_fn(params, state, batch):
    loss, grads = jax.value_and_grad(loss_fn)(params, batch)
    return grads, state, {"loss": loss}

def rows(communicator, *steps):
    mine = slice(None) if communicator is here else local
    return jax.tree.map(lambda x: x[mine][:, slice(*steps)], batches)

def start(communicator, mechanism):
    model = {"w": jnp.full((2, 4), 0.1), "b": jnp.zeros(2)}
    optimizer = optax.chain(optax.adam(0.05), mechanism)
    params = djax.communicators.replicate(communicator, model, specs)
    workers = djax.training.init_workers(optimizer, communicator, params)
    return optimizer, workers

def train(communicator, dispatch=False, make=djax.gossip):
    mechanism = make(djax.topologies.ring(size), communicator)
    optimizer, workers = start(communicator, mechanism)
    steps = djax.training.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch
    )
    workers, metrics = steps(workers, rows(communicator, 6))
    scores = djax.metrics.evaluate(
        lambda params, batch: {"loss": loss_fn(params, batch)},
        workers.params, [jax.tree.map(lambda x: x[0, 0], batches)], communicator,
    )["loss"]
    read = djax.communicators.to_local(communicator, (workers.params, metrics))
    if communicator is here:
        read = jax.tree.map(lambda x: x[local], read)
    return read, scores

for name, options in {
    "scan": {}, "steps": {"dispatch": True},
    "power_gossip": {"make": djax.power_gossip},
}.items():
    found[name] = train(there, **options), train(here, **options)

found["gathered"] = there.gather([f"{rank} of {process}" for rank in local])

# A run that is saved and goes on is the run that was not interrupted.
def saver(resume):
    options = djax.training.Checkpoints(folder / "saved", resume=resume)
    return djax.training.Checkpointer(options, there)

mechanism = djax.gossip(djax.topologies.ring(size), there)
optimizer, workers = start(there, mechanism)
steps = djax.training.make_steps(gradient_fn, optimizer, there)
workers, _ = steps(workers, rows(there, 3))
saving = saver(False)
saving.save(3, workers)
found["unsaved"] = saving.finish()
saving.close()
whole, _ = steps(workers, rows(there, 3, 6))
restored, _ = saver(True).restore(start(there, mechanism)[1])
again, _ = steps(restored, rows(there, 3, 6))
both = djax.communicators.to_local(there, (whole, again))
found["resumed"] = jax.tree.map(np.array_equal, *both)

# Errors are the same on all processes.
def caught(call):
    try:
        call()
    except (ValueError, FloatingPointError) as error:
        return str(error)

found["settings differ"] = caught(
    lambda: djax.communicators.check_agreement(there, "seeds", [process] * len(local))
)
rate = 0.5 + 0.25 * (process == 1)
found["starts differ"] = caught(lambda: start(
    there, djax.gossip(djax.topologies.ring(size), there, consensus_rate=rate)
))
broken = rows(there, 6)
broken["x"] = np.where(size - 1 in local, np.nan, 1.0) * np.ones_like(broken["x"])
found["nonfinite"] = caught(lambda: steps(start(there, mechanism)[1], broken))
(folder / f"found {process}").write_bytes(pickle.dumps(found))
"""


@pytest.fixture(
    scope="module", params=[(2, 2, 1), (4, 1, 2)], ids=["2x2", "4x1, large workers"]
)
def found(request, tmp_path_factory):
    """What each process has found: so many with so many devices, workers of so many."""
    count, devices, large = request.param
    folder = tmp_path_factory.mktemp("hosts")
    ended = processes(count, "-c", PROGRAM, str(folder), str(large), devices=devices)
    for process in ended:
        assert process.returncode == 0, process.stderr
    return [pickle.loads((folder / f"found {i}").read_bytes()) for i in range(count)]


@pytest.mark.parametrize("name", ["scan", "steps", "power_gossip"])
def test_trainings_and_scores_are_those_of_the_simulation(found, name):
    for each in found:
        (mine, scores), (theirs, expected) = each[name]
        for x, y in zip(jax.tree.leaves(mine), jax.tree.leaves(theirs), strict=True):
            np.testing.assert_allclose(x, y, rtol=2e-4, atol=2e-5)
        np.testing.assert_allclose(scores.workers, expected.workers, rtol=1e-4)
        assert scores.averaged == pytest.approx(expected.averaged, rel=1e-4)
        everywhere = found[0][name][0][1]
        assert scores.workers.tolist() == everywhere.workers.tolist()


def test_objects_are_gathered_in_the_order_of_ranks(found):
    ranks = [text.split()[0] for text in found[0]["gathered"]]
    assert ranks == ["0", "1", "2", "3"][: len(ranks)] and len(ranks) > 1
    assert all(each["gathered"] == found[0]["gathered"] for each in found)


def test_a_run_goes_on_bit_by_bit(found):
    for each in found:
        assert each["unsaved"] == ()
        assert all(jax.tree.leaves(each["resumed"]))


def test_all_processes_raise_the_same_error(found):
    for each in found:
        assert each["settings differ"].startswith("seeds differ: the value of rank")
        assert (
            "the ranks do not start the same: consensus_rate" in each["starts differ"]
        )
        assert "the gradient of worker" in each["nonfinite"]
        assert each["nonfinite"] == found[0]["nonfinite"]


ENDS = """
import os, signal, sys
import djax
djax.communicators.start_processes()
import jax, jax.numpy as jnp
workers = djax.communicators.mesh(jax.device_count())
mean = jax.jit(workers.spmd(workers.mean))
x = djax.communicators.replicate(workers, jnp.zeros(2))
jax.block_until_ready(mean(x))
if jax.process_index() in {who}:
    {end}
while True:
    jax.block_until_ready(mean(x))
"""


@pytest.mark.parametrize(
    ("end", "code", "said"),
    [
        ("raise KeyError('my own')", 1, "process 1 of 2 failed (KeyError: 'my own')"),
        ("sys.exit(3)", 3, "process 1 of 2 ended with exit code 3"),
        (
            "os.kill(os.getpid(), signal.SIGKILL)",
            1,
            "process 1 of 2 gave no sign of life for 2 s",
        ),
    ],
)
def test_processes_end_together(end, code, said):
    program = ENDS.format(end=end, who=[1])
    first, second = processes(2, "-c", program, timeout=60, DJAX_HEARTBEAT="2")
    assert first.returncode == code
    lines = [line for line in first.stderr.splitlines() if "Gloo" not in line]
    assert lines == [f"{said}: all processes end."]
    if "raise" in end:
        assert second.stderr.count("process 1 of 2 failed:\n") == 1


def test_the_others_end_without_the_process_that_connects_them():
    program = ENDS.format(end="os.kill(os.getpid(), signal.SIGKILL)", who=[0])
    first, second = processes(2, "-c", program, timeout=60)
    assert first.returncode == -signal.SIGKILL and second.returncode == 1
    assert "process 0, which connects the processes, has died" in second.stderr


def test_an_error_of_all_processes_is_said_once():
    program = ENDS.format(end="raise KeyError('of all')", who=[0, 1])
    first, second = processes(2, "-c", program, timeout=60)
    assert first.returncode == second.returncode == 1
    assert "KeyError: 'of all'" in first.stderr and "KeyError" not in second.stderr


def metrics(folder):
    """What a run has measured, without its times."""
    (run,) = sorted(folder.iterdir())[-1:]
    lines = (run / "metrics.jsonl").read_text().splitlines()
    return [
        {name: x for name, x in json.loads(line).items() if name != "seconds"}
        for line in lines
    ]


def test_the_command_line_trains_stops_and_goes_on(tmp_path, unseen, as_users):
    options = ["--epochs", "4", "--batch-size", "32", "--learning-rate", "0.02"]
    mesh = [*options, "--communicator", "mesh", "--runs", f"{tmp_path}/mesh"]
    mesh += ["--checkpoints", f"{tmp_path}/saved", "--resume"]
    command = ("-m", "tests.interrupted", "SIGTERM", "1", "2", *mesh)
    for stopped in processes(2, *command):
        assert stopped.returncode == 0, stopped.stderr
    ended = processes(2, "-m", "experiments.train", *mesh)
    for number, process in enumerate(ended):
        assert process.returncode == 0, process.stderr
        assert ("written to" in process.stdout) == (number == 0)
    assert "resumed from step " in ended[0].stderr
    train.main([*options, "--workers", "2", "--runs", f"{tmp_path}/simulated"])
    mine, expected = metrics(tmp_path / "mesh"), metrics(tmp_path / "simulated")
    assert len(mine) == len(expected) > 1
    for one, other in zip(mine, expected, strict=True):
        assert one["scores"] == pytest.approx(other["scores"], abs=0.01)
        assert one["loss"] == pytest.approx(other["loss"], rel=1e-3)


def test_mistakes_are_said_once(tmp_path):
    command = ("-m", "experiments.train", "--workers", "3", "--runs", str(tmp_path))
    first, second = processes(2, *command, devices=2)
    assert first.returncode == second.returncode == 2
    assert "have 4 devices together" in first.stderr and not second.stderr
