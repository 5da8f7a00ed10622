"""`experiments.train` with groups of workers."""

import json

import pytest
from launch import mpirun

from experiments import train

pytestmark = pytest.mark.usefixtures("as_users", "unseen")

OPTIONS = ["--epochs", "2", "--learning-rate", "0.02", "--group-size", "2"]
OPTIONS += ["--local", "all_reduce", "--topology", "chain"]

BOTH = """
import sys
from experiments import train
for line in sys.argv[1:]:
    train.main(line.split())
"""


def ran(folder):
    """The last run's summary, and its measurements without times."""
    path = max(folder.iterdir())
    lines = (path / "metrics.jsonl").read_text().splitlines()
    return json.loads((path / "summary.json").read_text()), [*map(json.loads, lines)]


@pytest.mark.xdist_group("mpi")
def test_groups_are_the_same_in_simulation_and_over_mpi(tmp_path):
    train.main([*OPTIONS, "--workers", "4", "--runs", f"{tmp_path}/simulated"])
    summary, expected = ran(tmp_path / "simulated")
    assert summary["title"].startswith("digits-dpsgd-chain2-groups2")
    rows = summary["rows"]
    levels = [float(rows[f"of it {where} groups"]) for where in ("within", "between")]
    assert levels[1] > 0 and levels[0] > levels[1]
    for record in expected:  # The workers of a group are equal.
        one, two, three, four = record["scores"]
        assert one == two and three == four
    never_waits = ["--algorithm", "a2cid2", "--runs", f"{tmp_path}/a2cid2"]
    both = [[*OPTIONS, "--runs", f"{tmp_path}/mpi"], [*OPTIONS, *never_waits]]
    result = mpirun(4, "-c", BOTH, *map(" ".join, both))
    assert result.returncode == 0, result.stderr
    _, found = ran(tmp_path / "a2cid2")
    one, two, three, four = found[-1]["scores"]
    assert one == two and three == four
    _, found = ran(tmp_path / "mpi")
    assert len(found) == len(expected)
    for mine, other in zip(found, expected, strict=True):
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
        assert mine["scores"] == pytest.approx(other["scores"], abs=0.01)


@pytest.mark.parametrize(
    "algorithm", ["all_reduce_sgd", "relay_sgd", "power_gossip", "exact_diffusion"]
)
def test_algorithms_train_between_groups(tmp_path, algorithm):
    options = ["--workers", "4", "--algorithm", algorithm, "--runs", str(tmp_path)]
    train.main([*OPTIONS, *options])
    _, records = ran(tmp_path)
    one, two, three, four = records[-1]["scores"]
    assert one == two and three == four and records[-1]["averaged"] > 0.5


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ("--group-size 3", "group_size must be one of 1, 2, 4"),
        ("--group-size node", 'by="node" asks on which hosts'),
        ("--group-size 2 --algorithm a2cid2", "has groups over MPI alone"),
    ],
)
def test_mistakes_are_named(tmp_path, capsys, options, said):
    with pytest.raises(SystemExit):
        train.main([*options.split(), "--workers", "4", "--runs", str(tmp_path)])
    assert said in capsys.readouterr().err
