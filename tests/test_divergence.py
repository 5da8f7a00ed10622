"""A training that gets worse and stays finite is told from one that learns."""

import json

import numpy as np
import pytest

from experiments import train
from experiments.lib import papers, report, study, synchronous, tables
from experiments.lib.divergence import Diverged, Watch, watch_all

pytestmark = pytest.mark.usefixtures("as_users")


def diverged(losses, cuts=()):
    """Whether the mean losses of all steps are called so, seen in several parts."""
    watch, before = Watch(len(losses)), 0
    for part in np.split(np.asarray(losses, float), cuts):
        watch.take(before, part)
        before += len(part)
    try:
        watch.check()
    except Diverged:
        return True
    return False


START = 2.3
STEPS = np.arange(100)


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        (START * 0.95**STEPS, False),
        (START + 0.3 * np.sin(STEPS), False),  # Nothing is learned: random labels.
        (START * 1.5 - 0.4 * np.cos(STEPS), False),
        ([START, *np.where(STEPS < 20, 50.0, 0.5)], False),  # It has come back.
        ([START, *np.where(STEPS == 85, 1e9, 0.1)], False),  # One step is no verdict.
        (np.where(STEPS < 20, START * 1000 ** STEPS.clip(max=3), START), True),
        (START * 1.05**STEPS, True),
        (START + STEPS / 20, True),
        (START * np.ones(100) + 1e12 * (STEPS > 2), True),
        (np.zeros(100) + STEPS, False),  # Nothing can be measured by a loss of 0.
        (STEPS - 50.0, False),  # Nor by a negative one.
        ([START, 3.0, 4.2], False),  # Steps of a warm-up.
        ([START, 50.0, 4000.0], True),
        ([START], False),
    ],
)
@pytest.mark.parametrize("cuts", [(), (50,), (10, 60, 85)])
def test_the_verdict_on_losses(losses, expected, cuts):
    assert diverged(losses, [c for c in cuts if c < len(losses)]) == expected


def test_gradients_of_workers_that_do_not_wait_are_taken_together():
    losses = np.full(400, 2.0)
    watch_all(losses, 4)
    losses[40:] = 100
    with pytest.raises(Diverged, match="2 in the first step, 100 at its worst"):
        watch_all(losses, 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--epochs 8",
        "--epochs 1",
        "--learning-rate 100 --epochs 8",
        "--algorithm a2cid2 --epochs 2",
        "--algorithm adpsgd --epochs 2 --split iid",
        "--optimizer adam --epochs 2",
        "--learning-rate 0.1 --algorithm deep_squeeze --consensus-rate 1 --epochs 5",
    ],
)
def test_a_divergence_that_stays_finite_ends_with_code_2(options, tmp_path, capfd):
    """And what was measured has been written."""
    line = f"--learning-rate 1000 --evaluations 2 --runs {tmp_path} {options}"
    with pytest.raises(SystemExit) as stop:
        train.main(line.split())
    assert stop.value.code == 2
    told, last = capfd.readouterr()
    last = last.splitlines()[-1]
    assert last.startswith("error: training diverged: the loss was 2.3")
    assert "lower --learning-rate" in last.lower()
    assert ("--consensus-rate" in last) == ("deep_squeeze" in options)
    (folder,) = tmp_path.iterdir()
    names = {path.name for path in folder.iterdir()}
    assert {"metrics.jsonl", "curves.png", "summary.json"} <= names
    record = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert np.isfinite(record["loss"])
    assert json.loads((folder / "summary.json").read_text())["diverged"] in last


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--learning-rate 1e-6 --epochs 1",
        "--learning-rate 1 --epochs 5",
        "--algorithm adpsgd --learning-rate 1e-6 --epochs 1",
        "--task quadratics --task-options noise 10.0 --epochs 4",
        "--task quadratics --task-options distance 0.0 noise 1.0 --epochs 4",
        "--local-steps 1000000 --split shards:1 --epochs 2",
        "--workers 2 --batch-size 1 --epochs 1 --steps-per-epoch 30",
    ],
)
def test_a_training_that_learns_little_has_not_diverged(options, tmp_path, unseen):
    train.main([*options.split(), "--runs", str(tmp_path)])
    (folder,) = tmp_path.iterdir()
    assert json.loads((folder / "summary.json").read_text())["diverged"] is None


@pytest.mark.slow
def test_a_search_for_a_learning_rate_goes_on_after_a_divergence(capsys, unseen):
    """Both that of a table for a cluster, and that of a study."""
    config = train.parse("--task digits --workers 4 --epochs 2 --evaluations 1".split())
    row = tables.Row("D-PSGD", config, tried=(1000.0, 1e9, 0.1))
    table = tables.Table("Table 0", (row,))
    records = papers.run(table, tables.Choice("D-PSGD", tune=True))
    assert [record["score"] is None for record in records] == [True, True, False]
    shown, said = capsys.readouterr()
    assert shown.count("1 diverged") == 2 and said.count("training diverged") == 2
    for rate in (1000.0, 1e9):
        result = study._execute(config.replace(learning_rate=rate, seed=1))
        digest = study.digest(table, result)
        assert digest["score"] is None and "diverged" in digest["error"]


def test_curves_of_a_divergence_are_drawn():
    record = dict.fromkeys(("mean_loss", "worst", "mean", "averaged"), float("inf"))
    record |= {"loss": 1e300, "averaged_loss": float("nan"), "consensus_distance": 1e38}
    history = [{"epoch": epoch, **record} for epoch in (1, 2)]
    report.plot_history(history, "accuracy", "").canvas.draw()


@pytest.mark.parametrize(
    ("differences", "expected"),
    [
        ([0.2, -0.1, 0.3, 0.1, 0.2], "below the noise of 0.3 ms"),
        ([-0.2, -0.1, -0.3, -0.1, -0.2], "below the noise of 0.3 ms"),
        ([0.0] * 5, "below the noise of 0 ms"),
        ([0.2, 0.1, 0.3, 0.1, 0.2], "0.2 ms (0.1 to 0.3)"),
    ],
)
def test_communication_is_not_told_more_precisely_than_it_was_timed(
    differences, expected
):
    gradient = np.array([1.0, 2.0, 1.1, 1.2, 1.05])
    seconds = np.stack([gradient + differences, gradient], axis=1) / 1e3
    rows = dict(synchronous.describe_times(seconds))
    assert rows["  of it communication"] == expected
    assert rows["  of it gradient and base optimizer"] == "1.1 ms"
