"""Virtual clocks, and the simulator against a loop over single events in NumPy."""

from pathlib import Path

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import references

import djax
from djax import asynchronous, communicators, topologies
from djax.asynchronous import Events, draw_events, draw_rounds, simulate
from djax.asynchronous.simulator._waves import capacities, level

GOLDEN = np.load(Path(__file__).parent / "golden" / "acid_events_n16.npz")
GRAPHS = {
    "ring": topologies.ring(8),
    "star": topologies.star(5),
    "exponential": topologies.exponential(8),
    "pair": topologies.complete(2),
}
DIM, STEPS = 3, 4

pytestmark = pytest.mark.usefixtures("as_users")


# ---- Events ----------------------------------------------------------------------


def test_clocks_run_at_their_rates():
    """All counts within five standard deviations."""
    ring, time = topologies.ring(16), 400.0
    speeds = np.array([1.0] * 12 + [0.25] * 3 + [0.0])
    events = draw_events(ring, 1.5, duration=time, speeds=speeds, seed=3)
    rates = asynchronous.edge_rates(ring, 1.5)
    for counts, expected in (
        (events.gradient_counts, speeds * time),
        (events.pair_counts, rates * time),
    ):
        assert (np.abs(counts - expected) <= 5 * np.sqrt(expected)).all()
    assert events.averaging_counts.sum() == 2 * (~events.is_gradient).sum()
    gaps = np.diff(events.time[~events.is_gradient])  # Exponential: mean = deviation.
    np.testing.assert_allclose(gaps.std() / gaps.mean(), 1, atol=0.05)
    # Averagings during a gradient of mean length 1: geometric of mean 1.5.
    np.testing.assert_allclose(
        events.staleness.mean(), 1.5 * time * 15 / len(events.staleness), rtol=0.1
    )
    np.testing.assert_allclose((events.staleness == 0).mean(), 1 / 2.5, atol=0.05)


@pytest.mark.parametrize("variation", [0, 0.3, 1, 2])
def test_gradients_take_times_of_that_variation(variation):
    events = draw_events(
        topologies.complete(2), 0, gradients=8000, variation=variation, speeds=[1, 3]
    )
    assert events.is_gradient.all() and len(events) == 8000
    for worker, speed in enumerate((1, 3)):
        times = np.diff(events.time[events.worker == worker], prepend=0)
        np.testing.assert_allclose(times.mean(), 1 / speed, rtol=0.15)
        np.testing.assert_allclose(times.std() * speed, variation, rtol=0.15, atol=1e-9)


def test_clocks_depend_on_the_seed_alone():
    def own(events, worker):
        return events.time[events.is_gradient & (events.worker == worker)][:50]

    a = draw_events(topologies.ring(4), 1.0, gradients=400, seed=5)
    b = draw_events(topologies.star(4), 3.0, duration=70.0, seed=5, speeds=[1, 1, 1, 0])
    rounds = draw_rounds(4, 50, seed=5)
    for worker in range(3):
        np.testing.assert_array_equal(own(a, worker), own(b, worker))
        durations = (rounds.finish - rounds.start[:, None])[:, worker]
        np.testing.assert_allclose(np.cumsum(durations), own(a, worker))
    assert not np.array_equal(own(a, 0), own(a, 1))
    assert own(a, 0)[0] != own(draw_events(topologies.ring(4), gradients=9), 0)[0]


def test_a_budget_of_gradients_is_met_exactly():
    for variation in (0, 1):
        events = draw_events(topologies.ring(4), gradients=6, variation=variation)
        assert events.is_gradient.sum() == 6
        assert events.time[-1] <= events.duration
        assert events.is_gradient[events.time == events.duration].all()


def test_synchronous_workers_wait_for_the_slowest():
    rounds = draw_rounds(3, 4, speeds=[1, 1, 0.25], variation=0)
    np.testing.assert_array_equal(rounds.end, [4, 8, 12, 16])
    np.testing.assert_allclose(rounds.idle_share, 0.5)
    random = draw_rounds(3, 100)
    np.testing.assert_allclose(
        random.end[1:],
        random.start[1:] + (random.finish - random.start[:, None])[1:].max(1),
    )
    assert draw_rounds(1, 9).idle_share == pytest.approx(0)


def test_what_a_list_of_events_says():
    #        worker 0: gradient at 1, meets 1 at 2, meets 2 at 3, gradient at 4
    events = Events(3, [1, 2, 3, 4], [0, 1, 0, 0], [-1, 0, 2, -1], 5)
    assert events.gradient_counts.tolist() == [2, 0, 0]
    assert events.pair_counts.tolist() == [[0, 1, 1], [1, 0, 0], [1, 0, 0]]
    assert events.averaging_counts.tolist() == [2, 1, 1]
    assert events.staleness.tolist() == [0, 2]
    assert events.elapsed.tolist() == [[1, 0], [2, 1], [1, 3], [1, 0]]
    assert events.last_times(3).tolist() == [3, 2, 3]
    assert events.last_times(2.5).tolist() == [2, 2, 0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2, [1, 0.5], [0, 1], [-1, -1], 2), "number 1 .* before its predecessor"),
        ((2, [-1], [0], [-1], 2), "number 0 .*before 0"),
        ((2, [3], [0], [-1], 2), "after the end"),
        ((2, [np.nan], [0], [-1], 2), "after the end"),
        ((2, [1], [2], [-1], 2), r"worker 2, peer -1\) has a worker that is not"),
        ((2, [1], [0], [2], 2), "has a peer"),
        ((2, [1], [1], [1], 2), "averages with itself"),
        ((2, [1, 2], [1], [0], 2), "one entry an event"),
        ((2, [[1]], [[1]], [[0]], 2), "one entry an event"),
        ((2, [], [], [], -1), "cannot end at -1"),
    ],
)
def test_impossible_events_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Events(*arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "either the number of gradients or the duration"),
        ({"gradients": 9, "duration": 1.0}, "either the number"),
        ({"gradients": 0}, "cannot wait for 0 gradients"),
        (
            {"gradients": 9, "speeds": 0},
            "cannot wait for 9 gradients at speeds up to 0",
        ),
        ({"gradients": 10.0}, "gradients must be an int"),
        ({"duration": -1.0}, "duration must be positive"),
        (
            {"duration": 1.0, "speeds": [1, 2]},
            r"each of the 4 workers, got shape \(2,\)",
        ),
        ({"duration": 1.0, "speeds": -1}, "speeds must be finite and at least 0"),
        ({"duration": 1.0, "variation": -1}, "variation must be"),
        ({"duration": 1.0, "rate": -1}, "rate must be"),
    ],
)
def test_impossible_clocks_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        draw_events(topologies.ring(4), **options)


def test_impossible_rounds_are_named():
    with pytest.raises(ValueError, match="steps and speeds must be positive"):
        draw_rounds(2, 3, speeds=[1, 0])
    with pytest.raises(ValueError, match="size must be a number of workers"):
        draw_rounds(topologies.ring(4), 3)
    with pytest.raises(TypeError, match="a Schedule has no fixed neighbours"):
        draw_events(topologies.one_peer_exponential(4), duration=1.0)


def test_pictures():
    events = draw_events(topologies.ring(4), duration=5.0)
    assert events.plot_pairs().images[0].get_array().shape == (4, 4)
    assert len(events.plot_timeline(until=3.0).collections) == 4 + 2
    assert len(events.plot_staleness().patches) == events.staleness.max() + 1
    assert len(draw_rounds(4, 5).plot_timeline().collections) == 4 + 1


# ---- Waves -----------------------------------------------------------------------


@hypothesis.given(
    graph=st.sampled_from(sorted(GRAPHS)),
    rate=st.sampled_from([0.0, 0.3, 1.0, 4.0]),
    seed=st.integers(0, 10**6),
    limits=st.tuples(st.integers(1, 4), st.integers(1, 8)),
)
def test_waves_keep_the_order_of_each_worker(graph, rate, seed, limits):
    topology = GRAPHS[graph]
    events = draw_events(topology, rate, duration=6.0, seed=seed)
    waves = level(events, 0, len(events), *limits)
    order = []
    for averagings, gradients in zip(*waves, strict=True):
        for slots in (averagings, gradients):
            here = slots[slots >= 0]
            assert (slots[: len(here)] >= 0).all()  # Empty ones are last.
            busy = [events.worker[here], events.peer[here]]
            busy = np.concatenate([b[b >= 0] for b in busy])
            assert len(set(busy)) == len(busy)
            order += here.tolist()
    assert sorted(order) == list(range(len(events)))
    for i in range(topology.size):
        mine = [e for e in order if i in (events.worker[e], events.peer[e])]
        assert mine == sorted(mine)


@pytest.mark.parametrize("graph", ["ring", "exponential", "complete"])
@pytest.mark.parametrize("rate", [0.5, 1.0, 2.0])
def test_waves_are_nearly_full(graph, rate):
    events = draw_events(getattr(topologies, graph)(64), rate, gradients=64 * 20)
    waves = level(events, 0, len(events), *capacities(events))
    assert (waves.gradients >= 0).mean() > 0.8
    assert (waves.averagings >= 0).mean() > 0.8


# ---- Simulation ------------------------------------------------------------------


def problem(size, seed):
    """Least squares, with new targets in each step of each epoch."""
    rng = np.random.default_rng(seed)
    matrices = rng.standard_normal((size, 4, DIM)) / 2
    start = rng.standard_normal((size, DIM))

    def batches(epoch):
        rng = np.random.default_rng((seed, epoch))
        return rng.standard_normal((size, STEPS, 4))

    def gradient(i, k, x):
        return matrices[i].T @ (matrices[i] @ x - batches(k // STEPS)[i, k % STEPS])

    def gradient_fn(params, matrix, target):
        x = jnp.concatenate([params["a"], params["b"].ravel()])
        residual = matrix @ x - target
        g = matrix.T @ residual
        grads = {"a": g[:1], "b": g[1:].reshape(1, DIM - 1)}
        return grads, matrix, {"loss": jnp.sum(residual**2), "target": target}

    return matrices, start, batches, gradient, gradient_fn


def split(x):
    return {"a": jnp.asarray(x[:, :1]), "b": jnp.asarray(x[:, None, 1:])}


def joined(tree):
    return np.concatenate([tree["a"], tree["b"][:, 0]], 1)


def trained(base, events, start, gradient_fn, batches, matrices):
    """The workers' models after AD-PSGD."""
    *_, last = simulate(
        djax.adpsgd(base),
        events,
        split(start),
        gradient_fn,
        batches,
        model_state=matrices,
    )
    return joined(last.params)


@pytest.mark.slow
@hypothesis.given(
    graph=st.sampled_from(sorted(GRAPHS)),
    rate=st.sampled_from([0.3, 1.0, 3.0]),
    variation=st.sampled_from([0.0, 0.5, 1.0]),
    slowest=st.sampled_from([0.0, 0.25, 1.0]),
    seed=st.integers(0, 10**6),
    momentum=st.sampled_from([0.0, 0.9]),
    accelerated=st.booleans(),
)
@hypothesis.settings(max_examples=12)
def test_waves_give_what_single_events_give(
    graph, rate, variation, slowest, seed, momentum, accelerated
):
    topology = GRAPHS[graph]
    matrices, start, batches, gradient, gradient_fn = problem(topology.size, seed)
    speeds = [1.0] * (topology.size - 1) + [slowest]
    events = draw_events(
        topology, rate, duration=12.0, speeds=speeds, variation=variation, seed=seed
    )
    constants = djax.acid_constants(topology, rate)
    base = optax.sgd(0.1, momentum=momentum or None)
    algorithm = djax.acid(base, constants) if accelerated else djax.adpsgd(base)
    x, tilde, counts = references.asynchronous(
        events,
        start,
        gradient,
        rate=lambda done, own: 0.1,
        momentum=momentum,
        acid=constants[2:] if accelerated else (0.0, 0.5, 0.5),
    )
    with jax.enable_x64(True):
        moments = list(
            simulate(
                algorithm,
                events,
                split(start),
                gradient_fn,
                batches,
                times=[3.0, 3.0, 10.0],
                model_state=matrices,
            )
        )
    scale = np.abs(x).max()
    last = moments[-1]
    np.testing.assert_allclose(joined(last.params), x, rtol=1e-12, atol=1e-12 * scale)
    if accelerated:
        ours = joined(last.state.momentum)
        np.testing.assert_allclose(ours, tilde, rtol=1e-12, atol=1e-12 * scale)
        np.testing.assert_allclose(ours.sum(0), x.sum(0), atol=1e-10 * scale)
    np.testing.assert_array_equal(counts, events.gradient_counts)
    assert [m.time for m in moments] == [3, 3, 10, 12]
    targets = np.concatenate([m.metrics["target"] for m in moments])
    order = events.worker[events.is_gradient]
    for i in range(topology.size):  # Each worker's data, one after another.
        epochs = [batches(e)[i] for e in range(1 + counts[i] // STEPS)]
        np.testing.assert_array_equal(
            targets[order == i], np.concatenate(epochs)[: counts[i]]
        )


def small(**options):
    topology = GRAPHS["ring"]
    matrices, start, batches, _, gradient_fn = problem(8, 0)
    events = draw_events(topology, gradients=100)
    options = {"model_state": matrices, "times": [2.0]} | options
    base = options.pop("base", optax.sgd(0.1, momentum=0.9))
    acid = djax.acid(base, djax.acid_constants(topology))
    with jax.enable_x64(True):
        return events, list(
            simulate(acid, events, split(start), gradient_fn, batches, **options)
        )


@pytest.mark.slow
def test_gradients_one_by_one_give_the_same():
    (_, together), (_, alone) = small(), small(dispatch=True)
    for a, b in zip(together, alone, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), a, b)


def test_snapshots_change_nothing():
    (events, seldom), (_, often) = small(times=[]), small(times=np.linspace(0, 5, 30))
    assert len(seldom) == 1 and len(often) == 31
    for a, b in zip(seldom[-1][1:-2], often[-1][1:-2], strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), a, b)
    losses = np.concatenate([moment.metrics["loss"] for moment in often])
    np.testing.assert_allclose(losses, seldom[0].metrics["loss"], rtol=1e-12)
    assert len(losses) == events.is_gradient.sum() == 100


def test_schedules_count_own_or_all_steps():
    matrices, start, batches, gradient, gradient_fn = problem(8, 0)
    events = draw_events(GRAPHS["ring"], gradients=100)
    schedule = optax.linear_schedule(0.2, 0.0, 60)
    in_global_steps = asynchronous.in_global_steps(schedule)
    for rate, count in (
        (schedule, lambda done, own: own),
        (in_global_steps, lambda done, own: done),
    ):
        base = optax.inject_hyperparams(optax.sgd)(rate)
        x, _, _ = references.asynchronous(
            events,
            start,
            gradient,
            rate=lambda *counts, count=count: 0.2 * max(0, 1 - count(*counts) / 60),
            momentum=0,
        )
        with jax.enable_x64(True):
            found = trained(base, events, start, gradient_fn, batches, matrices)
        # optax computes schedules in single precision.
        np.testing.assert_allclose(found, x, rtol=1e-5)
    with pytest.raises(ValueError, match="needs the extra argument global_step"):
        base.update(split(start), base.init(split(start)))


@pytest.mark.parametrize("mode", ["acid", "plain"])
def test_consensus_is_that_of_the_golden_run(mode):
    size, duration = 16, float(GOLDEN["T"])
    events = Events(size, GOLDEN["t"], GOLDEN["edge_i"], GOLDEN["edge_j"], duration)
    constants = djax.acid_constants(topologies.ring(size))
    base = optax.sgd(0.1)
    algorithm = djax.acid(base, constants) if mode == "acid" else djax.adpsgd(base)
    with jax.enable_x64(True):
        moments = [*simulate(algorithm, events, GOLDEN["x0"], times=GOLDEN["grid"])]
    distances = [moment.consensus_distance for moment in moments]
    np.testing.assert_allclose(distances, GOLDEN[f"consensus_{mode}"], rtol=1e-9)
    last = moments[-1]
    np.testing.assert_allclose(last.params, GOLDEN[f"x_final_{mode}"], atol=1e-12)
    if mode == "acid":
        tilde = last.state.momentum
        np.testing.assert_allclose(tilde, GOLDEN["xt_final_acid"], atol=1e-12)


@pytest.mark.slow
@hypothesis.given(graph=st.sampled_from(sorted(GRAPHS)), seed=st.integers(0, 10**6))
@hypothesis.settings(max_examples=8)
def test_what_any_schedule_keeps(graph, seed):
    topology = GRAPHS[graph]
    x = np.random.default_rng(seed).standard_normal((topology.size, DIM))
    events = draw_events(topology, duration=8.0, speeds=0, seed=seed)
    times = events.time[::5]  # Right behind events.
    acid = djax.acid(optax.sgd(0.1), djax.acid_constants(topology))
    with jax.enable_x64(True):
        accelerated = list(simulate(acid, events, x, times=times))
        plain = list(simulate(djax.adpsgd(optax.sgd(0.1)), events, x, times=times))
    for moment in plain:
        np.testing.assert_allclose(
            np.asarray(moment.params).sum(0), x.sum(0), atol=1e-12
        )
    for moment in accelerated:  # All are mixed to a common time.
        for copy in (moment.params, moment.state.momentum):
            total = np.asarray(copy).sum(0)
            np.testing.assert_allclose(total, x.sum(0), atol=1e-11)


@pytest.mark.parametrize(("mode", "rate"), [("plain", 0.078), ("acid", 0.233)])
def test_consensus_decays_as_in_an_independent_simulation(mode, rate):
    """On the ring of 16; `experiments.acid.consensus` has 32 and 64."""
    ring = topologies.ring(16)
    base = optax.sgd(0.1)
    plain, duration = mode == "plain", 160.0 if mode == "plain" else 60.0
    acid = djax.acid(base, djax.acid_constants(ring))
    times, logs = np.linspace(duration / 2, duration, 16), []
    for seed in range(20):
        x = np.random.default_rng(seed).standard_normal((16, 10))
        events = draw_events(ring, duration=duration, speeds=0, seed=seed)
        with jax.enable_x64(True):
            moments = simulate(
                djax.adpsgd(base) if plain else acid, events, x, times=times
            )
            logs.append([np.log(float(m.consensus_distance)) for m in moments])
    slope = np.polyfit(times, np.mean(logs, 0), 1)[0]
    assert slope == pytest.approx(-rate, rel=0.1)


def test_averagings_leave_the_base_optimizer_alone():
    """What an averaging does not change is not written again: two ends each."""
    events = draw_events(GRAPHS["ring"], duration=4.0, speeds=0)
    x = {"w": jnp.ones((8, 5))}

    def writes(algorithm):
        from djax.asynchronous.simulator import _programs as module

        run = module.Run(x, jax.vmap(algorithm.init)(x), (), ())
        waves = level(events, 0, len(events), 2, 1)
        wave = jax.tree.map(lambda a: jnp.asarray(a[0]), module.describe(events, waves))
        jaxpr = jax.make_jaxpr(lambda r: module._average(algorithm, r, wave))(run)
        return str(jaxpr).count(" scatter[")

    adam = optax.adam(0.1)
    assert writes(djax.acid(adam, djax.acid_constants(GRAPHS["ring"]))) == 2 * 2
    assert writes(djax.adpsgd(adam)) == 1 * 2


def test_rows_are_written_alike_on_all_platforms(monkeypatch):
    _, on_cpu = small()
    monkeypatch.setattr(
        jax.lax, "platform_dependent", lambda *args, cpu, default: default(*args)
    )
    _, elsewhere = small()  # Of a new optimizer: compiled anew.
    for a, b in zip(on_cpu, elsewhere, strict=True):
        jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-12), a, b)


@pytest.mark.parametrize("dispatch", [False, True])
def test_model_state_is_the_workers_own(dispatch):
    """It counts its gradients; a snapshot before the first has no metrics."""
    events = draw_events(GRAPHS["ring"], gradients=100, seed=2)
    first, last = simulate(
        djax.adpsgd(optax.sgd(0.1)),
        events,
        jnp.zeros(8),
        lambda x, count, batch: (x - batch, count + 1, {"count": count}),
        lambda epoch: jnp.ones((8, 3)),
        times=[0.0],
        model_state=jnp.zeros(8, jnp.int32),
        dispatch=dispatch,
    )
    assert first.metrics["count"].shape == (0,) and not first.model_state.any()
    np.testing.assert_array_equal(last.model_state, events.gradient_counts)
    workers = events.worker[events.is_gradient]
    for i in range(8):
        counts = last.metrics["count"][workers == i]
        np.testing.assert_array_equal(counts, np.arange(len(counts)))


def test_what_an_averaging_remembers_of_another_leaf_is_kept():
    def average(peer, state, params, *, sent=None):
        return (peer - params) / 2, {"previous": params}

    algorithm = asynchronous.EventTransformation(
        lambda params: {"previous": jnp.zeros_like(params)},
        lambda params, state, elapsed: (params, state),
        lambda grads, state, params, **extra: (grads, state),
        average,
    )
    events = Events(2, [1.0], [0], [1], 2.0)
    (last,) = simulate(algorithm, events, jnp.asarray([1.0, 2.0]))
    np.testing.assert_array_equal(last.params, [1.5, 1.5])
    np.testing.assert_array_equal(last.state["previous"], [1.0, 2.0])


@pytest.mark.parametrize("dispatch", [False, True])
def test_one_worker_and_no_events(dispatch):
    adpsgd = djax.adpsgd(optax.sgd(0.5))
    (last,) = simulate(adpsgd, Events(3, [], [], [], 2.0), jnp.arange(3.0))
    np.testing.assert_array_equal(last.params, [0, 1, 2])
    assert last.metrics == () and last.time == 2
    alone = draw_events(topologies.complete(1), gradients=5, variation=0)
    (last,) = simulate(
        adpsgd,
        alone,
        jnp.zeros(1),
        lambda x, state, batch: (x - batch, state, {}),
        lambda epoch: jnp.ones((1, 2)),
        dispatch=dispatch,
    )
    np.testing.assert_allclose(last.params, 1 - 0.5**5)


@pytest.mark.slow
def test_keys_are_data_too():
    def gradient_fn(x, state, key):
        return jax.random.normal(key), state, {"draw": jax.random.normal(key)}

    events = draw_events(GRAPHS["star"], gradients=20)
    keys = jax.random.split(jax.random.key(3), (5, 10))
    (last,) = simulate(
        djax.adpsgd(optax.sgd(0.1)), events, jnp.zeros(5), gradient_fn, lambda e: keys
    )
    workers = events.worker[events.is_gradient]
    for i in range(5):
        draws = last.metrics["draw"][workers == i]
        expected = [jax.random.normal(keys[i, k % 10]) for k in range(len(draws))]
        np.testing.assert_allclose(draws, np.asarray(expected), rtol=1e-6)


def test_every_epoch_is_made_once():
    made = []

    def batches(epoch):
        made.append(epoch)
        return jnp.ones((4, 2))

    events = draw_events(topologies.ring(4), duration=20.0, speeds=[1, 1, 1, 0.1])
    for _ in simulate(
        djax.adpsgd(optax.sgd(0.1)),
        events,
        jnp.zeros(4),
        lambda x, state, batch: (x - batch, state, {}),
        batches,
        times=np.arange(1.0, 20.0).tolist(),
    ):
        pass
    assert len(made) == len(set(made)) > 5


def test_local_sgd_at_rate_zero_is_everyone_alone():
    matrices, start, batches, _, gradient_fn = problem(8, 1)
    events = draw_events(GRAPHS["ring"], 0.0, gradients=80, variation=0)
    base = optax.adam(0.1)
    with jax.enable_x64(True):
        found = trained(base, events, start, gradient_fn, batches, matrices)
        communicator = communicators.simulated(8)
        workers = djax.simulation.init_workers(
            base, communicator, split(start), jnp.asarray(matrices)
        )
        steps = djax.simulation.make_steps(gradient_fn, base, communicator)
        for epoch in range(2):
            workers, _ = steps(workers, batches(epoch))
        workers, _ = steps(workers, batches(2)[:, :2])
    np.testing.assert_allclose(found, joined(workers.params), rtol=1e-9)


def test_wrong_arguments_are_named_at_once():
    events = draw_events(GRAPHS["ring"], gradients=10)
    adpsgd = djax.adpsgd(optax.sgd(0.1))
    matrices, start, batches, _, gradient_fn = problem(8, 0)
    x = split(start)
    with pytest.raises(ValueError, match="need a gradient_fn and batches"):
        simulate(adpsgd, events, x)
    with pytest.raises(ValueError, match="params: argument 0.*leading axis of the 8"):
        simulate(adpsgd, events, jnp.ones(3), gradient_fn, batches)
    with pytest.raises(ValueError, match="params is a tree without arrays"):
        simulate(adpsgd, events, {}, gradient_fn, batches)
    with pytest.raises(ValueError, match="times must ascend"):
        simulate(adpsgd, events, x, gradient_fn, batches, times=[1e9])
    with pytest.raises(ValueError, match="times must ascend"):
        simulate(adpsgd, events, x, gradient_fn, batches, times=[0.3, 0.2])
    with pytest.raises(ValueError, match="batches.*leading axis of the 8"):
        simulate(adpsgd, events, x, gradient_fn, lambda epoch: jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="two leading axes"):
        simulate(adpsgd, events, x, gradient_fn, lambda epoch: jnp.ones(8))
    with pytest.raises(ValueError, match="times must ascend"):
        simulate(adpsgd, events, x, gradient_fn, batches, times=[np.nan])
    with pytest.raises(TypeError, match="needs an asynchronous algorithm"):
        simulate(optax.sgd(0.1), events, x, gradient_fn, batches)
    with pytest.raises(TypeError, match="needs events"):
        simulate(adpsgd, x, events, gradient_fn, batches)

    def run(gradient_fn, batches=lambda epoch: jnp.ones((8, 1 + (epoch == 0)))):
        return list(simulate(adpsgd, events, jnp.zeros(8), gradient_fn, batches))

    events = draw_events(GRAPHS["ring"], gradients=100)
    with pytest.raises(ValueError, match="epoch 1 has 1 steps, but epoch 0 has 2"):
        run(lambda x, state, batch: (x, state, {}))
    with pytest.raises(TypeError, match="must return gradients, model_state and"):
        run(lambda x, state, batch: (x, state))
    with pytest.raises(TypeError, match="gradients of the shapes"):
        run(lambda x, state, batch: (jnp.ones(2), state, {}))
    with pytest.raises(TypeError, match="must return a model_state like"):
        run(lambda x, state, batch: (x, {"count": 1}, {}))
    with pytest.raises(TypeError, match=r"use optax.inject_hyperparams\(optax.sgd\)"):
        schedule = asynchronous.in_global_steps(optax.constant_schedule(0.1))
        optax.sgd(schedule).update(x, optax.sgd(schedule).init(x))
