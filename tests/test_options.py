"""Every option of the command line is checked, and named where it is wrong."""

import dataclasses
import importlib
import re
import shlex

import numpy as np
import pytest

from experiments import train
from experiments.configs.powergossip import table_cifar10, table_wikitext2
from experiments.lib import config, errors, optimizers, ranges

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
        ("--outer noloco", False),
    ):
        run = train.Run(train.parse([*algorithm.split(), "--runs", "runs"]))
        run.folder.path.rmdir()
        assert ("--consensus-rate" in run._remedy()) == advised, algorithm
        outer = "or lower --outer-learning-rate." in run._remedy()
        assert outer == ("--outer" in algorithm)


def published_rate(epoch, first, factor, milestones):
    """The learning rate of the published code, `learning_rate_schedule` of train.py."""
    warm = 1 + (factor - 1) * min(epoch / 5, 1)
    return first * warm * 0.1 ** sum(epoch >= milestone for milestone in milestones)


@pytest.mark.parametrize(
    ("table", "epochs", "length", "first", "factors", "milestones"),
    [
        (
            table_cifar10.TABLE,
            *(300, 48, 0.1),
            [11.3, 11.3, 16, 11.3, 11.3, 4.8, 4, *4 * [11.3]],
            (150, 225),
        ),
        (
            table_wikitext2.TABLE,
            *(90, 64, 1.25),
            [*4 * [38], 28, *7 * [38]],
            (60, 80),
        ),
    ],
)
def test_powergossip_has_the_published_schedule(
    table, epochs, length, first, factors, milestones
):
    """A step has the learning rate of the time when it is over."""
    around = [m * length + offset for m in milestones for offset in (-2, -1, 0)]
    at = np.array([*range(0, epochs * length, 7), *around])
    for factor, row in zip(factors, table.rows, strict=True):
        assert row.config.epochs == epochs
        ours = optimizers.learning_rate_schedule(row.config.base, epochs * length)
        published = [
            published_rate((step + 1) / length, first, factor, milestones)
            for step in at
        ]
        assert float(ours(0)) > 1.002 * first  # And not `first` itself.
        np.testing.assert_allclose(ours(at), published, rtol=1e-5)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "--task sotu --task-options level character --no-check --algorithm d2_sgd",
        "--model-options hidden '(64, 32)' --optimizer-options momentum None",
        "--decay-at --collapse 20 0.11 --speeds 1 1 0.25 --max-backlog None",
        "--learning-rate 0.016666666666666666 --checkpoints folder --resume",
        "--topology matcha --topology-options base star budget 0.3 --overlap",
        "--outer diloco --outer-learning-rate 0.5 --no-outer-nesterov",
        "--algorithm prox_skip --probability 0.5 --chi 2 --coin-seed 3 --dual-rate 0.1",
        "--outer streaming_diloco --fragments 2 --delay 0 --blend 0.25",
    ],
)
def test_a_configuration_says_by_which_arguments_it_is_made(line):
    made = train.parse(shlex.split(line))
    assert train.parse(shlex.split(config.command_line(made))) == made
    assert config.command_line(train.parse([])) == ""


def test_options_are_read_as_values():
    options = ["a", "1", "b", "(2, 0.5)", "c", "None", "d", "word", "e", "'2'"]
    found = train.parse(["--task-options", *options]).task_options
    assert found == {"a": 1, "b": (2, 0.5), "c": None, "d": "word", "e": "2"}


def test_options_of_a_row_can_be_changed_at_the_command_line():
    (row, *_) = table_cifar10.TABLE.rows
    changed = train.parse(["--epochs", "7", "--no-rate-at-end"], row.config)
    assert changed == row.config.replace(epochs=7, rate_at_end=False)
    with pytest.raises(TypeError, match="epoch"):
        row.config.replace(epoch=7)


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
