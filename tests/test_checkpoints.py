"""Runs that are cut off, and go on as if they had not been."""

import json
import re

import jax
import numpy as np
import pytest
from launch import mpirun, python

from experiments import train
from experiments.lib import processes, stored

ALGORITHMS = [
    "--algorithm dpsgd --drop-probability 0.2 --local-steps 2",
    "--algorithm relay_sgd --topology double_binary_trees --missing latest",
    "--algorithm power_gossip --rank 2 --no-warm-start --optimizer adam",
    "--algorithm choco_sgd --consensus-rate 0.1 --compressor random_k",
    "--algorithm moniqua --consensus-rate 0.1 --overlap",
    "--algorithm quasi_global_momentum --clip-norm 1 --precision bfloat16",
    "--algorithm k_gt --local-steps 4",
    "--algorithm prox_skip --learning-rate 0.03 --decay-over 0.2",
    # An epoch has 11 steps: the second fragment has been sent and not been applied.
    "--outer streaming_diloco --outer-period 10 --fragments 2 --delay 3 --optimizer "
    "adam --learning-rate 0.003",
    "--outer slowmo --outer-momentum 0.5 --base-state reset --algorithm power_gossip",
]
MOCK = "--mock --batch-size 8 --steps-per-epoch 3 --model-options width 0.125"
TASKS = [
    f"--task cifar10 --model resnet18 --split reshuffled {MOCK} blocks (1,)",
    f"--task fashion_mnist --task-options augment True --accumulation 2 {MOCK}",
    f"--task sotu {MOCK} --accumulation 2 --model-options dropout 0.3 width 0.125",
    f"--task ag_news --task-options length 16 {MOCK} --model-options layers 1 "
    "width 0.05 heads 2",
]

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users")]


def run(options, folder):
    """The outcome of a command line of `experiments.train`."""
    line = f"{options} --epochs 2 --evaluations 2 --seed 3 --runs {folder}"
    with processes.compiled_once():
        return train.Run(train.parse(line.split())).train()


@pytest.mark.parametrize("options", ALGORITHMS + TASKS)
def test_a_run_goes_on_as_if_nothing_had_happened(options, tmp_path):
    """After one epoch of two, and with all state: of optimizer, mechanism and model."""
    saving = f"{options} --checkpoints {tmp_path}/saved"
    whole = run(f"{saving} --checkpoint-every 0.0001", tmp_path)
    resumed = run(f"{saving} --resume", tmp_path)  # The end has not been saved.
    assert resumed.history[0] == whole.history[0]  # Also in its time: it was saved.
    assert resumed.history[1]["seconds"] != whole.history[1]["seconds"]
    for ours, theirs in zip(whole.history, resumed.history, strict=True):
        assert ours | {"seconds": 0} == theirs | {"seconds": 0}
    leaves = zip(*map(jax.tree.leaves, (whole.workers, resumed.workers)), strict=True)
    for ours, theirs in leaves:
        assert ours.dtype == theirs.dtype
        if jax.dtypes.issubdtype(ours.dtype, jax.dtypes.prng_key):
            ours, theirs = map(jax.random.key_data, (ours, theirs))
        np.testing.assert_array_equal(ours, theirs)


INTERRUPTED = "-m", "tests.interrupted"
OPTIONS = ("--algorithm", "relay_sgd", "--topology", "chain", "--drop-probability")
OPTIONS += ("0.1", "--epochs", "3", "--evaluations", "3", "--batch-size")


def metrics(folder):
    """The last run's, without what depends on time."""
    path = max(folder.iterdir())
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) | {"seconds": 0} for line in lines]


def test_a_killed_simulation_is_resumed(tmp_path, unseen, capsys):
    train.main([*OPTIONS, "16", "--runs", f"{tmp_path}/whole"])
    options = (*OPTIONS, "16", "--runs", f"{tmp_path}/cut", "--resume")
    options += ("--checkpoints", f"{tmp_path}/saved", "--checkpoint-every", "0.001")
    killed = python(*INTERRUPTED, "SIGKILL", "0", "2", *options)
    assert killed.returncode != 0
    new = f"{tmp_path}/saved has no checkpoint yet: the run begins from the start\n"
    assert killed.stderr.count(new) == 1
    stopped = python(*INTERRUPTED, "SIGTERM", "0", "2", *options)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.count("stopped by SIGTERM after step 44") == 1
    saved = f"{tmp_path}/saved"
    assert stopped.stderr.count("resumed from step ") == 1
    train.main(options)
    said = capsys.readouterr().err
    assert said.count(f"resumed from step 44 of {saved}\n") == 1
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")
    # Killed, stopped and resumed, it is compared with others as one run.
    killed, stopped, ended = map(stored.load, sorted((tmp_path / "cut").iterdir()))
    assert not killed.ended and not stopped.ended
    shown, (line,) = stored.leave_out([killed, stopped, ended])
    assert shown == [ended] and str(killed.folder) in line


BOTH = """
import sys
from experiments import train
for line in sys.argv[1:]:
    train.main(line.split())
"""


@pytest.mark.xdist_group("mpi")
def test_a_killed_job_is_resumed(tmp_path):
    """Killed in its second epoch, ended by SIGTERM, and let go on to the end."""
    # Two workers have as many steps as the four of the simulation.
    options = (*OPTIONS, "32", "--runs", f"{tmp_path}/cut", "--resume")
    options += ("--checkpoints", f"{tmp_path}/saved", "--checkpoint-every", "0.001")
    killed = mpirun(2, *INTERRUPTED, "SIGKILL", "0", "2", *options)
    assert killed.returncode != 0
    stopped = mpirun(2, *INTERRUPTED, "SIGTERM", "0", "2", *options)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.count("stopped by SIGTERM after step 44") == 1
    whole = " ".join((*OPTIONS, "32", "--runs", f"{tmp_path}/whole"))
    ended = mpirun(2, "-c", BOTH, " ".join(options), whole)
    assert ended.returncode == 0, ended.stderr
    assert metrics(tmp_path / "cut") == metrics(tmp_path / "whole")


@pytest.mark.xdist_group("mpi")
def test_workers_that_do_not_wait_end_and_go_on_together(tmp_path):
    options = ("--algorithm", "a2cid2", "--epochs", "5", "--runs", f"{tmp_path}/runs")
    options += ("--checkpoints", f"{tmp_path}/saved", "--resume")
    stopped = mpirun(2, *INTERRUPTED, "SIGTERM", "1", "2", *options)
    assert stopped.returncode == 0, stopped.stderr
    assert stopped.stderr.count("stopped by SIGTERM; to go on: mpirun -n 2 ") == 1
    assert stopped.stderr.count("/saved has no checkpoint yet: the run begins") == 1
    (folder,) = (tmp_path / "runs").iterdir()
    pictures = {"pairs.png", "timeline.png", "staleness.png"}
    assert pictures | {"trace.json"} <= {path.name for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    assert "gradients of a worker, mean (fewest, most)" in summary["rows"]
    assert summary["sent_per_worker"]["averagings_mean"] > 0
    ended = mpirun(2, "-m", "experiments.train", *options)
    assert ended.returncode == 0, ended.stderr
    said = rf"resumed from {tmp_path}/saved, after \d+ gradients of all workers\n"
    assert len(re.findall(said, ended.stderr)) == 1
    records = metrics(tmp_path / "runs")
    assert 2 < records[0]["epoch"] < 4 and abs(records[-1]["epoch"] - 5) < 0.5


def test_checkpoints_of_another_run_are_refused(tmp_path, capsys, unseen):
    shared = f"--runs {tmp_path} --checkpoints {tmp_path}/saved --epochs"
    train.main(f"{shared} 2 --checkpoint-every 0.05".split())
    for options, message in (
        ("2", "has some already; add --resume"),
        ("2 --resume --learning-rate 0.3", "run with --learning-rate 0.1, this one"),
        ("2 --resume --mock", "run with --mock False, this one"),
        ("2 --resume --workers 3", "is of a run with other processes"),
        ("2 --resume --keep-checkpoints 0", "--keep-checkpoints 0 must be at least 1"),
        ("2 --resume --checkpoint-every 0", "--checkpoint-every 0.0 must be positive"),
    ):
        with pytest.raises(SystemExit) as stop:
            train.main(f"{shared} {options}".split())
        assert stop.value.code == 2
        assert message in capsys.readouterr().err


def test_only_the_last_checkpoints_are_kept(tmp_path, unseen):
    options = (
        f"--checkpoints {tmp_path}/saved --checkpoint-every 0.0001 --keep-checkpoints 3"
    )
    train.main(f"--epochs 6 --runs {tmp_path} {options}".split())
    steps = {path.name for path in (tmp_path / "saved" / "workers_0-3_of_4").iterdir()}
    assert steps == {"33", "44", "55"}
