"""Checkpoints that were lost, damaged, locked, or that cannot be written."""

import concurrent.futures
import dataclasses
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import threading

import jax
import numpy as np
import pytest
from launch import ROOT, mpirun, python

import djax
from djax import topologies
from djax.training import (
    Checkpointer,
    CheckpointError,
    Checkpoints,
    Workers,
    _checkpoint_folder,
)
from experiments import train
from experiments.lib import stored, synchronous
from experiments.lib.config import identify

pytestmark = pytest.mark.usefixtures("as_users")


class Rank:
    """One of two processes, here a thread, as a saver sees its communicator."""

    size, sharding = 2, None

    def __init__(self, rank, barrier, board):
        self.local_ranks, self._barrier, self._board = [rank], barrier, board

    def gather(self, values):
        (self._board[self.local_ranks[0]],) = values
        self._barrier.wait()
        everyone = list(self._board)
        self._barrier.wait()
        return everyone


def on_two_ranks(act):
    """Results of `act(communicator)` on both, or their errors as texts."""
    barrier, board = threading.Barrier(2, timeout=30), [None, None]

    def one(rank):
        try:
            return act(Rank(rank, barrier, board))
        except CheckpointError as error:
            return str(error)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        return list(pool.map(one, range(2)))


def workers(value):
    return Workers(jax.numpy.full((1, 5), value, "float32"), (), ())


def saver(path, communicator, *, keep=1, resume=True, identity=()):
    options = Checkpoints(path, 1e-6, keep, resume)
    return Checkpointer(options, communicator, dict(identity))


def save(path, *steps, keep=1):
    """Both ranks save steps one after another; returns what stays on the disk."""

    def act(communicator):
        mine = saver(path, communicator, keep=keep)
        for step in steps:
            mine.save(step, workers(step), {"step": step}, wait=True)
            mine.agree()
        mine.finish()
        mine.close()

    assert on_two_ranks(act) == [None, None]
    return on_disk(path)


def steps_in(own):
    """The complete steps of a process's folder."""
    return sorted(int(p.name) for p in own.iterdir() if p.name.isdigit())


def on_disk(path):
    folders = [path / f"workers_{rank}-{rank}_of_2" for rank in range(2)]
    return [steps_in(own) if own.exists() else [] for own in folders]


def resume(path):
    """The step and the value that each rank goes on with, or its error."""

    def act(communicator):
        mine = saver(path, communicator)
        if mine.latest is None:
            found = None
        else:
            found, progress = mine.restore(workers(0))
            assert progress == {"step": mine.latest}
            found = float(found.params[0, 0])
        mine.close()
        return mine.latest, found

    return on_two_ranks(act)


def test_a_step_stays_until_all_processes_have_a_newer_one(tmp_path):
    def act(communicator):
        mine = saver(tmp_path, communicator)
        for step in 11, 22:
            # The second rank is killed, or slow, while it writes step 22.
            if step == 11 or communicator.local_ranks == [0]:
                mine.save(step, workers(step), {"step": step}, wait=True)
            mine.agree()
        mine.close()

    on_two_ranks(act)
    assert on_disk(tmp_path) == [[11, 22], [11]]
    assert resume(tmp_path) == [(11, 11.0)] * 2
    assert save(tmp_path, 22, 33) == [[33], [33]]
    assert resume(tmp_path) == [(33, 33.0)] * 2


def test_a_kill_in_the_first_save_starts_from_zero(tmp_path):
    def act(communicator):
        mine = saver(tmp_path, communicator)
        if communicator.local_ranks == [0]:
            mine.save(11, workers(11), {"step": 11})
        mine.close()

    on_two_ranks(act)
    assert resume(tmp_path) == [(None, None)] * 2


@pytest.mark.parametrize("whole", [True, False])
def test_lost_checkpoints_of_a_process_are_named_and_nothing_is_removed(
    whole, tmp_path
):
    save(tmp_path, 11, 22, 33, keep=2)
    own = tmp_path / "workers_1-1_of_2"
    for path in [own] if whole else list(own.iterdir()):
        shutil.rmtree(path)
    for error in resume(tmp_path):
        assert "workers_1-1_of_2 is " + ("missing" if whole else "empty") in error
        assert "workers_0-0_of_2: 22 33" in error
    assert on_disk(tmp_path) == [[22, 33], []]


def test_without_a_common_step_all_refuse_and_nothing_is_removed(tmp_path):
    save(tmp_path, 11, 22, keep=2)
    shutil.rmtree(tmp_path / "workers_0-0_of_2" / "11")
    shutil.rmtree(tmp_path / "workers_1-1_of_2" / "22")
    for error in resume(tmp_path):
        assert "workers_0-0_of_2: 22, workers_1-1_of_2: 11" in error
    assert on_disk(tmp_path) == [[22], [11]]


def spoil(path, how):
    file = path / "checkpoint.zip"
    data = bytearray(file.read_bytes())
    if how == "flipped":
        start = len(data) // 3
        data[start : start + 64] = bytes(b ^ 0xFF for b in data[start : start + 64])
    if how == "missing":
        file.unlink()
    else:
        file.write_bytes(data[: len(data) // 2] if how == "truncated" else data)


@pytest.mark.parametrize("how", ["flipped", "truncated", "missing"])
def test_damage_is_noticed_and_all_go_on_from_an_older_step(how, tmp_path, capsys):
    save(tmp_path, 11, 22, 33, keep=3)
    spoil(tmp_path / "workers_1-1_of_2" / "33", how)
    assert resume(tmp_path) == [(22, 22.0)] * 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "workers_1-1_of_2/33 is damaged" in line
    assert line.endswith("going on from step 22")
    assert on_disk(tmp_path) == [[11, 22, 33]] * 2
    for rank, step in ((0, 22), (1, 11)):
        spoil(tmp_path / f"workers_{rank}-{rank}_of_2" / str(step), how)
    for error in resume(tmp_path):
        assert "has nothing to go on from" in error and "\n" not in error
        assert "workers_0-0_of_2/22 is damaged" in error
    assert on_disk(tmp_path) == [[11, 22, 33]] * 2


def test_what_was_damaged_goes_once_something_newer_is_saved(tmp_path):
    save(tmp_path, 11, 22, keep=2)
    spoil(tmp_path / "workers_0-0_of_2" / "22", "flipped")
    assert save(tmp_path, 22, 33, keep=2) == [[22, 33]] * 2
    assert resume(tmp_path) == [(33, 33.0)] * 2


def test_any_array_comes_back_as_it_was(tmp_path):
    arrays = [
        np.zeros((0, 3), "float32"),
        np.array(7, "int32"),
        np.arange(6, dtype="float32").reshape(2, 3).T,
        np.asarray(jax.numpy.ones((3,), "bfloat16")),
        np.array([1 + 2j], "complex64"),
    ]
    alone = djax.communicators.simulated(1)
    mine = saver(tmp_path, alone)
    mine.save(5, arrays, {"losses": [float("nan"), 0.1]})
    mine.save(5, arrays[::-1])
    mine.close()
    mine = saver(tmp_path, alone)
    found, content = mine.restore([*map(jax.numpy.asarray, arrays[::-1])])
    assert mine.latest == 5 and content is None
    for ours, theirs in zip(found, arrays[::-1], strict=True):
        assert ours.dtype == theirs.dtype and ours.shape == theirs.shape
        np.testing.assert_array_equal(ours, theirs)
    mine.close()
    mine = saver(tmp_path, alone)
    with pytest.raises(CheckpointError, match="other arrays than this run"):
        mine.restore([*map(jax.numpy.asarray, arrays)])
    mine.close()


def test_a_lazy_folder_is_made_by_the_first_save(tmp_path):
    alone, options = djax.communicators.simulated(1), Checkpoints(tmp_path / "saved")
    mine = Checkpointer(options, alone, lazy=True)
    assert mine.agree("word") == (False, ["word"]) and mine.finish() == ()
    assert not mine.directory.exists() and mine.latest is None
    with pytest.raises(RuntimeError, match="no checkpoint to go on from"):
        mine.restore(())
    mine.save(3, jax.numpy.ones(2), wait=True)
    mine.close()
    assert steps_in(mine.directory / "workers_0-0_of_1") == [0, 3]


FULL = """
import resource, signal, sys
from djax.training import Checkpointer
from experiments import train
from experiments.lib.config import identify

save = Checkpointer.save

def save_on_a_full_disk(self, step, *rest):
    unlimited = resource.RLIM_INFINITY
    if step == 22:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, unlimited))
    save(self, step, *rest, wait=True)
    resource.setrlimit(resource.RLIMIT_FSIZE, (unlimited, unlimited))

Checkpointer.save = save_on_a_full_disk
train.main(sys.argv[1:])
"""


@pytest.mark.slow
def test_a_full_disk_does_not_end_a_run_but_is_told(tmp_path):
    line = f"--epochs 3 --evaluations 1 --runs {tmp_path} --checkpoints {tmp_path}/s"
    result = python("-c", FULL, *line.split(), "--checkpoint-every", "1e-6")
    assert result.returncode == 1 and "Traceback" not in result.stderr
    lines = [x for x in result.stderr.split("\n") if "not saved: step 22" in x]
    assert len(lines) == 1 and "the last one is of step 11" in lines[0]
    assert "trained to the end, but 1 checkpoints could not be saved" in result.stderr
    assert "accuracy, worst worker" in result.stdout
    (own,) = (tmp_path / "s").glob("workers_*")
    assert steps_in(own) == [11]


@pytest.mark.parametrize("where", ["file", "in_a_file", "own", "runs"])
def test_a_place_that_cannot_be_written_to_is_said_at_the_start(
    where, tmp_path, capsys
):
    (tmp_path / "file").write_text("")
    saved, runs = tmp_path / "saved", tmp_path / "runs"
    if where == "file":
        saved = tmp_path / "file"
    elif where == "in_a_file":
        saved = tmp_path / "file" / "saved"
    elif where == "own":
        saved.mkdir()
        (saved / "workers_0-3_of_4").write_text("")
    else:
        runs = tmp_path / "file"
    with pytest.raises(SystemExit) as stop:
        train.main(f"--epochs 1 --runs {runs} --checkpoints {saved}".split())
    error = capsys.readouterr().err
    assert stop.value.code == 2 and len(error.splitlines()) == 1
    assert str(runs if where == "runs" else saved) in error


def test_a_folder_is_of_one_run_at_a_time(tmp_path, monkeypatch):
    monkeypatch.setattr(_checkpoint_folder, "PATIENCE", 0.1)
    alone = djax.communicators.simulated(1)
    first = saver(tmp_path, alone)
    with pytest.raises(CheckpointError, match=f"in use by process {os.getpid()} on"):
        saver(tmp_path, alone)
    first.close()
    saver(tmp_path, alone).close()


HOLD = """
import sys, time
import djax
from djax.training import Checkpointer, Checkpoints
saver = Checkpointer(Checkpoints(sys.argv[1]), djax.communicators.simulated(1))
print("held", flush=True)
time.sleep(600)
"""


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, tmp_path],
        stdout=subprocess.PIPE,
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
    )
    assert process.stdout.readline() == b"held\n"
    process.kill()
    process.communicate()
    saver(tmp_path, djax.communicators.simulated(1)).close()


@pytest.mark.parametrize("text", ["", '{"--seed": ', "[]"])
def test_a_damaged_identity_is_named(text, tmp_path):
    save(tmp_path, 11)
    (tmp_path / "identity.json").write_text(text)
    for error in resume(tmp_path):
        assert "identity.json is missing or damaged" in error
        assert "\n" not in error
    assert on_disk(tmp_path) == [[11], [11]]


@pytest.mark.parametrize(
    ("option", "value"),
    [("jax_enable_x64", True), ("jax_default_matmul_precision", "bfloat16")],
)
def test_another_precision_is_another_run(option, value, tmp_path):
    alone = djax.communicators.simulated(1)
    mine = saver(tmp_path, alone)
    mine.save(5, [np.zeros(3, "float32")])
    mine.close()
    old = getattr(jax.config, option)
    jax.config.update(option, value)
    try:
        with pytest.raises(CheckpointError, match=f"of a run with {option} {old}, "):
            saver(tmp_path, alone)
    finally:
        jax.config.update(option, old)


@pytest.mark.slow
def test_a_run_does_not_go_on_in_another_precision(tmp_path, capsys):
    shared = f"--epochs 2 --evaluations 1 --runs {tmp_path} --checkpoints {tmp_path}/s"
    train.main(f"{shared} --checkpoint-every 1e-6".split())
    old = jax.config.jax_default_matmul_precision
    jax.config.update("jax_default_matmul_precision", "float32")
    try:
        with pytest.raises(SystemExit) as stop:
            train.main(f"{shared} --resume".split())
    finally:
        jax.config.update("jax_default_matmul_precision", old)
    assert stop.value.code == 2
    assert "run with jax_default_matmul_precision None" in capsys.readouterr().err


def test_graphs_of_one_name_are_told_apart():
    config = train.parse([])
    graphs = [
        topologies.ring(8),
        topologies.ring(8, weights=0.25),
        dataclasses.replace(topologies.chain(8), name="ring"),
    ]
    found = {identify(config, [graph])["the graph"] for graph in graphs}
    assert len(found) == 3
    again = identify(config, [topologies.ring(8)])
    assert again == identify(config, [topologies.ring(8)])


INTERRUPTED = """
import os, signal, sys
from experiments import train
from experiments.lib.config import identify
name, after, *arguments = sys.argv[1:]
show = train.report.RunFolder.append
count = 0
def append(self, record):
    global count
    show(self, record)
    count += 1
    if count == int(after):
        os.kill(os.getpid(), getattr(signal, name))
train.report.RunFolder.append = append
train.main(arguments)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options", "code", "how"),
    [
        ("SIGINT", "--checkpoints {}/saved", 130, "Ctrl-C after step 22; to go on"),
        ("SIGINT", "", 130, "Ctrl-C after step 22; to go on"),
        ("SIGTERM", "", 0, "SIGTERM after step 22; to go on"),
        ("SIGTERM", "--stopped-code 75", 75, "SIGTERM after step 22; to go on"),
        ("SIGINT", "--algorithm a2cid2", 130, "repeats a run; to start anew"),
        ("SIGTERM", "--algorithm a2cid2", 143, "repeats a run; to start anew"),
    ],
)
def test_a_signal_shows_what_there_is_and_how_to_go_on(
    name, options, code, how, tmp_path
):
    line = f"--epochs 9 --evaluations 9 --runs {tmp_path}/runs {options}"
    line = line.format(tmp_path).split()
    result = python("-c", INTERRUPTED, name, "2", *line)
    assert result.returncode == code, result.stderr
    assert "Traceback" not in result.stderr
    assert result.stderr.count(how) == result.stderr.count("stopped by") == 1
    assert "cut off" in result.stdout and "accuracy, worst worker" in result.stdout
    (folder,) = (tmp_path / "runs").iterdir()
    assert (folder / "curves.png").exists()
    assert json.loads((folder / "summary.json").read_text())["rows"]["epochs"]
    # What is said at the end is the whole command that goes on.
    said = result.stderr.splitlines()[-1]
    command = said.split(": python -m experiments.train ")[1]
    saved = tmp_path / "saved" if "--checkpoints" in options else folder / "checkpoints"
    again = train.parse(shlex.split(command))
    expected = train.parse(line)
    if "a2cid2" not in options:
        expected = expected.replace(checkpoints=saved, resume=True)
    assert again == expected


def test_under_srun_the_command_that_goes_on_begins_with_srun(monkeypatch, tmp_path):
    for name in ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "PMI_RANK", "MPI_LOCALNRANKS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    monkeypatch.setenv("PMIX_RANK", "0")
    said = train._how_to_go_on(train.parse(["--seed", "3"]), tmp_path)
    start = "to go on: srun --mpi=pmix -n 4 python -m experiments.train "
    assert said == f"{start}--checkpoints {tmp_path} --resume --seed 3"


@pytest.mark.xdist_group("mpi")
@pytest.mark.parametrize("algorithm", ["dpsgd", "a2cid2"])
def test_ctrl_c_on_one_rank_ends_all_alike(algorithm, tmp_path):
    epochs = "2" if algorithm == "a2cid2" else "4"
    line = f"--algorithm {algorithm} --epochs 60 --evaluations 60 --runs {tmp_path}/r"
    line += f" --checkpoints {tmp_path}/saved"
    how = "SIGINT", "1", epochs
    result = mpirun(2, "-m", "tests.interrupted", *how, *line.split())
    assert result.returncode == 130, result.stderr
    assert result.stderr.count("stopped by Ctrl-C") == 1
    assert "to go on: mpirun -n 2 python -m experiments.train --" in result.stderr
    assert f"--checkpoints {tmp_path}/saved --resume" in result.stderr
    assert "Traceback" not in result.stderr
    assert "cut off" in result.stdout


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("moment", "options", "rest"),
    [
        ("config.json", "", "; nothing was saved by this; to start anew: "),
        (
            "config.json",
            "--checkpoints {}/s",
            "; nothing was saved by this; to go on: ",
        ),
        ("timing", "", " after the training; its metrics are in "),
    ],
)
def test_a_signal_outside_of_the_steps_ends_in_one_line(
    number, moment, options, rest, tmp_path, monkeypatch, capsys, unseen
):
    """Before the first step, and when the last steps are timed."""
    write = train.report.RunFolder.write

    def writing(folder, name, content):
        write(folder, name, content)
        if name == moment:
            os.kill(os.getpid(), number)

    def timing(job):
        os.kill(os.getpid(), number)

    monkeypatch.setattr(train.report.RunFolder, "write", writing)
    if moment == "timing":
        monkeypatch.setattr(synchronous.Synchronous, "_time_steps", timing)
    line = f"--epochs 1 --runs {tmp_path}/runs {options}".format(tmp_path).split()
    with pytest.raises(SystemExit) as stop:
        train.main(line)
    output = capsys.readouterr()
    assert stop.value.code == 128 + number
    how = "Ctrl-C" if number == signal.SIGINT else "SIGTERM"
    said = output.err.splitlines()[-1]
    assert said.startswith(f"stopped by {how}{rest}")
    assert "epochs" in output.out
    (folder,) = (tmp_path / "runs").iterdir()
    epochs = json.loads((folder / "summary.json").read_text())["rows"]["epochs"]
    assert epochs == ("1 of 1" if moment == "timing" else "none evaluated of 1")
    if moment == "timing":
        assert stored.load(folder).ended


def test_a_second_ctrl_c_ends_at_once():
    program = """
import os, signal, time
from experiments.lib.signals import Termination
with Termination() as termination:
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)  # As a terminal and a launcher do.
    assert termination.number == signal.SIGINT
    time.sleep(0.6)
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
"""
    result = python("-c", program)
    assert result.returncode == 130
    assert "second Ctrl-C" in result.stderr
