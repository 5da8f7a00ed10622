"""`experiments.compare` shows runs beside each other, and says what it cannot read."""

import json

import numpy as np
import pytest

from experiments import compare, train

pytestmark = pytest.mark.usefixtures("as_users")

OPTIONS = {"averaging": {"algorithm": "dpsgd"}, "topology": "ring", "seed": 0}


def write_run(folder, history, **options):
    """Makes the folder of a run by hand."""
    folder.mkdir(parents=True)
    config = OPTIONS | {"runs": str(folder.parent)} | options
    (folder / "config.json").write_text(json.dumps({"config": config}))
    lines = [json.dumps(record) + "\n" for record in history]
    (folder / "metrics.jsonl").write_text("".join(lines))
    return str(folder)


def history(scale=1.0, **more):
    """Two evaluations of two workers."""
    return [
        {
            "epoch": epoch,
            "step": 10 * epoch,
            "loss": scale / epoch,
            "worst": 0.4 * epoch,
            "mean": 0.41 * epoch,
            "averaged": 0.42 * epoch,
            "mean_loss": scale / epoch,
            "averaged_loss": scale / epoch,
            "consensus_distance": 0.01 * scale,
            "scores": [0.4 * epoch, 0.42 * epoch],
            "megabytes": scale * epoch,
            "seconds": 1.5 * epoch,
        }
        | more
        for epoch in (1, 2)
    ]


def call(tmp_path, *arguments):
    return compare.main([*arguments, "--out", str(tmp_path / "picture.png")])


def rows_of(output, label):
    """The cells of the rows of the table whose label has these letters."""
    lines = [line for line in output.splitlines() if label in line and "│" in line]
    return [[cell.strip() for cell in line.strip("│").split("│")] for line in lines]


def drawn(tmp_path, **options):
    """The axes on which the runs in a folder are drawn."""
    folders = (path for path in sorted(tmp_path.iterdir()) if path.is_dir())
    runs = [compare.load(folder) for folder in folders]
    config = compare.Config(runs=(), **options)
    return compare.draw(compare.group(runs), config).axes[0]


@pytest.mark.slow
def test_trainings_are_called_by_the_options_that_differ(tmp_path, capsys, unseen):
    short = "--task quadratics --epochs 2 --evaluations 2"
    for options in ("--algorithm dpsgd", "--algorithm adpsgd --topology star"):
        train.main(f"{short} {options} --runs {tmp_path}/runs".split())
    folders = map(str, sorted((tmp_path / "runs").iterdir()))
    groups = call(tmp_path, *folders, "--x", "megabytes", "--y", "loss")
    assert set(groups) == {
        "--algorithm dpsgd --topology ring",
        "--algorithm adpsgd --topology star",
    }
    assert (tmp_path / "picture.png").stat().st_size > 10_000
    output = capsys.readouterr().out
    assert "dpsgd" in output and "consensus distance" in output


def test_the_table_has_the_last_values(tmp_path, capsys):
    folders = [
        write_run(tmp_path / "a", history()),
        write_run(tmp_path / "b", history(3.0), averaging={"algorithm": "sgp"}),
    ]
    call(tmp_path, *folders)
    assert rows_of(capsys.readouterr().out, "--algorithm") == [
        "--algorithm dpsgd;1;0.8;0.82;0.84;0.5;0.01;2;3".split(";"),
        "--algorithm sgp;1;0.8;0.82;0.84;1.5;0.03;6;3".split(";"),
    ]


def test_runs_that_differ_in_the_seed_are_averaged(tmp_path, capsys):
    write_run(tmp_path / "a", history(1.0))
    write_run(tmp_path / "b", history(3.0), seed=1)
    write_run(tmp_path / "c", history(5.0), seed=1, topology="star")
    axes = drawn(tmp_path, y="loss")
    ring, star = axes.lines
    assert [line.get_label() for line in axes.lines] == [
        "--topology ring",
        "--topology star",
    ]
    np.testing.assert_allclose(ring.get_ydata(), [2, 1])
    np.testing.assert_allclose(star.get_ydata(), [5, 2.5])
    (band,) = axes.collections
    heights = band.get_paths()[0].vertices[:, 1]
    assert heights.max() == pytest.approx(2 + np.std([1, 3], ddof=1))
    folders = map(str, sorted(tmp_path.iterdir()))
    compare.main([*folders, "--out", str(tmp_path / "picture.png")])
    assert "1 ± 0.71" in capsys.readouterr().out


def test_a_single_run_is_called_by_its_folder(tmp_path):
    groups = call(tmp_path, write_run(tmp_path / "20200101-mine", history()))
    assert set(groups) == {"20200101-mine"}


def test_the_number_of_processes_is_an_option(tmp_path):
    more = history(scores=[0.1] * 3)
    write_run(tmp_path / "two", history(), workers=None)
    write_run(tmp_path / "three", more, workers=None)
    labels = {line.get_label() for line in drawn(tmp_path).lines}
    assert labels == {"--workers 2", "--workers 3"}


def test_runs_are_called_by_options_that_are_set(tmp_path):
    outer = {"outer": "diloco", "outer_period": 20, "fragments": None}
    streaming = outer | {"outer": "streaming_diloco", "fragments": 2, "delay": 3}
    write_run(tmp_path / "a", history())
    write_run(tmp_path / "b", history(), rarely=outer)
    write_run(tmp_path / "c", history(), rarely=streaming, base={"learning_rate": 0.2})
    write_run(tmp_path / "d", history(), averaging={"algorithm": "sgp"}, batch_size=32)
    labels = [line.get_label() for line in drawn(tmp_path).lines]
    assert labels == [
        "--algorithm dpsgd",
        "--algorithm dpsgd --outer diloco --outer-period 20",
        "--learning-rate 0.2 --algorithm dpsgd --outer streaming_diloco "
        "--outer-period 20 --fragments 2 --delay 3",
        "--algorithm sgp",
    ]


@pytest.mark.parametrize(
    ("options", "plain", "changed"),
    [
        ({"batch_size": 8}, "--batch-size 32", "--batch-size 8"),
        (
            {"message_dtype": "float16", "rounding_seed": 1},
            "--message-dtype None",
            "--message-dtype float16 --rounding-seed 1",
        ),
    ],
)
def test_a_run_that_sets_no_option_is_called_by_defaults(
    options, plain, changed, tmp_path
):
    write_run(tmp_path / "a", history())
    write_run(tmp_path / "b", history(), **options)
    assert [line.get_label() for line in drawn(tmp_path).lines] == [plain, changed]


@pytest.mark.parametrize(
    ("x", "y", "scales"),
    [
        ("epochs", "loss", ("linear", "log")),
        ("megabytes", "loss", ("log", "log")),
        ("epochs", "worst", ("linear", "linear")),  # An accuracy.
        ("steps", "consensus_distance", ("linear", "log")),
    ],
)
def test_axes_are_logarithmic_where_it_fits(x, y, scales, tmp_path):
    write_run(tmp_path / "a", history())
    write_run(tmp_path / "b", history(30.0), topology="star")
    axes = drawn(tmp_path, x=x, y=y)
    assert (axes.get_xscale(), axes.get_yscale()) == scales


def test_equal_models_are_drawn_on_a_linear_axis(tmp_path):
    write_run(tmp_path / "a", history(consensus_distance=0.0))
    assert drawn(tmp_path, y="consensus_distance").get_yscale() == "linear"


def test_what_a_run_with_lost_workers_lacks_is_a_dash(tmp_path, capsys):
    first, last = history()
    del last["worst"], last["scores"]
    call(tmp_path, write_run(tmp_path / "short", [first, last]))
    (row,) = rows_of(capsys.readouterr().out, "short")
    assert row[2:5] == ["–", "0.82", "0.84"]
    np.testing.assert_array_equal(drawn(tmp_path).lines[0].get_ydata(), [0.4, np.nan])


def test_mistakes_end_in_one_line(tmp_path, capsys):
    good = write_run(tmp_path / "good", history())
    timed = write_run(tmp_path / "timed", history(time=3.0), seed=1)
    young = write_run(tmp_path / "young", [])
    begun, broken = tmp_path / "begun", tmp_path / "broken"
    begun.mkdir()
    (begun / "config.json").write_text("{}")
    write_run(broken, history())
    (broken / "metrics.jsonl").write_text("{")
    (tmp_path / "other").mkdir()
    for arguments, message in (
        ([], "no runs are given; pass their folders"),
        ([f"{tmp_path}/none*"], "none* is not a folder; pass the folders of runs"),
        ([f"{tmp_path}/other"], "not the folder of a run: it has no config.json"),
        ([good, str(begun)], "has no metrics yet: its metrics.jsonl is missing"),
        ([young], "has no metrics yet: its metrics.jsonl is empty"),
        ([str(broken)], "has a file that cannot be read: "),
        (
            [timed, good, "--x", "time"],
            f"--x time: {good} has no column 'time'; choose from megabytes, seconds, "
            "steps, epochs.",
        ),
    ):
        with pytest.raises(SystemExit) as stop:
            call(tmp_path, *arguments)
        error = capsys.readouterr().err
        assert stop.value.code == 2
        assert error.startswith("error: ") and message in error, error
        assert error.count("\n") == 1
    assert not (tmp_path / "picture.png").exists()


def test_a_picture_that_cannot_be_written_is_an_error_of_one_line(tmp_path, capsys):
    good = write_run(tmp_path / "good", history())
    for name, message in (("none/x.png", "No such file"), ("x.text", "not supported")):
        with pytest.raises(SystemExit):
            compare.main([good, "--out", str(tmp_path / name)])
        error = capsys.readouterr().err
        assert error.startswith("error: ") and message in error
