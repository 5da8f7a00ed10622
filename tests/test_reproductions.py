"""The scripts of the papers' figures, tiny, and their tuning."""

import importlib
import json
import pathlib
import re

import jax
import numpy as np
import pytest
from launch import mpirun

import djax
from djax import topologies
from experiments.lib import tuning
from experiments.lib.quadratics import random_quadratics
from experiments.relaysgd.methods import over

ROOT = pathlib.Path(__file__).parent.parent
SCRIPTS = [
    f"experiments.{path.parent.name}.{path.stem}"
    for path in sorted((ROOT / "experiments").glob("*/*.py"))
    if re.search(r"script\(\s*__name__|configure\(__file__", path.read_text())
]
WALL_CLOCK = "experiments.acid.wall_clock"  # Under mpirun.

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users")]


@pytest.mark.parametrize("script", [s for s in SCRIPTS if s != WALL_CLOCK])
def test_every_figure_and_table_is_made(script, tmp_path, capsys):
    module = importlib.import_module(script)
    records = module.main(["--smoke", "--output", str(tmp_path)])
    assert len(check_figure(script, tmp_path)) == len(records) > 0
    name = script.split(".")[-1]
    number = "".join(c for c in name.split("_")[0] if c.isdigit())
    assert number in capsys.readouterr().out  # The table says what it shows.
    assert f"python -m {script}" in module.__doc__


def check_figure(script, folder):
    """What a script has written: its records, and a picture."""
    name = script.split(".")[-1]
    assert {path.name for path in folder.iterdir()} == {f"{name}.jsonl", f"{name}.png"}
    head, *lines = (folder / f"{name}.jsonl").read_text().splitlines()
    assert json.loads(head)["smoke"] is True
    assert (folder / f"{name}.png").read_bytes().startswith(b"\x89PNG")
    records = [json.loads(line) for line in lines]
    assert all(isinstance(record, dict) for record in records)
    return records


@pytest.mark.xdist_group("mpi")
def test_the_figure_of_real_workers_is_made(tmp_path):
    result = mpirun(4, "-m", WALL_CLOCK, "--smoke", "--output", str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "Throughput of 4 workers" in result.stdout
    records = check_figure(WALL_CLOCK, tmp_path)
    methods = {record["method"] for record in records}
    assert methods == {"solo", "AR-SGD", "AD-PSGD", "A²CiD²"} and len(records) == 8


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_figure_and_table_has_committed_results(script):
    *folders, name = script.split(".")
    results = ROOT.joinpath(*folders, "results")
    head, *lines = (results / f"{name}.jsonl").read_text().splitlines()
    assert json.loads(head)["smoke"] is False and lines
    assert (results / f"{name}.png").stat().st_size > 10_000
    assert script in (ROOT / "docs" / "experiments.md").read_text()


PROBLEMS = [
    random_quadratics(6, 10, 0.01, distance=100.0, smallest=0.5, seed=seed)
    for seed in range(10)
]


@pytest.mark.parametrize(
    ("make", "steps"),
    [
        (over(djax.relay_sgd, topologies.chain(6)), 20.8),
        (over(djax.relay_sgd, topologies.binary_tree(6)), 15.2),
        (over(djax.d2_sgd, topologies.ring(6)), 19.6),
        (over(djax.gradient_tracking_sgd, topologies.ring(6)), 49.2),
        (over(djax.sgp, topologies.one_peer_exponential(6), rounds=2), 107.9),
        (over(djax.all_reduce_sgd), 8.9),
    ],
)
def test_tuning_meets_the_numbers_of_the_papers_figure_2(make, steps):
    with jax.enable_x64(True):
        published = tuning.tune_as_published(make, PROBLEMS)
        finer = tuning.tune_fastest(make, PROBLEMS)
    assert published.steps.mean() == pytest.approx(steps, abs=0.051)
    assert finer.steps.mean() <= 1.02 * steps


def test_what_is_tuned_is_what_a_run_does():
    make = over(djax.relay_sgd, topologies.chain(6))
    with jax.enable_x64(True):
        steps, rates = tuning.tune_fastest(make, PROBLEMS[:2])
        runs = [
            tuning.curves(make, problem, rate, 100)
            for problem, rate in zip(PROBLEMS, rates, strict=False)
        ]
    for errors, first in zip(runs, steps, strict=True):
        assert (errors < 1e-6).argmax() == first
        assert (np.diff(errors[1 : int(first) + 1]) < 0).all()


def test_a_plateau_is_where_a_run_settles():
    make = over(djax.dpsgd, topologies.ring(6))
    problem = random_quadratics(6, 4, 0.1, smallest=0.5, seed=0)
    with jax.enable_x64(True):
        (steps,), (rate,) = tuning.tune_plateau(make, [problem], goal=1e-5)
        errors = tuning.curves(make, problem, rate, 3 * int(steps))
    assert 0.9e-5 < errors[int(steps)] < 1e-5  # Nearly, by the paper's rule.
    assert 0.8e-5 < errors[-1] < 1e-5


def test_what_no_learning_rate_reaches_is_nan():
    make = over(djax.dpsgd, topologies.chain(4))
    problem = random_quadratics(4, 3, 1.0, smallest=0.5, seed=0)
    with jax.enable_x64(True):
        for tune in (
            tuning.tune_fastest,
            tuning.tune_as_published,
            tuning.tune_plateau,
        ):
            tuned = tune(make, [problem], goal=1e-9, max_steps=30)
            assert np.isnan(tuned.steps).all() and np.isnan(tuned.learning_rates).all()


def test_noise_is_that_of_the_seed():
    make = over(djax.dpsgd, topologies.ring(6))

    def final(**options):
        return tuning.curves(make, PROBLEMS[0], 0.1, 20, **options)[-1]

    assert final(noise=0.1) == final(noise=0.1) != final(noise=0.1, seed=1)


def test_the_problems_are_the_papers():
    golden = np.load(ROOT / "tests" / "golden" / "relay_quad16.npz")
    problem = random_quadratics(16, 4, 0.1, smallest=0.5, seed=1)
    np.testing.assert_allclose(problem.matrices, golden["A"], atol=1e-14)
    # Its heterogeneity was bisected to 1e-5.
    np.testing.assert_allclose(problem.offsets, golden["b"], atol=1e-5)
