"""Asynchronous runs do not go on from checkpoints of other runs."""

import jax.numpy as jnp
import optax
import pytest

import djax
from djax.asynchronous import Checkpoints
from djax.asynchronous.runtime._identity import identify
from djax.asynchronous.runtime._settings import Settings
from djax.training import Checkpointer, CheckpointError

RING = djax.topologies.ring(6)
ALONE = djax.communicators.simulated(1)


def identity(
    base=None, algorithm=None, topology=RING, size=3, model_state=(), **options
):
    base = base or optax.sgd(0.1, momentum=0.9)
    algorithm = algorithm or djax.acid(base, djax.acid_constants(RING))
    options = {"rate": 1.0, "pairing": "edge_clocks", "seed": 0} | options
    settings = Settings(
        topology,
        gradients=10,
        seconds=None,
        random_times=True,
        max_backlog=None,
        snapshots=1,
        keep_snapshots=False,
        transport="mpi",
        timeout=1.0,
        **options,
    )
    return identify(algorithm, settings, jnp.zeros(size), model_state)


def resume(folder, found, **options):
    options = Checkpoints(folder, resume=True, **options)
    Checkpointer(options, ALONE, found, together=False).close()


@pytest.fixture
def saved(tmp_path, as_users):
    folder = tmp_path / "saved"
    mine = Checkpointer(Checkpoints(folder), ALONE, identity(), together=False)
    mine.save(5, [jnp.zeros(3)])
    mine.close()
    return folder


OTHERS = {
    "the algorithm": lambda: identity(algorithm=djax.adpsgd(optax.sgd(0.1))),
    "the optimizer's state": lambda: identity(optax.adam(0.1)),
    "the algorithm's constants": lambda: identity(
        algorithm=djax.acid(
            optax.sgd(0.1, momentum=0.9), djax.acid_constants(RING, 4.0)
        )
    ),
    "the graph and rates": lambda: identity(topology=djax.topologies.complete(6)),
    "params": lambda: identity(size=4),
    "pairing": lambda: identity(pairing="first_free"),
    "seed": lambda: identity(seed=1),
}


@pytest.mark.parametrize("what", OTHERS)
def test_a_run_that_differs_is_refused_by_name(what, saved):
    with pytest.raises(CheckpointError) as caught:
        resume(saved, OTHERS[what]())
    error = str(caught.value)
    assert f"of a run with {what} " in error and "choose another folder" in error
    assert "\n" not in error


def test_other_rates_and_model_states_are_refused(saved):
    with pytest.raises(CheckpointError, match="the graph and rates"):
        resume(saved, identity(rate=2.0))
    with pytest.raises(CheckpointError, match="run with params"):
        resume(saved, identity(model_state=jnp.zeros(2)))


def test_what_the_caller_names_is_compared_too(saved):
    with pytest.raises(CheckpointError, match="a run with the data None"):
        resume(saved, identity(), identity={"the data": "mine"})


def test_the_same_run_goes_on(saved):
    resume(saved, identity())
    assert identity() == identity(optax.sgd(0.1, momentum=0.9))
