"""Numbers that would spoil a run are refused before it starts, as options."""

import dataclasses
import inspect

import pytest

import djax
from experiments import train
from experiments.lib import algorithms, errors, optimizers, options, ranges

pytestmark = pytest.mark.usefixtures("as_users")


def refusal(line, tmp_path, capfd):
    """What a command line ends with."""
    with pytest.raises(SystemExit) as stop:
        train.main([*line.split(), "--runs", str(tmp_path / "runs")])
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    assert not (tmp_path / "runs").exists()
    return error


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--optimizer-options momentum 2", "of sgd: momentum=2 must be in [0, 1)."),
        ("--optimizer-options momentum -1", "of sgd: momentum=-1 must be in [0, 1)."),
        ("--optimizer-options momentum True", "momentum=True must be "),
        ("--optimizer adam --optimizer-options b1 2", "of adam: b1=2 must be in"),
        ("--optimizer adam --optimizer-options b2 1.0", "of adam: b2=1.0 must be in"),
        ("--optimizer adam --optimizer-options eps 0", "eps=0 must be positive"),
        ("--optimizer lars --optimizer-options eps -1", "eps=-1 must be a finite"),
        ("--optimizer rmsprop --optimizer-options decay 5", "decay=5 must be in"),
        (
            "--algorithm quasi_global_momentum --optimizer-options momentum 2",
            "momentum=2 must be in [0, 1).",
        ),
        ("--task quadratics --task-options noise -1", "noise=-1 must be a finite"),
        ("--task quadratics --task-options dim 0", "dim=0 must be at least 1."),
        ("--task quadratics --task-options steps_per_epoch 0", "epoch=0 must be at"),
        ("--task quadratics --task-options smallest 2", "smallest=2 must be in (0, 1]"),
        ("--decay-at 0.5 0.5", "--decay-at 0.5 0.5 must be in ascending order, no"),
        (
            "--decay-at 0.5 0.6 --decay-over 0.5",
            "--decay-over 0.5 makes the decays of --decay-at 0.5 0.6 overlap: it must "
            "be at most 0.1.",
        ),
        ("--epochs 99999999999999999999", "--epochs 99999999999999999999 of "),
        (f"--epochs 1{400 * '0'}", "lower --epochs or --steps-per-epoch."),
        ("--epochs 1000000000", "can count up to 2147483647 steps together"),
        ("--topology social_network", "has 32 workers, not 4: use --workers 32"),
        ("--communicator mesh --workers 99", "or use --communicator simulated."),
        (
            "--communicator mesh --workers 99 --drop-probability 0.1",
            "or use --communicator simulated.",
        ),
        (
            "--drop-probability 0.2 --algorithm d2_sgd",
            "leave --drop-probability away, or choose --algorithm dpsgd, ",
        ),
        (
            "--drop-probability 0.2 --algorithm choco_sgd --consensus-rate 0.1",
            "leave --drop-probability away, or choose --algorithm dpsgd, ",
        ),
        ("--algorithm d2_sgd --weights 0.45", "Use --weights lazy, or"),
        ("--algorithm a2cid2 --variation 11", "error: --variation must be 0, for"),
        ("--algorithm a2cid2 --rate 1e9", "lower --rate, --speeds or --epochs"),
        ("--topology torus --workers 7", "choose other numbers, or --topology ring"),
        ("--consensus-rate 3", "error: --consensus-rate must be below 1.5"),
    ],
)
def test_the_option_is_named(line, message, tmp_path, capfd):
    error = refusal(line, tmp_path, capfd)
    assert message in error
    assert not any(x in error for x in ("communicators.", "drop_prob", "weights="))


@pytest.mark.parametrize(
    ("optimizer", "given"),
    [
        ("sgd", {"momentum": None}),
        ("sgd", {"momentum": 0}),
        ("adam", {"b1": 0, "eps": 1e-12}),
        ("lars", {"eps": 0}),
    ],
)
def test_numbers_in_range_pass(optimizer, given):
    base = optimizers.BaseOptimizer(optimizer=optimizer, optimizer_options=given)
    optimizers.make_base(base, 10)


def test_decays_may_touch():
    base = optimizers.BaseOptimizer(decay_at=(0.5, 0.6), decay_over=0.1)
    optimizers.learning_rate_schedule(base, 100)


@pytest.mark.parametrize(
    ("name", "given", "same"),
    [
        ("quantize", {"bucket_size": 256}, djax.compressors.quantize),
        ("low_rank", {"rows_axis": 0}, djax.compressors.low_rank),
        ("random_k", {"rank": 1}, djax.compressors.random_k),
        ("top_k", {"rank": 1}, djax.compressors.top_k),
    ],
)
def test_one_option_of_a_compressor_leaves_the_others(name, given, same, monkeypatch):
    called = {}

    def make(*args, **options):
        called.update(options)
        return same(*args, **options)

    make.__signature__ = inspect.signature(same)
    monkeypatch.setattr(djax.compressors, name, make)
    config = algorithms.Algorithm(
        algorithm="choco_sgd",
        consensus_rate=0.1,
        compressor=name,
        compressor_options=given,
    )
    base = optimizers.BaseOptimizer()
    ring, communicator = djax.topologies.ring(4), djax.communicators.simulated(4)
    algorithms.make_optimizer(config, base, 10, [ring], communicator)
    assert set(given) <= called.keys()
    assert called.get("bits", 8) == 8 and called.get("rank", 1) == 1
    assert ("bits" in called) == (name == "quantize") and "fraction" not in called


def test_only_what_djax_advises_is_said_anew():
    with pytest.raises(KeyError), options.said_as_options():
        raise KeyError("x")
    with pytest.raises(errors.UsageError, match="--weights 1: use --weights lazy"):
        with options.said_as_options():
            raise errors.UsageError("--weights 1: use weights='lazy'")


def test_ranges_take_integers_of_any_length():
    assert ranges.AT_LEAST_ONE.has(10**400)
    epochs = dataclasses.replace(train.parse([]), epochs=10**400)
    ranges.check(epochs)
