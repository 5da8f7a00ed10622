"""Every option of the command line is checked, and named where it is wrong."""

import dataclasses
import importlib
import re
import shlex

import numpy as np
import pytest

from experiments import train
from experiments.lib import config, errors, optimizers, ranges
from experiments.powergossip import settings, table_cifar10, table_wikitext2

pytestmark = pytest.mark.usefixtures("as_users")


def numeric_fields(kind=config.Config):
    """Names and types of all options that are numbers, the parts' included."""
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(field.type):
            yield from numeric_fields(field.type)
        elif re.search(r"\b(int|float)\b", str(field.type)):
            yield field.name, str(field.type)


FIELDS = dict(numeric_fields())


def test_every_number_has_a_range():
    assert FIELDS.keys() == ranges.RANGES.keys()


VALID = train.parse([])


def replaced(name, value):
    """The defaults with another value of an option."""
    if name in {field.name for field in dataclasses.fields(config.Config)}:
        return dataclasses.replace(VALID, **{name: value})
    for field in dataclasses.fields(config.Config):
        part = getattr(VALID, field.name)
        if dataclasses.is_dataclass(part) and hasattr(part, name):
            changed = dataclasses.replace(part, **{name: value})
            return dataclasses.replace(VALID, **{field.name: changed})
    raise LookupError(name)


def wrong(name, kind):
    """What the option must refuse."""
    allowed = ranges.RANGES[name]
    values = [] if "int" in kind else ["nan", "inf", "-inf"]
    if np.isfinite(allowed.least):
        step = "-1" if "int" in kind else "-0.5"
        values += [str(int(allowed.least) + int(step)) if "int" in kind else step]
        values += ["0"] if allowed.open_below or allowed.least > 0 else []
    if np.isfinite(allowed.most):
        values += [str(int(allowed.most) + 1)]
        values += [str(int(allowed.most))] if allowed.open_above else []
    return values


@pytest.mark.parametrize(
    ("name", "value"),
    [(name, value) for name, kind in FIELDS.items() for value in wrong(name, kind)],
)
def test_a_number_out_of_range_is_blamed_on_its_option(name, value):
    number = int(value) if "int" in FIELDS[name] else float(value)
    if "tuple" in FIELDS[name]:
        number = (1.0, number)
    with pytest.raises(errors.UsageError) as caught:
        ranges.check(replaced(name, number))
    error = str(caught.value)
    assert error.startswith(f"{ranges.flag(name)} ") and "must be" in error


@pytest.mark.parametrize("name", [n for n, kind in FIELDS.items() if "int" in kind])
def test_a_truth_value_or_a_fraction_is_no_integer(name):
    for value in (True, 1.5, "2"):
        with pytest.raises(errors.UsageError, match=ranges.flag(name)):
            ranges.check(replaced(name, value))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--weight-decay nan", "--weight-decay nan must be a finite number"),
        ("--decay-factor nan", "--decay-factor nan must be in (0, 1]"),
        ("--speeds 1 1 1 inf", "--speeds inf: speeds must be positive and finite"),
        ("--algorithm acid", "Did you mean a2cid2?"),
        ("--algorithm dpsdg", "Did you mean dpsgd?"),
        ("--topology rign", "Did you mean ring?"),
        ("--task digit", "Did you mean digits?"),
        ("--optimizer sdg", "Did you mean sgd?"),
        ("--model resnet", "Did you mean resnet"),
        ("--split dirchlet:1", "Did you mean dirichlet?"),
        ("--split dirichlet", "shards:2, reshuffled or whole"),
        ("--split whole:2", "cannot read --split 'whole:2'"),
        ("--split rong", "dirichlet, iid, reshuffled, shards, whole"),
        ("--split dirichlet:inf", "use --split iid"),
        ("--split dirichlet:1e300", "use --split iid"),
        ("--split dirichlet:nan", "alpha must be positive"),
        ("--model vgg11", "needs 32 pixels a side, but those of --task digits have 8"),
        ("--decay-at 0.75 0.5", "--decay-at 0.75 0.5 must be in ascending order"),
        ("--decay-factor 0", "--decay-factor 0.0 must be in (0, 1]"),
        ("--collapse 3 1.5", "an accuracy is in [0, 1]"),
        ("--collapse -3 0.5", "must be an epoch, at least 0"),
        ("--weights nan", "--weights nan: "),
        ("--weights 0", "--weights 0: "),
        ("--algorithm a2cid2 --rate 0", "needs a positive --rate"),
        ("--algorithm relay_sgd", "choose --topology chain"),
        ("--algorithm relay_sgd_grad --topology torus", "torus has cycles"),
        ("--optimizer-options nesterov 3", "nesterov=3 must be True or False"),
        ("--optimizer adam --optimizer-options b1 True", "b1=True must be a number"),
        ("--optimizer adam --optimizer-options b1 1e999", "must be a finite number"),
        ("--task quadratics --task-options dim True", "dim=True must be an integer"),
    ],
)
def test_the_remedy_is_an_option(options, message, tmp_path, capfd):
    with pytest.raises(SystemExit) as stop:
        train.main([*options.split(), "--runs", str(tmp_path)])
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    assert message in error and "topologies." not in error


def test_a_divergence_advises_only_options_that_the_algorithm_has():
    for algorithm, advised in (
        ("--algorithm adpsgd", False),
        ("--algorithm relay_sgd --topology chain", False),
        ("--algorithm all_reduce_sgd", False),
        ("--consensus-rate 0.5", False),
        ("--consensus-rate 1.3", True),
        ("--algorithm moniqua --consensus-rate 0.1", True),
    ):
        run = train.Run(train.parse([*algorithm.split(), "--runs", "runs"]))
        run.folder.path.rmdir()
        assert ("--consensus-rate" in run._remedy()) == advised, algorithm


@pytest.mark.parametrize(
    ("configuration", "table", "length"),
    [
        (settings.CIFAR10, table_cifar10.TABLE, 48),
        (settings.WIKITEXT2, table_wikitext2.TABLE, 64),
    ],
)
def test_powergossip_has_one_schedule(configuration, table, length):
    """The published one: a step has the learning rate of the time when it is over."""
    steps = configuration.epochs * length
    for method, row in zip(configuration.methods, table.rows, strict=True):
        line = f"{table.arguments} --learning-rate {row.learning_rate}"
        base = train.parse(shlex.split(line)).base
        commands = optimizers.learning_rate_schedule(base, steps)
        ours = settings.learning_rate(configuration, method, length)
        at = np.arange(0, steps, 7)
        first, growth = configuration.learning_rate, method.factor - 1
        warmup = configuration.warmup_epochs * length
        assert float(ours(0)) == pytest.approx(first * (1 + growth / warmup))
        np.testing.assert_allclose(commands(at), ours(at), rtol=1e-5)
        for milestone in configuration.milestones:
            last = milestone * length - 1
            assert ours(last) == pytest.approx(0.1 * ours(last - 1))


def test_a_decay_can_be_spread():
    base = optimizers.BaseOptimizer(
        learning_rate=1.0, warmup=0.0, decay_at=(0.5, 0.8), decay_over=0.1
    )
    schedule = optimizers.learning_rate_schedule(base, 100)
    rates = [float(schedule(step)) for step in (49, 50, 55, 60, 79, 85, 95)]
    expected = [1, 1, 10**-0.5, 0.1, 0.1, 10**-1.5, 0.01]
    np.testing.assert_allclose(rates, expected, rtol=1e-5)


def test_nothing_is_drawn_of_nothing(tmp_path, capfd):
    module = importlib.import_module("experiments.powergossip.table_sotu")
    with pytest.raises(SystemExit) as stop:
        module.main(["--draw", "--output", str(tmp_path)])
    assert stop.value.code == 2
    assert capfd.readouterr().err.startswith("error: --draw: there are no runs in ")
    assert list(tmp_path.iterdir()) == []


def test_a_smoke_test_says_so(tmp_path, capsys):
    module = importlib.import_module("experiments.relaysgd.fig5_topology_constant")
    module.main(["--smoke", "--output", str(tmp_path)])
    assert "smoke test" in " ".join(capsys.readouterr().out.split())
