"""The main job as its users start it."""

import json
import os
import re

import numpy as np
import pytest
from launch import mpirun, python

from experiments import train
from experiments.lib import errors, report

TRAIN = ("-m", "experiments.train")

FILES = {"config.json", "metrics.jsonl", "summary.json", "curves.png", "split.png"}
"""What every run of a task with classes leaves behind."""

over_mpi = pytest.mark.xdist_group("mpi")  # One after the other: ranks poll.

pytestmark = pytest.mark.usefixtures("as_users")


def table(output: str) -> dict[str, str]:
    """The rows of the final table."""
    lines = (line for line in output.splitlines() if "│" in line)
    rows = (line.strip()[1:-1].split("│") for line in lines)
    return {name.strip(): value.strip() for name, value in rows}


def last_record(runs):
    (folder,) = runs.iterdir()
    return json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])


def columns_of(runs):
    """The columns of the only run, which its summary explains in a sentence each."""
    (folder,) = runs.iterdir()
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    columns = set().union(*map(json.loads, lines))
    told = json.loads((folder / "summary.json").read_text())["columns"]
    assert told.keys() == columns and "megabytes" in columns
    assert all(text.endswith(".") and "{" not in text for text in told.values())
    return columns


@pytest.mark.slow
def test_every_column_is_explained_and_no_other(tmp_path, unseen):
    """Those of real time and of survivors are also checked where they are run."""
    found = set()
    for number, options in enumerate(
        (
            "--algorithm all_reduce_sgd --speeds 1 1 1 0.25 --collapse 1 0.999",
            "--algorithm a2cid2 --task quadratics",
            "--task quadratics --task-options dim 3",
        )
    ):
        runs = tmp_path / str(number)
        train.main([*options.split(), "--epochs", "1", "--runs", str(runs)])
        found |= columns_of(runs)
    assert found == report.COLUMNS.keys()


def test_a_run_that_diverges_has_a_summary(tmp_path, unseen):
    options = "--task quadratics --learning-rate 1e9 --epochs 9 --evaluations 9"
    with pytest.raises(SystemExit):
        train.main([*options.split(), "--runs", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["diverged"].startswith("training diverged: ")
    assert summary["columns"] == {}


SAME = "--seed 1 --drop-probability 0.2 --epochs 2"
SHOWN = [f"--algorithm {x} {SAME}" for x in ("dpsgd", "relay_sgd --topology chain")]
RECORDED = [
    "--task fashion_mnist --mock --model resnet18 --model-options width 0.125 blocks "
    "(1,) --steps-per-epoch 2 --split reshuffled --task-options augment True "
    f"--consensus-rate 0.5 {SAME}",
    "--task quadratics --topology base_graph --message-dtype bfloat16 "
    f"--rounding-seed 1 --drop-bursts 3 {SAME}",
]
RESUMED = (
    "--outer streaming_diloco --outer-period 12 --fragments 2 --delay 4 --optimizer "
    "adam --learning-rate 0.003 --evaluations 2 --epochs 2"
)
"""An epoch has 14 steps. The second fragment has been sent and not yet been applied."""
TRAININGS = f"""
import contextlib, json, os, sys
from experiments import train
folder = sys.argv[1]
for number, line in enumerate({SHOWN + RECORDED}):
    arguments = [*line.split(), "--runs", f"{{folder}}/runs"]
    with open(f"{{folder}}/{{number}} of {{os.environ['PMI_RANK']}}", "w") as file:
        if line in {SHOWN}:
            with contextlib.redirect_stdout(file):
                outcome = train.main(arguments)
        else:
            outcome = train.Run(train.parse(arguments)).train()
        print(json.dumps(outcome.history[-1]), file=file)
saving = f"--runs {{folder}}/runs --checkpoints {{folder}}/saved"
for more in ("--checkpoint-every 0.0001", "--resume"):
    arguments = f"{RESUMED} {{saving}} {{more}}".split()
    outcome = train.Run(train.parse(arguments)).train()
    with open(f"{{folder}}/resumed of {{os.environ['PMI_RANK']}}", "a") as file:
        print(json.dumps(outcome.history), file=file)
"""


@pytest.fixture(scope="module")
def over_mpi_of_three(tmp_path_factory):
    """What rank 0 printed, and its last record, for each training.

    All have one launch, since ranks take seconds to start.
    """
    folder = tmp_path_factory.mktemp("trainings")
    result = mpirun(3, "-c", TRAININGS, str(folder))
    assert result.returncode == 0, result.stderr
    said = {}
    for number, line in enumerate(SHOWN + RECORDED):
        *printed, record = (folder / f"{number} of 0").read_text().splitlines()
        said[line] = "\n".join(printed), json.loads(record)
    whole, resumed = (folder / "resumed of 0").read_text().splitlines()
    said[RESUMED] = json.loads(whole), json.loads(resumed)
    return said


@over_mpi
@pytest.mark.parametrize("options", SHOWN)
def test_simulation_and_mpi_print_the_same(
    options, over_mpi_of_three, tmp_path, capsys, unseen
):
    arguments = ("--workers", "3", "--runs", str(tmp_path))
    record = train.main([*options.split(), *arguments]).history[-1]
    printed, theirs = over_mpi_of_three[options]
    ours, shown = table(capsys.readouterr().out), table(printed)
    assert len(ours) == 11
    for name in ours:
        assert shown[name] == ours[name] or "time" in name or "of it" in name, name
    check_records(record, theirs)


@over_mpi
@pytest.mark.parametrize("options", RECORDED)
def test_simulation_and_mpi_end_with_the_same_numbers(
    options, over_mpi_of_three, tmp_path
):
    config = train.parse([*options.split(), "--workers", "3", "--runs", str(tmp_path)])
    _, theirs = over_mpi_of_three[options]
    ours = train.Run(config).train().history[-1]
    # What is rounded in the models is more of their difference, after a normalization.
    rounded = {"consensus_distance"} if "resnet18" in options else set()
    check_records(ours, theirs, rounded)


@over_mpi
def test_a_fragment_on_its_way_is_resumed_over_mpi(over_mpi_of_three, tmp_path):
    """To the same bits; and its numbers are those of the simulation."""
    whole, resumed = over_mpi_of_three[RESUMED]
    assert whole[0] == resumed[0]  # Also in its time, since it was saved.
    assert whole[1]["seconds"] != resumed[1]["seconds"]
    assert whole[1] | {"seconds": 0} == resumed[1] | {"seconds": 0}
    config = train.parse([*RESUMED.split(), "--workers", "3", "--runs", str(tmp_path)])
    for ours, theirs in zip(train.Run(config).train().history, whole, strict=True):
        check_records(ours, theirs)


def check_records(ours, theirs, rounded=()):
    assert ours.keys() == theirs.keys()
    for key in ours.keys() - {"seconds"}:
        rtol = 2e-3 if key in rounded else 2e-5
        np.testing.assert_allclose(ours[key], theirs[key], rtol=rtol, err_msg=key)


@pytest.mark.slow
def test_every_worker_learns_digits_that_are_split_by_class(tmp_path):
    result = python(*TRAIN, "--runs", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert last_record(tmp_path)["worst"] > 0.9
    (folder,) = tmp_path.iterdir()
    names = {path.name for path in folder.iterdir()}
    assert names == FILES
    config = json.loads((folder / "config.json").read_text())
    assert config["config"]["averaging"]["algorithm"] == "dpsgd"
    assert config["versions"]["jax"]
    assert "100%" in result.stderr  # The progress bar.


@pytest.mark.slow
def test_without_communication_they_do_not(tmp_path, unseen):
    """The split is hard: a worker alone knows only its own classes."""
    train.main(f"--local-steps 1000000 --epochs 20 --runs {tmp_path}".split())
    assert last_record(tmp_path)["worst"] < 0.7


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--workers 32 --topology social_network",
        "--workers 4 --communicator mesh --algorithm choco_sgd --consensus-rate 0.2",
        "--workers 2 --communicator mesh --task cifar10 --mock --model resnet18 "
        "--steps-per-epoch 2 --batch-size 4 --model-options width 0.125 blocks (1,)",
        "--workers 32 --topology torus",
        "--workers 32 --topology exponential --weights lazy",
        "--workers 32 --topology hypercube --overlap",
        "--algorithm all_reduce_sgd --optimizer adamw --learning-rate 0.01",
        "--algorithm all_reduce_sgd --local-steps 4 --split shards:2",
        "--task quadratics --workers 16 --topology binary_tree --weights 0.2",
        "--topology chain --consensus-rate 0.5 --weight-decay 1e-4 --split iid",
        "--algorithm relay_sgd --workers 8 --topology double_binary_trees "
        "--drop-probability 0.1 --missing latest",
        "--algorithm relay_sgd_grad --topology star --optimizer adam --overlap",
        "--algorithm d2_sgd --workers 8 --weights 0.3233",
        "--algorithm exact_diffusion --workers 9 --topology torus --local-steps 2",
        "--algorithm gradient_tracking_sgd --workers 8 --topology double_binary_trees",
        "--algorithm sgp --workers 6 --rounds 2 --overlap --drop-probability 0.1",
        "--algorithm quasi_global_momentum --topology double_binary_trees --overlap",
        "--algorithm quasi_global_adam --optimizer adam --weight-decay 1e-4",
        "--algorithm power_gossip --rank 2 --iterations 2 --overlap --no-warm-start",
        "--algorithm choco_sgd --consensus-rate 0.2 --topology double_binary_trees",
        "--algorithm choco_sgd --consensus-rate 0.2 --compressor quantize "
        "--compressor-options bits 4 unbiased False --local-steps 2",
        "--algorithm deep_squeeze --compressor sign --consensus-rate 0.02",
        "--algorithm choco_sgd --compressor dct --consensus-rate 0.1",
        "--algorithm moniqua --theta 0.5 --bits 4 --consensus-rate 0.1",
        "--algorithm dcd_psgd --workers 8",
        "--algorithm ecd_psgd --optimizer adam --learning-rate 0.001",
        "--algorithm led --local-steps 4 --no-check --dual-rate 0.5",
        "--algorithm k_gt --local-steps 4 --topology double_binary_trees",
        "--algorithm prox_skip --topology base_graph --workers 6",
        "--outer diloco --outer-period 11 --algorithm all_reduce_sgd",
        "--outer streaming_diloco --outer-period 4 --fragments 2 --delay 1 "
        "--algorithm relay_sgd --topology double_binary_trees --optimizer adamw "
        "--learning-rate 0.003",
        "--outer slowmo --outer-momentum 0.5 --base-state reset "
        "--algorithm power_gossip",
        "--outer noloco --outer-period 11 --topology random_matchings",
    ],
)
def test_options(options, tmp_path, unseen):
    result = train.main([*options.split(), "--epochs", "2", "--runs", str(tmp_path)])
    assert result.history[-1]["epoch"] == 2
    assert last_record(tmp_path)["consensus_distance"] >= 0


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--algorithm a2cid2 --rate 2 --speeds 1 1 1 0.25 --variation 0",
        "--algorithm adpsgd --rate 0.5 --global-steps --optimizer adamw "
        "--learning-rate 0.01 --workers 6 --topology star",
        "--algorithm a2cid2 --task quadratics --workers 2 --global-steps",
        "--algorithm all_reduce_sgd --speeds 1 1 1 0.25",
        # No gradient between some evaluations.
        "--algorithm adpsgd --task quadratics --task-options steps_per_epoch 1 "
        "--workers 2 --variation 5",
    ],
)
def test_virtual_clocks(options, tmp_path, capsys):
    options = f"{options} --epochs 3 --evaluations 3 --runs {tmp_path}"
    first, _, last = train.main(options.split()).history
    assert 0 < first["time"] < last["time"]
    assert first["step"] <= last["step"] and last["epoch"] == 3
    rows = table(capsys.readouterr().out)
    assert float(rows["virtual time"]) == pytest.approx(last["time"], rel=1e-3)
    waits = "all_reduce" in options
    assert ("idle share of the workers' time" in rows) == waits
    (folder,) = tmp_path.iterdir()
    pictures = {path.name for path in folder.glob("*.png")}
    assert ({"pairs.png", "timeline.png", "staleness.png"} <= pictures) != waits


@pytest.mark.slow
@pytest.mark.parametrize("name", ["quantize --compressor-options bits 2", "random_k"])
def test_choco_takes_the_contractions_among_random_codes(name, tmp_path, unseen):
    """The unbiased ones would make it diverge, without ever an infinite loss."""
    options = f"--algorithm choco_sgd --consensus-rate 0.1 --compressor {name}"
    result = train.main([*options.split(), "--epochs", "4", "--runs", str(tmp_path)])
    assert result.history[-1]["loss"] < result.history[0]["loss"] < 3


def test_choices_with_commas_are_quoted():
    with pytest.raises(errors.UsageError) as caught:
        errors.lookup("--method", "top k, 1", ["plain", "top k, 10", "b, c", ""])
    assert str(caught.value) == (
        "unknown --method 'top k, 1'; choose from '', 'b, c', 'plain', 'top k, 10'. "
        "Did you mean 'top k, 10'?"
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--topology rong", "choose from base_graph"),
        ("--algorithm d_psgd", "choose from a2cid2, .*dpsgd, ecd_psgd"),
        ("--task quadratic", "choose from ag_news, cifar10, digits, .*quadratics"),
        ("--weights heavy", "choose one of metropolis"),
        ("--weights 0.6", "has to be smaller than 0.5"),
        ("--workers 5 --topology hypercube", "power of two"),
        ("--workers 5 --topology social_network", "32"),
        ("--workers 2000", "at most 1437"),
        ("--workers 100", "--batch-size"),
        ("--epochs 0", "--epochs"),
        ("--consensus-rate -1", "consensus_rate must be positive"),
        ("--drop-probability 1", "drop_probability"),
        ("--communicator mesh --workers 9", "xla_force_host_platform_device_count=9"),
        ("--learning-rate 1e9", "diverged: worker .* is (nan|inf) in epoch 1"),
        ("--learning-rat 1", "Unrecognized"),
        ("--learning-rate nan", "must be positive"),
        ("--seed -1", "--seed"),
        ("--communicator mpi", "needs mpirun"),
        ("--name a/b", "plain folder name"),
        ("--model-options hidden 64", "options {'hidden': 64.*iterable"),
        ("--model resnet", "unknown --model 'resnet'; choose from mlp, resnet18"),
        ("--task quadratics --model mlp", "quadratics has no option --model"),
        ("--accumulation 5", "must divide --batch-size 32"),
        ("--split contiguous", "unknown --split 'contiguous'"),
        ("--task sotu --split iid:2", "'iid:2' is not for texts"),
        ("--clip-norm 0", "--clip-norm 0.0 must be positive"),
        ("--decayed matrices", "needs a --weight-decay"),
        ("--resume", "--resume needs the folder: --checkpoints"),
        ("--algorithm a2cid2 --checkpoints x", "no checkpoints on virtual clocks"),
        ("--task cifar10 --data-dir nowhere", "no cifar10 in nowhere.*prepare cifar10"),
        ("--task wikitext2 --data-dir nowhere", "no wikitext2 in .*put wiki.train"),
        ("--task quadratics --task-options dim 2.5", "options {'dim': 2.5}"),
        ("--optimizer lbfgs", "choose from"),
        ("--optimizer-options momentum True nesterov 3 accumulator_dtype 7", "error"),
        ("--algorithm relay_sgd", "ring has cycles; choose --topology chain, star"),
        (
            "--algorithm d2_sgd --workers 8 --topology hypercube",
            "diverges .*--weights lazy",
        ),
        ("--algorithm d2_sgd --workers 8 --drop-probability 0.1", "every message"),
        ("--algorithm d2_sgd --workers 32 --topology double_binary_trees", "diverges"),
        ("--algorithm sgp --rounds 0", "rounds must be"),
        ("--algorithm quasi_global_adam", "use --optimizer adam, not sgd"),
        ("--algorithm choco_sgd", "choco_sgd needs a --consensus-rate"),
        ("--algorithm choco_sgd --compressor topk", "choose from dct, identity"),
        (
            "--algorithm choco_sgd --consensus-rate 1 --compressor-options fraction 2",
            r"--compressor top_k: top_k: fraction must be in \(0, 1\]",
        ),
        ("--algorithm power_gossip --drop-probability 0.1", "needs every message"),
        (
            "--algorithm choco_sgd --consensus-rate 1 --compressor sign "
            "--compressor-options fraction 0.1",
            "--compressor-options of sign: there are none, but fraction was given",
        ),
        (
            "--algorithm dcd_psgd --compressor low_rank --topology double_binary_trees",
            "--compressor low_rank needs whole matrices",
        ),
        ("--algorithm power_gossip --rank 0", "rank must be an integer"),
        (
            "--algorithm power_gossip --topology double_binary_trees",
            "needs whole matrices",
        ),
        (
            "--algorithm led --local-steps 4 --dual-rate 5",
            "at --dual-rate 5: the largest stable --dual-rate is 1. .*--consensus-rate",
        ),
        (
            "--algorithm prox_skip --dual-rate 3 --topology random_matchings",
            "They shrink at --dual-rate 0.375",
        ),
        ("--outer slowmo --algorithm led", "led corrects every step: leave --outer"),
        ("--outer diloco", "--outer-period 500 is too long .* of 440 steps"),
        ("--outer slowmo --blend 0.5", "slowmo has no option --blend, only --outer-p"),
        ("--outer noloco --no-outer-nesterov", "noloco has no option --no-outer-nest"),
        ("--outer-period 20", "--outer-period needs an outer optimizer"),
        ("--outer slowmo --local-steps 4", "without --outer: use --outer-period 4"),
        ("--outer slowmo --overlap", "leave --overlap away"),
        ("--outer streaming_diloco --outer-period 21", "^error: --outer-period must"),
        ("--outer streaming_diloco --delay 25", "--delay must be less than --outer-p"),
        ("--outer streaming_diloco --fragments 5", "--fragments 5, but the parameters"),
        ("--outer slowmo --algorithm d2_sgd", "leave --outer away, and use --local-s"),
        (
            "--outer slowmo --algorithm relay_sgd_grad --topology chain",
            "averages gradients: choose --algorithm relay_sgd",
        ),
        (
            "--outer slowmo --algorithm quasi_global_momentum",
            "is an optimizer of its own: choose --algorithm dpsgd",
        ),
        ("--outer slowmo --algorithm a2cid2", "a2cid2 has no outer optimizer"),
        ("--rank 2", "dpsgd has no option --rank, only --consensus-rate"),
        ("--algorithm moniqua --consensus-rate 0.1 --bits 1", "bits must be 2 to 8"),
        ("--rate 2", "dpsgd has no option --rate; a2cid2 and adpsgd have"),
        ("--algorithm all_reduce_sgd --rate 2", "has no option --rate"),
        ("--algorithm a2cid2 --overlap", "a2cid2 has no option --overlap"),
        (
            "--algorithm a2cid2 --speeds 1 2",
            "speeds must be one number or one for each",
        ),
        ("--algorithm a2cid2 --rate 0", "no averagings connect worker 1"),
        ("--algorithm adpsgd --rate -1", "rate must be a finite number"),
        ("--algorithm adpsgd --drop-probability 0.1", "no option --drop-prob"),
        ("--algorithm adpsgd --topology double_binary_trees", "needs one graph"),
        (
            "--algorithm adpsgd --communicator mesh --workers 1",
            "a2cid2|adpsgd is not for --communicator mesh",
        ),
        ("--algorithm all_reduce_sgd --speeds 0", "speeds must be positive"),
        (
            "--algorithm adpsgd --task quadratics --learning-rate 1e9",
            "diverged: worker",
        ),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        train.main([*options.split(), "--runs", str(tmp_path)])
    assert stop.value.code == 2
    error = capfd.readouterr().err
    assert "Traceback" not in error
    assert re.search(message, error), error
    if "Unrecognized" not in message:
        assert error.splitlines()[-1].startswith("error: ")


MISTAKES = {
    "--topology rong": "choose from base_graph",
    "--workers 3": "mpirun started 2 ranks",
    "--communicator simulated": "launcher started 2",
    "--learning-rate 1e9 --epochs 2": "training diverged: worker",
    "--algorithm a2cid2 --variation 0": "--variation is of virtual clocks",
    "--algorithm dpsgd --max-backlog 3": "--max-backlog is for workers in real",
    "--algorithm a2cid2 --resume": "--resume needs the folder: --checkpoints",
    "--bogus": "Unrecognized options:",
    "--algorithm adpsgd --learning-rate 1e9 --epochs 9": "diverged: ",
}
"""Command lines, and what is said of them."""
MISTAKEN = f"""
import contextlib, os, sys
from experiments import train
folder = sys.argv[1]
for number, line in enumerate({list(MISTAKES)}):
    with open(f"{{folder}}/{{number}} of {{os.environ['PMI_RANK']}}", "w") as file:
        with contextlib.redirect_stderr(file):
            try:
                train.main([*line.split(), "--runs", f"{{folder}}/runs"])
            except SystemExit as stop:
                print("code", stop.code, file=file)
"""


@pytest.fixture(scope="module")
def said_of_mistakes(tmp_path_factory):
    """What each of two ranks says of each mistake, in one launch."""
    folder = tmp_path_factory.mktemp("mistakes")
    result = mpirun(2, "-c", MISTAKEN, str(folder), timeout=120)
    assert result.returncode == 0 and "error" not in result.stderr, result.stderr
    return {
        line: [(folder / f"{number} of {rank}").read_text() for rank in range(2)]
        for number, line in enumerate(MISTAKES)
    }


@over_mpi
@pytest.mark.parametrize("options", MISTAKES)
def test_mistakes_under_mpirun_are_said_once_by_all(options, said_of_mistakes):
    said = said_of_mistakes[options]
    assert all(text.endswith("code 2\n") for text in said)
    assert "".join(said).count(MISTAKES[options]) == 1
    assert "Traceback" not in "".join(said)


@over_mpi
@pytest.mark.parametrize(
    "options",
    [
        "--workers 3",
        "--learning-rate 1e9 --epochs 2",
        "--algorithm adpsgd --learning-rate 1e9 --epochs 9",
    ],
)
def test_a_mistake_under_mpirun_ends_all_with_code_2(options, tmp_path):
    """Before, and in the middle of, an exchange of messages."""
    command = (*TRAIN, *options.split(), "--runs", str(tmp_path))
    result = mpirun(2, *command, timeout=120)
    assert result.returncode == 2
    assert result.stderr.count(MISTAKES[options]) == 1
    assert "Traceback" not in result.stderr


@over_mpi
def test_workers_in_real_time_learn_and_are_resumed(tmp_path):
    options = ("--algorithm", "a2cid2", "--seed", "1", "--evaluations", "5")
    # Random times would make the realized rate random.
    options += ("--pairing", "first_free", "--no-random-times")
    options += ("--checkpoints", f"{tmp_path}/saved", "--runs")
    first = mpirun(2, *TRAIN, *options, f"{tmp_path}/a", "--epochs", "4", timeout=200)
    assert first.returncode == 0, first.stderr
    options += (f"{tmp_path}/b", "--resume", "--epochs", "24")
    second = mpirun(2, *TRAIN, *options, timeout=200)
    assert second.returncode == 0, second.stderr
    rows = table(second.stdout)
    assert rows["the rows below count from"] == "the resumption of the run"
    assert "the rows below count from" not in table(first.stdout)
    rate, asked = rows["averagings per gradient, mean (asked)"].split()
    assert asked == "(1)" and float(rate) == pytest.approx(1, rel=0.1)
    last, best = last_record(tmp_path / "a"), last_record(tmp_path / "b")
    assert last["epoch"] == pytest.approx(4, abs=1)
    assert best["epoch"] == pytest.approx(24, abs=1)
    assert best["worst"] > 0.85
    assert columns_of(tmp_path / "b") <= report.COLUMNS.keys()
    (folder,) = (tmp_path / "b").iterdir()
    assert {path.name for path in folder.iterdir()} == FILES | {
        "pairs.png",
        "timeline.png",
        "staleness.png",
        "trace.json",
    }
    trace = json.loads((folder / "trace.json").read_text())["traceEvents"]
    stale = [
        e["args"]["averagings meanwhile"] for e in trace if e["tid"] == 0 and "dur" in e
    ]
    late = rows["averagings during a gradient, mean (most)"]
    assert late == f"{np.mean(stale):.3g} ({max(stale)})"
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    epochs = [json.loads(line)["epoch"] for line in lines]
    # Looks are due at 8, 12, ...; the first run's before 4 are not repeated.
    assert epochs == sorted(epochs) and 4 <= epochs[0] <= 10


@over_mpi
def test_survivors_write_what_they_have(tmp_path):
    """Also when rank 0 is lost, which has made the folder."""
    program = f"""
import os, signal
from experiments import train
from experiments.lib import runtime

class Mortal(runtime.Live):
    def train(self, evaluations, advance):
        def live(epochs):
            advance(epochs)
            if os.environ["PMI_RANK"] == "0":
                os.kill(os.getpid(), signal.SIGKILL)
        return super().train(evaluations, live)

runtime.Live = Mortal
options = "--algorithm adpsgd --transport zmq --timeout 4 --epochs 8 --runs {tmp_path}"
train.main(options.split())
"""
    result = mpirun(3, "-c", program, guarded=True, timeout=120)
    assert "worker 0 is lost" in result.stderr
    rows = table(result.stdout)
    assert "lost: worker 0" in rows and "accuracy, worst worker" not in rows
    assert float(rows["accuracy, averaged model"].strip("%")) > 30
    (folder,) = tmp_path.iterdir()  # Its rows are not broken into lines.
    told = json.loads((folder / "summary.json").read_text())["rows"]
    assert told["the rows below leave out"] == "lost workers: 0"
    counts = told["gradients of a worker, mean (fewest, most)"]
    mean, fewest, most = map(float, re.findall(r"[\d.]+", counts))
    assert 0 < fewest <= most and mean == pytest.approx((fewest + most) / 2, rel=1e-4)
    assert last_record(tmp_path)["epoch"] == pytest.approx(8, abs=0.5)
    assert columns_of(tmp_path) <= report.COLUMNS.keys()


@over_mpi
def test_ranks_that_disagree_are_named(tmp_path):
    program = f"""
import os, sys
from experiments import train
seed = "7" if os.environ["PMI_RANK"] == "1" else "8"
train.main(["--seed", seed, "--runs", {str(tmp_path)!r}])
"""
    result = mpirun(2, "-c", program, timeout=120)
    assert result.returncode == 2
    assert "the configurations differ: ['seed'] of rank 1" in result.stderr
    assert os.listdir(tmp_path) == []


@over_mpi
def test_a_mistake_of_one_rank_is_said_by_it(tmp_path):
    program = """
import os
from experiments.lib import errors
with errors.one_line_errors(ValueError):
    if os.environ["PMI_RANK"] == "1":
        raise ValueError("no disk here")
    from mpi4py import MPI
    MPI.COMM_WORLD.Dup().Barrier()
"""
    result = mpirun(2, "-c", program, timeout=60)
    assert result.returncode == 2
    assert "rank 1: error: no disk here" in result.stderr
