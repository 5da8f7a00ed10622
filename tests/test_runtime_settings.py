"""Which arguments of a run are refused, and what becomes of the others."""

import functools
import math
import types

import numpy as np
import optax
import pytest
from asynchronous_parts import RING, make_settings

import djax
from djax import asynchronous, communicators, topologies
from djax.asynchronous.runtime._policies import EdgeClocks, FirstFree, FixedOrder
from djax.asynchronous.simulator import OwnBatches

pytestmark = pytest.mark.usefixtures("as_users")

MPI = types.SimpleNamespace(host_comm=None, size=4)
"""As much of a communicator of four processes as is looked at before they speak."""


def start(
    batches=None,
    *,
    algorithm=None,
    communicator=MPI,
    topology=RING,
    gradients=100,
    **more,
):
    """Calls `run`, which looks at its batches after all other arguments.

    The default is no function, and is refused: nothing is ever computed.
    """
    return asynchronous.run(
        djax.adpsgd(optax.sgd(0.1)) if algorithm is None else algorithm,
        lambda params, state, batch: (params, state, {}),
        batches,
        communicator,
        topology,
        np.ones((1, 3), np.float32),
        gradients=gradients,
        **more,
    )


accepted = functools.partial(
    pytest.raises, TypeError, match="run: batches must be a function"
)
"""Asserts that `start` refused nothing but its default for the batches."""


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rate": -1}, "rate must be a finite number .* got -1"),
        ({"rate": np.eye(4)}, r"rate\[0, 0\] = 1.0 has no edge"),
        ({"pairing": "random"}, "pairing must be one of .*'first_free'.*got 'random'"),
        ({"transport": "udp"}, "transport must be one of .*'mpi', 'zmq'.* got 'udp'"),
        ({"random_times": False}, "random_times=False is for pairing="),
        (
            {"pairing": "first_free", "rate": asynchronous.edge_rates(RING)},
            '"first_free" takes one rate for all; a matrix is for "edge_clocks"',
        ),
        (
            {"pairing": "fixed_order", "rate": asynchronous.edge_rates(RING)},
            '"fixed_order" takes one rate',
        ),
        ({"gradients": None}, "give the number of gradients, or the seconds"),
        ({"gradients": 0}, "gradients must be a whole number from 1 on, got 0"),
        ({"gradients": 10.0}, "gradients must be a whole number from 1 on, got 10.0"),
        ({"seconds": 0}, "seconds must be a positive number, got 0"),
        ({"seconds": -1.5}, "seconds must be a positive number, got -1.5"),
        ({"seconds": math.inf}, "seconds must be a positive number, got inf"),
        ({"max_backlog": -1}, "max_backlog must be a whole number from 0 on, got -1"),
        ({"max_backlog": 0.5}, "max_backlog must be a whole number from 0 on, got 0.5"),
        ({"snapshots": 0}, "snapshots must be a whole number from 1 on, got 0"),
        ({"snapshots": 1.5}, "snapshots must be a whole number from 1 on"),
        ({"timeout": 0}, "timeout must be a positive number, got 0"),
        ({"timeout": math.nan}, "timeout must be a positive number, got nan"),
        ({"seed": -1}, "seed must be a whole number from 0 on, got -1"),
        ({"gradients": True}, "gradients must be a whole number from 1 on, got True"),
        ({"snapshots": None}, "snapshots must be a whole number from 1 on, got None"),
        ({"seconds": "3"}, "seconds must be a positive number, got '3'"),
        ({"seed": "a"}, "seed must be a whole number from 0 on, got 'a'"),
    ],
)
def test_impossible_settings_are_named(options, message):
    with pytest.raises((TypeError, ValueError), match=message):
        start(**options)


def test_a_schedule_is_no_setting():
    with pytest.raises(TypeError, match="a Schedule has no fixed neighbours"):
        asynchronous.edge_rates(topologies.one_peer_exponential(4), 1.0)


def test_the_least_settings_are_possible():
    least = {"seconds": 0.1, "max_backlog": 0, "snapshots": 1, "seed": np.int64(0)}
    with accepted():
        start(rate=0, gradients=None, **least)
    assert not asynchronous.edge_rates(RING, 0).any()


def test_the_share_is_of_whatever_ends_first():
    assert make_settings().share(25, 1e9) == 0.25
    assert make_settings(gradients=None, seconds=8.0).share(10**9, 2.0) == 0.25
    both = make_settings(seconds=8.0)
    assert (both.share(50, 1.0), both.share(25, 6.0)) == (0.5, 0.75)


def test_what_ranks_have_in_common():
    assert make_settings().common == make_settings(topologies.ring(4)).common
    # The same graph under another name.
    shapes = topologies.ring, topologies.complete
    ring, complete = (make_settings(make(3)).common for make in shapes)
    assert ring == complete
    for other in (
        make_settings(topologies.star(4)),
        make_settings(rate=2.0),
        make_settings(gradients=99),
        make_settings(seconds=3.0),
        make_settings(max_backlog=0),
        make_settings(pairing="first_free"),
        make_settings(snapshots=3),
        make_settings(transport="zmq"),
        make_settings(timeout=2.0),
        make_settings(seed=1),
    ):
        assert other.common != make_settings().common


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("edge_clocks", EdgeClocks),
        ("first_free", FirstFree),
        ("fixed_order", FixedOrder),
    ],
)
def test_pairings_are_of_the_neighbours(name, kind):
    topology = topologies.exponential(8)
    settings = make_settings(topology, pairing=name)
    for rank in range(8):
        pairing = settings.make_pairing(rank, np.random.default_rng(0))
        assert type(pairing) is kind and pairing.rank == rank
        assert sorted(pairing.neighbors) == sorted(topology.graph[rank])


def test_a_fixed_order_is_that_of_the_rounds():
    settings = make_settings(pairing="fixed_order")
    for rank in range(4):
        pairing = settings.make_pairing(rank, np.random.default_rng(0))
        assert pairing.neighbors == [r[rank] for r in RING.rounds if r[rank] != rank]


def test_participants_are_checked():
    acid = djax.acid(optax.sgd(0.1), djax.acid_constants(RING))
    with accepted():
        start(algorithm=acid)
    with pytest.raises(TypeError, match="asynchronous algorithm.* got Gradient"):
        start(algorithm=optax.sgd(0.1))
    with pytest.raises(TypeError, match="one process per worker.*simulated"):
        start(communicator=communicators.simulated(4))
    with pytest.raises(TypeError, match="run needs a Topology, .*no fixed neighbours"):
        start(topology=topologies.one_peer_exponential(4))
    with pytest.raises(ValueError, match="topology has 5 workers, .* started 4 ranks"):
        start(topology=topologies.ring(5))


@pytest.mark.parametrize(
    "options", [{"every": 0}, {"every": -1.0}, {"every": math.nan}, {"keep": 0}]
)
def test_impossible_checkpoints_are_named(options):
    with pytest.raises(ValueError, match="Checkpoints: every and keep must be pos"):
        asynchronous.Checkpoints("somewhere", **options)


def test_own_batches_are_taken_epoch_by_epoch():
    made = []

    def batches(epoch):
        made.append(epoch)
        return {"x": np.arange(6).reshape(1, 3, 2) + 6 * epoch, "y": np.ones((1, 3))}

    own = OwnBatches(batches)
    assert own.example["x"].tolist() == [0, 1] and own.example["y"] == 1
    for turn in [0, 1, 2, 3, 5, 6, 20]:
        data, step = own.locate(turn)
        np.testing.assert_array_equal(data["x"][0, step], [2 * turn, 2 * turn + 1])
    assert made == [0, 1, 2, 6]  # Each is made once, and one that is left out, never.


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"x": np.ones((2, 3))}, r"run: batches.*\['x'\].* shape \(2, 3\)"),
        ({"x": np.float32(1)}, r"shape \(\)"),
        ({"x": np.ones(1)}, r"two leading axes.*got \[\(\)\] steps"),
        ({"x": np.ones((1, 0))}, r"two leading axes.*got \[\(0,\)\] steps"),
        (
            {"x": np.ones((1, 3)), "y": np.ones((1, 2))},
            r"the same for all; got \[\(2,\), \(3,\)\] steps",
        ),
        ({}, r"two leading axes.*got \[\] steps"),
    ],
)
def test_batches_that_do_not_fit_are_named(made, message):
    with pytest.raises(ValueError, match=message):
        start(lambda epoch: made)


def test_epochs_have_the_same_number_of_steps():
    own = OwnBatches(lambda epoch: np.ones((1, 3 + epoch)))
    with pytest.raises(ValueError, match="epoch 1 has 4 steps, but epoch 0 has 3"):
        own.locate(3)
    with pytest.raises(TypeError, match="function from the number of an epoch.*ndarr"):
        start(np.ones((1, 3)))
