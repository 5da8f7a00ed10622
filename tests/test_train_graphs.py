"""Graphs that change, narrow messages and bursts of losses at the command line."""

import json
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from djax import topologies
from experiments import train
from experiments.lib import config, errors, graphs

pytestmark = pytest.mark.usefixtures("as_users")

QUICK = "--task quadratics --epochs 1 --evaluations 1"
DRAWN = "--topology random_matchings --topology-options period 100 seed 1"


def run(options, tmp_path):
    """The last record of a short training."""
    line = f"{QUICK} {options} --runs {tmp_path}"
    (record,) = train.main(line.split()).history
    return record


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        "--topology equi_dyn --topology-options eta 0.7 directed True --local-steps 2",
        f"--algorithm d2_sgd {DRAWN}",
        "--algorithm d2_sgd --topology base_graph --no-check",
        "--algorithm exact_diffusion --topology base_graph",
        "--algorithm gradient_tracking_sgd --topology one_peer_exponential",
        "--algorithm quasi_global_momentum --topology hyper_hypercube --overlap",
        "--algorithm quasi_global_adam --optimizer adam --learning-rate 1 --topology "
        "equi_dyn",
        "--algorithm power_gossip --topology simple_base_graph --workers 5",
        "--algorithm deep_squeeze --consensus-rate 0.1 --topology matcha "
        "--topology-options base star budget 0.5 period 20",
        "--algorithm moniqua --consensus-rate 0.1 --theta 20 "
        "--topology one_peer_hypercube",
        "--algorithm sgp --topology base_graph --topology-options max_degree 2",
        "--algorithm choco_sgd --consensus-rate 0.1 --topology torus "
        "--topology-options rows 2 --weights best_constant",
    ],
)
def test_narrow_messages_along_graphs(options, tmp_path, unseen):
    record = run(f"{options} --message-dtype bfloat16", tmp_path)
    assert record["mean"] < 25  # About 50 at the start.
    (folder,) = tmp_path.iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["sent_per_worker"]["megabytes_mean"] > 0


def test_a_run_says_how_little_it_sends(tmp_path):
    """Ten numbers in each step, to one neighbour or to two."""
    for options, size in (
        ("", 80),
        ("--topology base_graph", 40),
        ("--topology base_graph --message-dtype float16", 20),
        ("--topology base_graph --message-dtype float8_e5m2 --rounding-seed 1", 10),
    ):
        made = train.Run(train.parse(f"{QUICK} {options} --runs {tmp_path}".split()))
        assert made.job.cost.mean_bytes == size


@pytest.mark.slow
def test_sgp_takes_the_graph_that_changes(tmp_path, unseen):
    lines = ("sgp", "sgp --topology one_peer_exponential", "sgp --topology base_graph")
    lines += ("dpsgd --topology base_graph",)
    ours, same, other, gossip = (
        run(f"--algorithm {line}", tmp_path)["scores"] for line in lines
    )
    assert ours == same != other
    np.testing.assert_allclose(other, gossip, rtol=1e-5)


def test_bursts_last_as_long_as_asked():
    options = "--drop-probability 0.2 --drop-bursts 5"
    lossy = config.make_communicator(train.parse(options.split()))
    assert lossy.drop_probability == pytest.approx(0.2)

    def worker(rank):
        def arrived(step):
            return lossy.arrived((1, 2, 3, 0), jax.random.key(rank), step=step)

        return jax.lax.map(arrived, jnp.arange(3000))

    lost = ~np.asarray(jax.jit(lossy.spmd(worker))(jnp.arange(4)))
    assert lost.mean() == pytest.approx(0.2, abs=0.04)
    bursts = (lost[:, 1:] & ~lost[:, :-1]).sum()
    assert lost.sum() / bursts == pytest.approx(5, rel=0.1)


def test_the_shortest_bursts_are_no_bursts():
    options = "--drop-probability 0.6 --drop-bursts 2.5"
    model = config.make_communicator(train.parse(options.split())).drops.model
    assert model.to_bad == pytest.approx(0.6) and model.to_good == pytest.approx(0.4)


def test_the_help_names_every_graph_that_can_be_built(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--help"])
    said = re.findall(r"\w+", capsys.readouterr().out)
    for name in graphs.NAMES:
        assert name in said
        options = {"degree": 4} if name == "equi_static" else {}
        built = graphs.make_graphs(name, 32, options)
        assert len(built) == (2 if name == "double_binary_trees" else 1)
        assert all(graph.size == 32 for graph in built)


@pytest.mark.parametrize(
    ("name", "options", "weights", "same"),
    [
        ("torus", {"rows": 2}, "metropolis", topologies.torus(8, 2)),
        ("star", {}, "fastest", topologies.star(8, weights="fastest")),
        ("regular_tree", {"degree": 4}, "0.1", topologies.regular_tree(8, 4)),
        ("base_graph", {"max_degree": 2}, "metropolis", topologies.base_graph(8, 2)),
        (
            "matcha",
            {"base": "star", "budget": 0.3, "period": 40, "seed": 2},
            "metropolis",
            topologies.matcha(topologies.star(8), 0.3, period=40, seed=2),
        ),
    ],
)
def test_options_reach_the_builder(name, options, weights, same):
    (built,) = graphs.make_graphs(name, 8, options, weights)
    if weights == "0.1":
        assert built.edges == same.edges and built.mixing_matrix[0, 1] == 0.1
    else:
        assert built == same


def test_runs_along_other_graphs_or_messages_are_told_apart():
    def identity(options):
        found = train.parse(options.split())
        between = graphs.make_graphs(
            found.topology, 4, found.topology_options, found.weights
        )
        return config.identify(found, between)

    lines = ["", "--topology base_graph", DRAWN, f"{DRAWN[:-1]}2"]
    lines += ["--topology matcha", "--message-dtype bfloat16", "--drop-bursts 3"]
    lines += ["--message-dtype bfloat16 --rounding-seed 0"]
    found = [identity(line) for line in lines]
    assert all(a != b for i, a in enumerate(found) for b in found[:i])
    assert len({entry["the graph"] for entry in found}) == 5
    assert identity(DRAWN) == found[2]
    in_other_order = "--topology random_matchings --topology-options seed 1 period 100"
    assert identity(in_other_order) == found[2]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--topology base_grph", "Did you mean base_graph?"),
        ("--topology equi_static", "as in --topology equi_static --topology-options"),
        ("--topology torus --topology-options rows 3", "--topology-options rows 3: to"),
        ("--topology torus --topology-options row 2", "choose from rows. Did you mean"),
        ("--topology ring --topology-options weights lazy", "of ring: there are none"),
        (
            "--topology base_graph --topology-options max_degree x",
            "cannot read max_deg",
        ),
        (
            "--topology equi_dyn --topology-options eta 2",
            "eta 2: equi_dyn: eta must be",
        ),
        ("--topology equi_dyn --topology-options directed 1", "must be True or False"),
        (
            "--topology hyper_hypercube --workers 6",
            "--topology base_graph --topology-options max_degree 1 takes any number",
        ),
        ("--topology random_matchings --topology-options period 1", "a longer period"),
        (
            "--topology matcha --topology-options base matcha",
            "of matcha, base 'matcha'",
        ),
        ("--topology matcha --topology-options budget 0", "budget must be in (0, 1]"),
        (
            "--topology base_graph --weights lazy",
            "--weights lazy: --topology base_graph has weights of its own. Leave",
        ),
        ("--topology matcha --weights 0.2", "has weights of its own"),
        (
            "--algorithm relay_sgd --topology base_graph",
            "choose --topology chain, star",
        ),
        (
            "--algorithm power_gossip --topology one_peer_exponential",
            "needs messages that go both ways, which those of --topology one_peer_exp",
        ),
        *(
            (
                f"--algorithm {name} --topology base_graph",
                f"--algorithm {name} needs an undirected graph that does not change "
                "with time, which --topology base_graph is not here: choose one such "
                "as --topology ring, ",
            )
            for name in ("choco_sgd", "dcd_psgd", "ecd_psgd", "a2cid2", "adpsgd")
        ),
        (
            "--algorithm d2_sgd --topology base_graph",
            "D² diverges over this --topology: in each period the differences between "
            "the workers, which have to shrink, are multiplied by 1. Choose "
            "--algorithm gradient_tracking_sgd, or d2_sgd with a smaller "
            "--consensus-rate or --no-check, or a --topology that does not change with "
            "time.",
        ),
        ("--algorithm exact_diffusion --workers 33 --topology base_graph", "or --no-"),
        ("--algorithm a2cid2 --message-dtype float16", "no option --message-dtype: "),
        ("--algorithm adpsgd --rounding-seed 1", "no option --rounding-seed: "),
        ("--algorithm adpsgd --weights fastest", "no option --weights: neighbours"),
        ("--algorithm all_reduce_sgd --message-dtype float16", "has no option --mess"),
        ("--rounding-seed 1", "rounds nothing without a --message-dtype"),
        ("--drop-bursts 5", "--drop-bursts 5 needs a --drop-probability"),
        (
            "--drop-bursts 1.5 --drop-probability 0.5",
            "--drop-bursts 1.5 is too short for --drop-probability 0.5: it must be at "
            "least 2, ",
        ),
        ("--drop-bursts 0.5", "--drop-bursts 0.5 must be at least 1."),
    ],
)
def test_mistakes_end_in_one_line(options, message, tmp_path, capfd):
    line = f"--task quadratics {options} --runs {tmp_path}"
    with pytest.raises(SystemExit) as stop:
        train.main(line.split())
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert stop.value.code == 2 and error.startswith("error: ")
    assert message in error
    assert not any(x in error for x in ("Schedule", "weights=", "consensus_rate"))


def test_a_dtype_that_is_none_is_refused(capsys):
    with pytest.raises(SystemExit):
        train.parse(["--message-dtype", "int8"])
    assert "bfloat16" in capsys.readouterr().err


def test_a_graph_has_one_digest():
    base = topologies.base_graph(4)
    assert graphs.digest(base) == graphs.digest(topologies.base_graph(4))
    assert graphs.digest(base) != graphs.digest(topologies.base_graph(4, 3))
    with pytest.raises(errors.UsageError, match="--topology 'rong'"):
        graphs.make_graphs("rong", 4, {})
