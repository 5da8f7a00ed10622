"""The papers' tables can be run as they are, and those of this machine were."""

import importlib
import json
import pathlib
import shlex

import jax
import pytest
from launch import mpirun

from experiments import train
from experiments.lib import study, tables
from experiments.lib.config import check, command_line
from experiments.lib.run import make_task

ROOT = pathlib.Path(__file__).parent.parent


def scripts(call):
    """Those that have such a call."""
    return [
        f"experiments.{path.parent.name}.{path.stem}"
        for path in sorted((ROOT / "experiments").glob("*/*.py"))
        if path.parent.name != "lib" and call in path.read_text()
    ]


TABLES, STUDIES = scripts("papers.script("), scripts("study.script(")


def described(script):
    """The module with the values and the help text of a script."""
    return importlib.import_module(script.replace("experiments", "experiments.configs"))


def table_of(script):
    module = described(script)
    return module.TABLE if script in TABLES else module.STUDY.table


pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("as_users")]


def test_there_is_a_script_for_each_table():
    names = {script.removeprefix("experiments.") for script in TABLES}
    assert names == {
        "relaysgd.table2_cifar10",
        "relaysgd.table3_imagenet",
        "relaysgd.table4_ag_news",
        "relaysgd.table5_cifar10",
        "powergossip.table_cifar10",
        "powergossip.table_wikitext2",
        "acid.table_cifar10",
        "acid.table_imagenet",
    }
    assert len(STUDIES) == 5


@pytest.mark.parametrize("script", TABLES + STUDIES)
def test_every_row_is_a_command_line(script):
    table = table_of(script)
    rows = {(row.method, row.setting): row for row in table.rows}
    assert len(rows) == len(table.rows)
    variants = {} if script in TABLES else described(script).STUDY.variants
    for row in table.rows:
        assert not row.tried or row.learning_rate in row.tried, row
        assert row.config.workers and row.config.base.learning_rate > 0
        for variant in variants.get(row.method, ({},)):
            config = tables.configure(table, row, seed=row.seeds[0], **variant)
            check(config)
            assert train.parse(shlex.split(command_line(config))) == config


@pytest.mark.parametrize("script", TABLES)
def test_a_table_is_listed_before_it_is_run(script, capsys):
    module = importlib.import_module(script)
    assert module.main([]) == []
    shown = capsys.readouterr().out
    for row in described(script).TABLE.rows:
        assert f"{row.method} {row.setting}: experiments.train" in shown


@pytest.mark.parametrize("script", TABLES)
def test_the_help_of_a_table_says_how_it_is_started(script, capsys):
    with pytest.raises(SystemExit):
        importlib.import_module(script).main(["--help"])
    said = capsys.readouterr().out
    for part in (f"python -m {script}", "mpirun -n", "#SBATCH", "srun python -m"):
        assert part in said
    table = described(script).TABLE
    train.parse(table.example.more)
    assert tables.select(table, table.example)
    assert f"python -m experiments.prepare {table.prepare}" in said


@pytest.mark.parametrize("script", TABLES)
def test_every_table_starts_in_simulation(script, capsys):
    module = importlib.import_module(script)
    records = module.main(["--smoke"])
    table = described(script).TABLE
    assert len(records) == len({row.algorithm for row in table.rows})
    assert table.title[:20] in capsys.readouterr().out


@pytest.mark.parametrize("script", TABLES + STUDIES)
def test_the_models_of_every_table_have_gradients(script):
    """At their full size, unlike in a smoke test; only shapes are computed."""
    table = table_of(script)
    models = {}
    for row in table.rows:
        options = row.config.model_options
        models[row.config.model, json.dumps(options)] = row, options
    for row, options in models.values():
        tiny = tables.configure(table, row, smoke=True)
        task = make_task(tiny.replace(model_options=options), 1, [0])

        def gradient(task=task):
            batch = jax.tree.map(lambda x: x[0, 0], task.batches(0, 1))
            state = jax.tree.map(lambda x: x[0], task.model_state)
            params = task.init(jax.random.key(0))
            return params, task.gradient_fn(params, state, batch)[0]

        params, gradients = jax.eval_shape(gradient)
        assert gradients == params


METHODS = {
    "relaysgd.table2_cifar10": "RelaySGD + momentum, double trees",
    "relaysgd.table3_imagenet": "D-PSGD + quasi-global momentum, ring",
    "relaysgd.table4_ag_news": "Relay-Adam, chain",
    "relaysgd.table5_cifar10": "SGP, one-peer exponential",
    "powergossip.table_cifar10": "PowerGossip, 2 iterations",
    "powergossip.table_wikitext2": "CHOCO, sign",
    "acid.table_cifar10": "A²CiD², rate 1",
    "acid.table_imagenet": "AR-SGD",
}
EVERY_TABLE = """
import importlib, sys
for argument in sys.argv[1:]:
    script, method = argument.split("=")
    table = importlib.import_module(f"experiments.{script}")
    table.main(["--smoke", "--method", method])
"""


@pytest.mark.xdist_group("mpi")
def test_every_table_starts_under_mpirun():
    assert {f"experiments.{script}" for script in METHODS} == set(TABLES)
    result = mpirun(2, "-c", EVERY_TABLE, *map("=".join, METHODS.items()))
    assert result.returncode == 0, result.stderr
    started = [line for line in result.stdout.splitlines() if "--workers 2" in line]
    for line, method in zip(started, METHODS.values(), strict=True):
        assert line.startswith(method)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "RelaySGD"], "unknown --method 'RelaySGD'; choose from 'D-PSGD"),
        (["--setting", "alpha 2"], "choose from alpha 0.01, alpha 0.1, alpha 1"),
        (["--smoke", "--", "--epochs", "0"], "--epochs 0 must be at least 1"),
    ],
)
def test_what_cannot_be_chosen_is_said(options, message, capsys):
    module = importlib.import_module("experiments.relaysgd.table2_cifar10")
    with pytest.raises(SystemExit) as stop:
        module.main(options)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.filterwarnings("ignore:diloco. with the compressed messages")
@pytest.mark.parametrize("script", STUDIES)
def test_every_study_is_made(script, tmp_path, capsys):
    module = importlib.import_module(script)
    records = module.main(["--smoke", "--jobs", "1", "--output", str(tmp_path)])
    name = script.rsplit(".", 1)[-1]
    assert {path.name for path in tmp_path.iterdir()} == {
        f"{name}.jsonl",
        f"{name}.png",
    }
    head, *lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
    assert json.loads(head)["smoke"] is True
    assert [json.loads(line) for line in lines] == records
    table = described(script).STUDY.table
    assert {r["method"] for r in records} <= {r.method for r in table.rows}
    assert all(r["score"] is not None and r["megabytes"] > 0 for r in records)
    assert table.title[:20] in capsys.readouterr().out


@pytest.mark.parametrize("script", STUDIES)
def test_committed_results_are_those_of_the_rows(script):
    """All runs that a study asks for are in its ledger, under the names that it has."""
    plan = described(script).STUDY
    *folders, name = script.split(".")
    path = ROOT.joinpath(*folders, "results", f"{name}.jsonl")
    ledger = study.Ledger(path, smoke=False)
    for stage in (study._tuning, study._borrowing, study._repeating):
        assert all(ledger.find(**job.key) for job in stage(plan, ledger))


def row(method):
    return tables.Row(method, train.parse([]))


def test_a_study_tunes_borrows_and_repeats(tmp_path, monkeypatch):
    """With the first seed; what is in the ledger is not run again."""
    table = tables.Table("", (row("a"), row("b"), row("c")), score="mean")
    variants = {"b": ({"theta": 0.25}, {"theta": 0.5})}
    plan = tables.Study(table, (0.1, 0.2), variants=variants, borrowed={"c": "a"})
    done = []

    def execute(config, folder):
        done.append(config)
        rate, theta = config.base.learning_rate, config.averaging.theta
        score = rate - 0.15 * (theta == 0.25) + config.seed / 1000
        if rate == 0.2 and theta == 0.5:
            return {"history": [], "megabytes": None, "error": "diverged"}
        history = [{"epoch": 1, "mean": score, "scores": [score]}]
        return {"history": history, "megabytes": 1.0, "error": None}

    monkeypatch.setattr(study, "_execute", execute)
    config = study.Config(jobs=1)
    ledger = study.Ledger(tmp_path / "ledger.jsonl", smoke=False)
    records = study.run(plan, config, ledger)
    assert len(done) == len(records) == 2 + 4 + 1 + 3 * 2
    best = {r.method: study.chosen(plan, records, r) for r in table.rows}
    assert [run["seed"] for run in best["a"]] == [1, 2, 3]
    assert {run["learning_rate"] for run in best["a"] + best["c"]} == {0.2}
    assert {(r["learning_rate"], r["variant"]) for r in best["b"]} == {
        (0.1, "--theta 0.5")
    }
    again = study.Ledger(tmp_path / "ledger.jsonl", smoke=False)
    assert again.records == records
    study.run(plan, config, again)
    assert len(done) == len(records)
    assert "a" in [
        cell for column in study.results(plan, records).columns for cell in column.cells
    ]
