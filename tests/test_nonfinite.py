"""A worker whose numbers are not finite does not spoil a run unnoticed."""

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import each_way
from launch import mpirun

import djax
from djax import communicators, simulation, topologies
from experiments.lib import synchronous, trainer

SIZE, STEPS, CULPRIT, WHEN = 8, 6, 3, 2


def gradient_fn(x, model_state, target):
    """The gradient of a distance; the state counts the gradients."""
    return x - target, model_state + 1.0, {"loss": 0.5 * (x - target) ** 2}


def start(make, dispatch, *, optimizer=None, gradient_fn=gradient_fn, **options):
    communicator = make(SIZE)
    ring = topologies.ring(SIZE)
    if optimizer is None:
        optimizer = djax.dpsgd(0.1, ring, communicator)
    elif callable(optimizer):
        optimizer = optimizer(communicator)
    x = communicators.replicate(communicator, jnp.float32(0))
    counts = communicators.replicate(communicator, jnp.float32(0))
    workers = simulation.init_workers(optimizer, communicator, x, counts)
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, dispatch=dispatch, **options
    )
    return workers, steps


def targets(bad=float("nan"), where=((CULPRIT, WHEN),)):
    """Worker i's target is i, but for some that are spoilt."""
    values = np.tile(np.arange(SIZE, dtype=np.float32)[:, None], STEPS)
    for worker, step in where:
        values[worker, step] = bad
    return values


@each_way
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_the_culprit_is_named_and_not_whom_it_infected(make, dispatch, bad):
    workers, steps = start(make, dispatch)
    workers, _ = steps(workers, targets(where=()))
    message = rf"gradient of worker {CULPRIT} .*step {WHEN + 1} of the {STEPS} "
    with pytest.raises(FloatingPointError, match=message) as caught:
        steps(workers, targets(bad))
    error = caught.value
    assert isinstance(error, simulation.NonFiniteError)
    assert (error.ranks, error.step) == ((CULPRIT,), WHEN)
    assert "nonfinite='skip'" in str(error)
    # What the call computed is not lost with the workers that it was given.
    assert not np.isfinite(error.workers.params).all()
    assert error.metrics["loss"].shape == (SIZE, STEPS)


@each_way
def test_all_culprits_of_the_first_step_are_named(make, dispatch):
    workers, steps = start(make, dispatch)
    where = ((1, 4), (6, 4), (0, 5))
    with pytest.raises(FloatingPointError, match="workers 1, 6 ") as caught:
        steps(workers, targets(where=where))
    assert (caught.value.ranks, caught.value.step) == ((1, 6), 4)


@each_way
def test_parameters_that_the_optimizer_spoils_are_named(make, dispatch):
    """The gradient is finite, and the step along it is not."""

    def optimizer(_):
        return optax.sgd(lambda step: jnp.where(step == WHEN, jnp.inf, 0.1))

    workers, steps = start(make, dispatch, optimizer=optimizer)
    match = rf"parameters of workers .* after step {WHEN + 1} of"
    with pytest.raises(FloatingPointError, match=match) as caught:
        steps(workers, targets(where=()))
    assert caught.value.step == WHEN


@each_way
def test_parameters_that_are_spoilt_beforehand_are_named(make, dispatch):
    workers, steps = start(make, dispatch)
    params = workers.params.at[CULPRIT].set(jnp.nan)
    match = f"parameters of worker {CULPRIT} were not finite before the first step"
    with pytest.raises(FloatingPointError, match=match) as caught:
        steps(workers._replace(params=params), targets(where=()))
    assert (caught.value.ranks, caught.value.step) == ((CULPRIT,), None)


@each_way
def test_finite_runs_are_the_same_whatever_is_asked(make, dispatch):
    results = []
    for nonfinite in ("raise", "skip", "isolate"):
        workers, steps = start(make, dispatch, nonfinite=nonfinite)
        for _ in range(2):
            workers, metrics = steps(workers, targets(where=()))
        results.append((workers, metrics))
    for other in results[1:]:
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), results[0], other
        )


@each_way
def test_skipping_leaves_out_the_workers_own_step_alone(make, dispatch):
    workers, steps = start(make, dispatch, nonfinite="skip")
    workers, metrics = steps(workers, targets())
    mixing = topologies.ring(SIZE).mixing_matrix
    x, counts = np.zeros(SIZE), np.zeros(SIZE)
    for t in range(STEPS):
        own = np.ones(SIZE)
        own[CULPRIT] = t != WHEN
        x = mixing @ (x - 0.1 * own * (x - np.arange(SIZE)))
        counts += own
    np.testing.assert_allclose(workers.params, x, rtol=1e-5)
    np.testing.assert_array_equal(workers.model_state, counts)
    lost = np.isnan(metrics["loss"])  # What was measured stays visible.
    assert lost[CULPRIT, WHEN] and lost.sum() == 1


def test_skipping_keeps_keys_and_counters_in_the_model_state():
    def gradient_fn(x, state, target):
        key, count = state
        new = jax.random.split(key, 1)[0], count + 1
        return x - target, new, {}

    communicator = communicators.simulated(SIZE)
    optimizer = djax.all_reduce_sgd(0.1, communicator)
    state = communicators.replicate(communicator, (jax.random.key(0), jnp.int32(0)))
    workers = simulation.init_workers(optimizer, communicator, jnp.zeros(SIZE), state)
    steps = simulation.make_steps(
        gradient_fn, optimizer, communicator, nonfinite="skip"
    )
    workers, _ = steps(workers, targets())
    expected = np.full(SIZE, STEPS)
    expected[CULPRIT] -= 1
    np.testing.assert_array_equal(workers.model_state[1], expected)
    assert np.isfinite(workers.params).all()


@each_way
@pytest.mark.parametrize(
    "optimizer",
    [
        lambda c: djax.all_reduce_sgd(0.1, c),
        lambda c: optax.chain(
            optax.sgd(0.1), djax.d2(djax.every(2, djax.all_reduce(c)))
        ),
    ],
)
def test_isolation_needs_mechanisms_that_spare_a_message(make, dispatch, optimizer):
    """It is refused before anything is computed: the workers can be used again."""
    workers, steps = start(make, dispatch, optimizer=optimizer, nonfinite="isolate")
    with pytest.raises(ValueError, match="isolate.*needs every message"):
        steps(workers, targets())
    assert not workers.params.is_deleted()
    _, others = start(make, dispatch, optimizer=optimizer, nonfinite="raise")
    others(workers, targets(where=()))


@pytest.mark.parametrize("nonfinite", ["ignore", None, True])
def test_other_answers_are_refused(nonfinite):
    with pytest.raises(ValueError, match="nonfinite must be one of 'raise'"):
        start(communicators.simulated, False, nonfinite=nonfinite)


def test_sixteen_bits_overflow_like_others():
    """Squares of 300 are infinite in float16."""

    def gradient_fn(x, model_state, batch):
        return (x + batch) ** 2, model_state, {}

    communicator = communicators.simulated(2)
    optimizer = djax.all_reduce_sgd(1e-3, communicator)
    x = jnp.zeros((2, 3), jnp.float16)
    steps = simulation.make_steps(gradient_fn, optimizer, communicator)
    workers = simulation.init_workers(optimizer, communicator, x)
    batches = jnp.ones((2, 3, 3), jnp.float16).at[1, 1, 2].set(300)
    with pytest.raises(FloatingPointError, match="gradient of worker 1 .*step 2 of"):
        steps(workers, batches)


OVER_MPI = """
import jax.numpy as jnp, numpy as np, sys
import djax
from djax import communicators, simulation, topologies

MPI = communicators.mpi()
(rank,) = MPI.local_ranks

def gradient_fn(x, model_state, target):
    return x - target, model_state, {}

targets = np.full((1, 5), float(rank), np.float32)
targets[0, 2] = np.nan if rank == 1 else rank
for dispatch in (False, True):
    optimizer = djax.dpsgd(0.1, topologies.ring(MPI.size), MPI)
    def train(nonfinite):
        x = communicators.replicate(MPI, jnp.float32(0))
        workers = simulation.init_workers(optimizer, MPI, x)
        steps = simulation.make_steps(
            gradient_fn, optimizer, MPI, dispatch=dispatch, nonfinite=nonfinite
        )
        return steps(workers, targets)[0].params
    assert np.isfinite(train("skip")).all()
    try:
        train("raise")
    except djax.simulation.NonFiniteError as error:
        assert (error.ranks, error.step) == ((1,), 2), error.ranks
        assert "gradient of worker 1 " in str(error)
    else:
        raise AssertionError("nothing was noticed")
assert djax.communicators.mpi().gather([rank]) == list(range(MPI.size))
print("alike", flush=True)
"""


@pytest.mark.xdist_group("mpi")
def test_all_ranks_raise_alike():
    result = mpirun(3, "-c", OVER_MPI, timeout=200)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("alike") == 3


def test_a_command_speaks_of_its_options(as_users):
    """Also where no loss, but a gradient is not finite."""

    class Task(NamedTuple):
        gradient_fn: Callable
        steps_per_epoch: int = STEPS
        model_state: tuple = ()
        dispatch: bool = False

        def evaluate(self, params, model_state, batch):
            raise AssertionError("a diverged model needs no score")

        def batches(self, first, last):
            return targets()[:, first:last]

    def with_loss(measure):
        def gradient_fn(x, model_state, target):
            return x - target, model_state, {"loss": measure(x, target)}

        communicator = communicators.simulated(SIZE)
        optimizer = djax.all_reduce_sgd(0.1, communicator)
        params = jnp.zeros(SIZE)
        cost = djax.communication_cost(optimizer, params[0], communicator)
        job = synchronous.Synchronous(
            Task(gradient_fn), communicator, params, optimizer, optimizer, 1, cost
        )
        list(job.train(1, lambda epochs: None))

    with pytest.raises(trainer.Diverged, match=f"worker {CULPRIT}'s loss is nan"):
        with_loss(lambda x, target: (x - target) ** 2)
    with pytest.raises(trainer.Diverged, match=f"model of worker {CULPRIT} is not fin"):
        with_loss(lambda x, target: jnp.float32(1))
