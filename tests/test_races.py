"""Both sides of a race solve one problem; the script runs from its start to its end."""

import importlib
import json
import sys

import numpy as np
import pytest
from launch import by_copies

from benchmarks.races import __main__ as script
from benchmarks.races import problems

AGAINST_NUMPY = problems.races("numpy", smoke=True)


@pytest.mark.parametrize("name", AGAINST_NUMPY)
def test_djax_and_numpy_find_the_same(name, tmp_path, as_users):
    for race in AGAINST_NUMPY[name]:
        np.savez(tmp_path / "problem.npz", **race.arrays())
        for side in ("djax", "numpy"):
            contestants = importlib.import_module(f"benchmarks.races.in_{side}")
            with np.load(tmp_path / "problem.npz") as arrays:
                run = getattr(contestants, race.function)(**arrays)
            np.save(tmp_path / side, run())
        script.check(race, ("djax", "numpy"), tmp_path)


@pytest.mark.parametrize("found", [1.1, 0.0, np.nan])
def test_a_race_between_different_results_is_no_race(found, tmp_path):
    (race,) = AGAINST_NUMPY["sweep"]
    np.save(tmp_path / "djax", np.full(3, found))
    np.save(tmp_path / "numpy", np.full(3, 1.0 if found else 0.0))
    with pytest.raises(AssertionError, match="sweep"):
        script.check(race, ("djax", "numpy"), tmp_path)


@pytest.mark.slow
def test_races_are_published_and_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(script, "PYTHON", [sys.executable, *by_copies()])
    command = ["races", "--peer", "numpy", "--smoke", "--output", str(tmp_path)]
    command += ["--repeats", "1", "--starts", "1", "--races"]
    for name in ("sweep", "quadratics"):
        monkeypatch.setattr(sys, "argv", [*command, name])
        script.main()
    records = json.loads((tmp_path / "races_numpy.json").read_text())["records"]
    assert [record["race"].split()[0] for record in records] == [
        "quadratics,",
        "sweep,",
    ]
    for record in records:
        for key in ("microseconds", "seconds", "megabytes"):
            assert all(record[f"{key}, {side}"][0] > 0 for side in ("djax", "numpy"))
