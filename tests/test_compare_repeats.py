"""`experiments.compare` shows a training once, though it was stopped or repeated."""

import json
import pathlib

import pytest
from test_compare import call, history, write_run

pytestmark = pytest.mark.usefixtures("as_users")


def end_run(folder, **rows):
    """Writes the summary of a run that has ended, or was cut off at `epochs`."""
    (pathlib.Path(folder) / "summary.json").write_text(json.dumps({"rows": rows}))
    return folder


def left_out(output):
    """The lines about folders that are left out."""
    return [line for line in output.splitlines() if line.startswith("left out: ")]


def test_a_stopped_run_and_its_resumption_are_one_seed(tmp_path, capsys):
    runs, whole = tmp_path / "runs", history()
    saved = {"checkpoints": "saved", "resume": True}
    early = end_run(write_run(runs / "20260101-000000-x", []), epochs="none of 2")
    cut_off = write_run(runs / "20260101-000001-x", whole[:1])
    end_run(cut_off, epochs="1 of 2")
    resumed = end_run(write_run(runs / "20260101-000002-x", whole, saving=saved))
    other = end_run(write_run(runs / "20260101-000003-x", history(3.0), seed=1))
    groups = call(tmp_path, early, resumed, cut_off, other)
    (kept,) = groups.values()
    assert [str(run.folder) for run in kept] == [resumed, other]
    output = capsys.readouterr().out
    assert left_out(output) == [
        f"left out: {early} (no evaluation yet), {cut_off} (ends at epoch 1): {resumed}"
        " continues or repeats the same training with the same seed"
    ]
    assert "end at different epochs" not in output
    assert "2 ± 1.4" not in output and "1 ± 0.71" in output


@pytest.mark.parametrize(
    "rows",
    [
        {"epochs": "2 of 2"},  # A signal came after the training.
        {"given up, collapsed, in epoch": "2"},
        None,  # Killed while it described itself.
    ],
)
def test_of_complete_runs_with_the_same_seed_the_newest_is_shown(
    rows, tmp_path, capsys
):
    newest = write_run(tmp_path / "20260102-000000-b", history(), epochs=2)
    if rows is not None:
        end_run(newest, **rows)
    old = end_run(write_run(tmp_path / "20260101-000000-c", history(), epochs=2))
    again = write_run(tmp_path / "20260103-000000-a", history()[:1], epochs=2)
    (kept,) = call(tmp_path, newest, old, f"{tmp_path}/../{tmp_path.name}/{old[-17:]}")
    assert kept == "20260102-000000-b"
    (line,) = left_out(capsys.readouterr().out)
    assert f"{old[-17:]} (older): {newest} continues or repeats" in line
    (kept,) = call(tmp_path, again, newest)  # The youngest is still running.
    assert kept == "20260102-000000-b"


def test_of_stopped_runs_the_one_that_went_furthest_is_shown(tmp_path, capsys):
    short = end_run(write_run(tmp_path / "b", history()[:1]), epochs="1 of 9")
    far = end_run(write_run(tmp_path / "a", history()), epochs="2 of 9")
    assert set(call(tmp_path, far, short)) == {"a"}
    assert f"{short} (ends at epoch 1): {far}" in left_out(capsys.readouterr().out)[0]
    # Another seed, which nothing continues: it is shown, with a warning.
    other = write_run(tmp_path / "c", history()[:1], seed=1)
    ((kept, _),) = call(tmp_path, far, other).values()
    output = capsys.readouterr().out
    assert not left_out(output) and str(kept.folder) == far
    assert f"the runs of a end at different epochs: {far} (2), {other} (1); " in output


def test_asynchronous_workers_may_be_resumed_for_longer(tmp_path, capsys):
    """In real time, where they save checkpoints; on virtual clocks nothing resumes."""
    for name, checkpoints, expected in (("real", "saved", 1), ("virtual", None, 0)):
        options = {
            "averaging": {"algorithm": "adpsgd"},
            "saving": {"checkpoints": checkpoints},
        }
        folder = tmp_path / name
        stopped = write_run(folder / "a", history()[:1], **options, epochs=2)
        ended = end_run(write_run(folder / "b", history(), **options, epochs=3))
        longer = end_run(write_run(folder / "c", history(), **options, epochs=4))
        groups = call(tmp_path, stopped, ended, longer)
        assert set(groups) >= {"--epochs 3", "--epochs 4"}
        assert len(groups) == 3 - expected
        assert len(left_out(capsys.readouterr().out)) == expected
