"""Tests of what the experiments share: splits, tasks, optimizers, tables."""

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import djax
from djax.asynchronous.runtime._record import Record
from experiments.lib import algorithms, optimizers, partition, runtime, tasks
from experiments.lib.errors import UsageError
from experiments.lib.quadratics import random_quadratics

LABELS = np.random.default_rng(0).integers(0, 10, size=1437)


@hypothesis.given(
    workers=st.integers(1, 40),
    spec=st.sampled_from(["iid", "dirichlet:1", "dirichlet:0.1", "shards:2"]),
    seed=st.integers(0, 1000),
)
@hypothesis.settings(max_examples=60)
def test_splits_are_disjoint_and_cover(workers, spec, seed):
    shares = partition.split(LABELS, workers, spec, seed)
    assert len(shares) == workers
    np.testing.assert_array_equal(np.sort(np.concatenate(shares)), np.arange(1437))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 2


def test_splits_differ_by_seed_and_repeat_themselves():
    one, same, other = (partition.split(LABELS, 4, "dirichlet:1", s) for s in (0, 0, 1))
    assert all(np.array_equal(a, b) for a, b in zip(one, same, strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


def heterogeneity(spec):
    """Mean over workers of the largest class's share."""
    shares = partition.split(LABELS, 16, spec, seed=1)
    counts = djax.data.count_classes(LABELS, shares)
    assert counts.sum() == len(LABELS)
    return (counts.max(1) / counts.sum(1)).mean()


def test_small_alpha_is_heterogeneous():
    values = [heterogeneity(s) for s in ("iid", "dirichlet:1", "dirichlet:0.1")]
    assert values == sorted(values)
    assert values[0] < 0.25 and values[2] > 0.45
    assert heterogeneity("dirichlet:1000") < 0.25


def test_a_worker_with_two_shards_has_few_classes():
    shares = partition.split(LABELS, 10, "shards:2", seed=0)
    held = (djax.data.count_classes(LABELS, shares) > 0).sum(1)
    assert held.max() <= 4


@pytest.mark.parametrize(
    ("spec", "workers", "message"),
    [
        ("dirichlet", 4, "cannot read --split 'dirichlet'"),
        ("dirichlet:x", 4, "cannot read --split"),
        ("dirichlet:0", 4, "alpha must be positive"),
        ("shards:2.5", 4, "cannot read --split"),
        ("shards:999", 4, "use from 1 to 359"),
        ("iid:3", 4, "cannot read --split"),
        ("zipf", 4, "choose from dirichlet, iid, reshuffled, shards, whole"),
        ("iid", 1438, "use at most 1437 workers"),
        ("dirichlet:1e-6", 30, "larger alpha"),
    ],
)
def test_bad_splits(spec, workers, message, monkeypatch):
    monkeypatch.setattr(djax.data, "_MAX_DRAWS", 20)
    with pytest.raises(UsageError, match=message):
        partition.split(LABELS, workers, spec, seed=0)


def setting(workers=4, local=None, batch_size=32):
    local = range(workers) if local is None else local
    return tasks.Setting(workers, local, "dirichlet:0.1", batch_size, seed=3)


def test_processes_draw_the_batches_of_their_own_workers():
    together = tasks.digits(setting()).epoch(5)
    for rank in range(4):
        alone = tasks.digits(setting(local=[rank])).epoch(5)
        for name in ("image", "label", "key"):
            np.testing.assert_array_equal(alone[name][0], together[name][rank])


def test_an_epoch_shows_every_sample_at_most_once():
    task = tasks.digits(setting())
    epoch, again = task.epoch(1), task.epoch(2)
    images, labels = epoch["image"], epoch["label"]
    assert images.shape == (4, task.steps_per_epoch, 32, 8, 8, 1)
    assert images.dtype == np.uint8 and labels.shape == images.shape[:3]
    assert not np.array_equal(images, again["image"])
    held = djax.data.count_classes(*task.split)
    for worker in range(4):
        seen = np.bincount(labels[worker].ravel(), minlength=10)
        assert (seen <= held[worker]).all()


def test_the_noise_of_quadratics_has_the_asked_norm():
    task = tasks.quadratics(setting(), dim=50, noise=3.0, steps_per_epoch=400)
    noise = task.epoch(1)
    np.testing.assert_array_equal(task.batches(397, 403)[:, 3:], task.batches(400, 403))
    np.testing.assert_array_equal(task.batches(397, 400), noise[:, 397:])
    assert noise.shape == (4, 400, 50)
    assert np.sqrt((noise**2).sum(-1).mean()) == pytest.approx(3, rel=0.02)


def test_quadratics_follow_the_gradient_of_half_the_loss():
    task = tasks.quadratics(setting(), dim=5)
    matrix, offset = (leaf[1] for leaf in task.model_state)
    x = np.arange(5.0)
    gradient, _, metrics = task.gradient_fn(x, (matrix, offset), np.zeros(5))
    np.testing.assert_allclose(gradient, matrix.T @ (matrix @ x - offset))
    np.testing.assert_allclose(metrics["loss"], np.sum((matrix @ x - offset) ** 2))


def test_digits_hold_out_a_fifth():
    task = tasks.digits(setting())
    assert djax.data.count_classes(*task.split).sum() == 1437
    params = task.init(jax.random.key(0))
    metrics = task.assess(params)
    assert 0 <= metrics["accuracy"] <= 0.4  # Untrained.
    assert metrics["loss"] > 1.5


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("digit", {}, "choose from ag_news, cifar10, digits"),
        ("digits", {"wide": 3}, "there are none, but wide was given"),
        ("sotu", {"level": "page"}, "level=page must be word or character"),
        ("sotu", {"length": 0}, "length=0 must be a positive integer"),
        ("quadratics", {"dim": "many"}, "cannot read dim=many"),
    ],
)
def test_bad_tasks(name, options, message):
    with pytest.raises(UsageError, match=message):
        tasks.make_task(name, setting(), options)


def test_batches_must_fit():
    with pytest.raises(UsageError, match="--batch-size 360.*from 1 to 359"):
        tasks.digits(setting(batch_size=360))


def test_options_are_literals():
    task = tasks.make_task("quadratics", setting(), {"dim": 7, "smallest": None})
    assert task.init(jax.random.key(0)).shape == (7,)


@hypothesis.given(
    workers=st.integers(2, 8),
    zeta2=st.sampled_from([0.0, 0.01, 1.0, 10.0]),
    smallest=st.sampled_from([None, 0.5]),
    seed=st.integers(0, 100),
)
@hypothesis.settings(max_examples=20)
def test_random_quadratics_are_as_asked(workers, zeta2, smallest, seed):
    problem = random_quadratics(
        workers, 5, zeta2, distance=3.0, smallest=smallest, seed=seed
    )
    assert problem.heterogeneity() == pytest.approx(zeta2, abs=1e-9)
    assert np.linalg.norm(problem.optimum) == pytest.approx(3)
    values = np.linalg.svd(problem.matrices, compute_uv=False)
    np.testing.assert_allclose(values[:, 0], 1)
    if smallest is not None:
        np.testing.assert_allclose(values[:, -1], smallest)
    residuals = problem.matrices @ problem.optimum - problem.offsets
    gradient = np.einsum("nab,na->b", problem.matrices, residuals)
    np.testing.assert_allclose(gradient, 0, atol=1e-9)
    around = np.random.default_rng(seed).normal(size=(20, 5))
    best = problem.value(problem.optimum)
    assert all(problem.value(problem.optimum + x) >= best for x in around)


def test_the_quadratic_task_measures_the_suboptimality_of_a_model():
    task = tasks.quadratics(setting(), dim=5, heterogeneity=2.0)
    problem = random_quadratics(4, 5, 2.0, distance=10.0, smallest=0.5, seed=3)
    x = jnp.arange(5.0)
    expected = problem.value(np.arange(5.0)) - problem.value(problem.optimum)
    np.testing.assert_allclose(task.assess(x)["suboptimality"], expected, rtol=1e-5)
    with pytest.raises(ValueError, match="one worker alone"):
        tasks.quadratics(setting(workers=1))


def test_learning_rates_warm_up_and_decay():
    config = optimizers.BaseOptimizer(
        learning_rate=2.0, warmup=0.1, decay_at=(0.5, 0.75), decay_factor=0.1
    )
    schedule = optimizers.learning_rate_schedule(config, 100)
    steps = [0, 5, 10, 49, 51, 76, 99]
    np.testing.assert_allclose(
        [schedule(step) for step in steps], [0, 1, 2, 2, 0.2, 0.02, 0.02], rtol=1e-6
    )


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"optimizer": "sdg"}, "choose from .*adamw.*sgd"),
        ({"optimizer_options": {"moment": 1}}, "choose from .*momentum"),
        ({"learning_rate": 0.0}, "must be positive"),
        ({"warmup": 5.0}, "shares"),
    ],
)
def test_bad_optimizers(config, message):
    with pytest.raises(UsageError, match=message):
        optimizers.make_base(optimizers.BaseOptimizer(**config), 100)


def test_any_optimizer_of_optax_can_be_the_base():
    config = optimizers.BaseOptimizer(
        optimizer="adamw", optimizer_options={"b1": 0.5}, decay_at=(), warmup=0.0
    )
    base = optimizers.make_base(config, 10)
    params = jnp.ones(3)
    with jax.numpy_dtype_promotion("standard"):
        updates, _ = base.update(params, base.init(params), params)
        plain = optax.adamw(config.learning_rate, b1=0.5)
        expected, _ = plain.update(params, plain.init(params), params)
    np.testing.assert_allclose(updates, expected, rtol=1e-6)


def test_weight_decay_acts_on_the_gradients():
    config = optimizers.BaseOptimizer(
        optimizer_options={"momentum": None},
        weight_decay=0.5,
        decay_at=(),
        warmup=0.0,
    )
    base = optimizers.make_base(config, 10)
    params = jnp.full(2, 4.0)
    updates, _ = base.update(jnp.ones(2), base.init(params), params)
    np.testing.assert_allclose(updates, -0.1 * (1 + 0.5 * 4), rtol=1e-6)


RING, COMMUNICATOR = djax.topologies.ring(4), djax.communicators.simulated(4)
TREES = djax.topologies.double_binary_trees(4)


def make_optimizer(topologies=(RING,), base=(), **config):
    base = optimizers.BaseOptimizer(warmup=0.0, decay_at=(), **dict(base))
    config = algorithms.Algorithm(**config)
    return algorithms.make_optimizer(config, base, 10, topologies, COMMUNICATOR)


def quasi_global(make, **options):
    """Of the arguments of an alias."""
    return lambda rate, topology, communicator, **_: make(
        rate, djax.gossip(topology, communicator), **options
    )


def corrected(name):
    """Of the arguments of an alias; local steps with a correction have none."""

    def alias(rate, graph, communicator, **momentum):
        gossip = djax.gossip(graph, communicator)
        half = djax.gossip(graph, communicator, consensus_rate=0.5)
        averaging = {
            "led": lambda: djax.led(2, half, dual_rate=1 / 2),
            "k_gt": lambda: djax.k_gt(2, gossip, 0.5),
            "prox_skip": lambda: djax.prox_skip(
                0.6, gossip, 0.6, chi=2.0, key=jax.random.key(7)
            ),
        }
        return optax.chain(optax.sgd(rate, **momentum), averaging[name]())

    return alias


@pytest.mark.parametrize(
    ("config", "alias", "graph"),
    [
        ({"algorithm": "dpsgd"}, djax.dpsgd, RING),
        ({"algorithm": "all_reduce_sgd"}, djax.all_reduce_sgd, None),
        ({"algorithm": "relay_sgd"}, djax.relay_sgd, TREES),
        ({"algorithm": "relay_sgd_grad"}, djax.relay_sgd_grad, TREES),
        ({"algorithm": "d2_sgd"}, djax.d2_sgd, RING),
        ({"algorithm": "exact_diffusion"}, djax.exact_diffusion, RING),
        ({"algorithm": "gradient_tracking_sgd"}, djax.gradient_tracking_sgd, RING),
        ({"algorithm": "led", "local_steps": 2}, corrected("led"), RING),
        (
            {"algorithm": "k_gt", "local_steps": 2, "k_gt_rate": 0.5},
            corrected("k_gt"),
            RING,
        ),
        (
            {"algorithm": "prox_skip", "probability": 0.6, "chi": 2.0, "coin_seed": 7},
            corrected("prox_skip"),
            RING,
        ),
        ({"algorithm": "sgp"}, djax.sgp, djax.topologies.one_peer_exponential(4)),
        (
            {"algorithm": "quasi_global_momentum"},
            quasi_global(djax.quasi_global_momentum),
            RING,
        ),
        (
            {
                "algorithm": "quasi_global_momentum",
                "base": {"optimizer_options": {"momentum": 0.5}},
            },
            quasi_global(djax.quasi_global_momentum, momentum=0.5, form="heavy_ball"),
            RING,
        ),
        (
            {
                "algorithm": "quasi_global_adam",
                "base": {"optimizer": "adam", "optimizer_options": {"b1": 0.5}},
            },
            quasi_global(djax.quasi_global_adam, b1=0.5),
            RING,
        ),
    ],
)
def test_algorithms_are_those_of_djax(config, alias, graph):
    """On their graph, with the default base optimizer or its quasi-global form."""
    topologies = TREES if graph is TREES else (RING,)
    where = (COMMUNICATOR,) if graph is None else (graph, COMMUNICATOR)
    ours = make_optimizer(topologies, **config)
    theirs = alias(0.1, *where, momentum=0.9, nesterov=True)
    starts = jnp.arange(12.0).reshape(4, 3)

    def trajectory(optimizer):
        def worker(x):
            state = optimizer.init(x)
            for _ in range(4):
                updates, state = optimizer.update(jnp.sin(x), state, x)
                x = optax.apply_updates(x, updates)
            return x

        return jax.jit(COMMUNICATOR.spmd(worker))(starts)

    with jax.numpy_dtype_promotion("standard"):
        np.testing.assert_allclose(trajectory(ours), trajectory(theirs), rtol=1e-5)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"algorithm": "dpsgd", "missing": "latest"}, "dpsgd has no option --missing"),
        ({"algorithm": "dpsgd", "check": False}, "no option --no-check, only --cons"),
        ({"algorithm": "relay_sgd", "rounds": 2}, "no option --rounds, only --local-s"),
        ({"algorithm": "relay_sgd_grad", "local_steps": 2}, "no option --local-steps"),
        ({"algorithm": "sgp", "consensus_rate": 0.5}, "no option --consensus-rate"),
        ({"algorithm": "all_reduce_sgd", "consensus_rate": 2.0}, "--consensus-rate"),
        ({"algorithm": "d2_sgd", "overlap": True}, "d2_sgd has no option --overlap"),
        ({"algorithm": "exact_diffusion", "overlap": True}, "--overlap"),
        ({"algorithm": "k_gt", "dual_rate": 0.5}, "k_gt has no option --dual-rate"),
        ({"algorithm": "prox_skip", "local_steps": 2}, "no option --local-steps"),
        ({"algorithm": "gradient_tracking_sgd", "overlap": True}, "--overlap"),
        ({"algorithm": "quasi_global_adam", "overlap": True}, "--overlap"),
        (
            {"algorithm": "quasi_global_momentum", "base": {"optimizer": "adam"}},
            "use --optimizer sgd, not adam",
        ),
        (
            {
                "algorithm": "quasi_global_momentum",
                "base": {"optimizer_options": {"accumulator_dtype": None}},
            },
            "choose from momentum, nesterov",
        ),
    ],
)
def test_options_without_use_are_refused(config, message):
    with pytest.raises(UsageError, match=message):
        make_optimizer(**config)


def test_d2_is_checked_at_its_consensus_rate_and_on_all_graphs():
    star = djax.topologies.star(4, weights=1 / 3)  # Its smallest eigenvalue: -1/3.
    make_optimizer((star,), algorithm="d2_sgd")
    make_optimizer((star,), algorithm="d2_sgd", consensus_rate=1.1, check=False)
    with pytest.raises(ValueError, match="d2_sgd diverges"):
        make_optimizer((star,), algorithm="d2_sgd", consensus_rate=1.1)
    ring = djax.topologies.ring(4, weights=0.499)  # -0.996.
    make_optimizer((ring,), algorithm="d2_sgd", consensus_rate=0.5)
    with pytest.raises(ValueError, match="d2_sgd diverges"):
        make_optimizer((star, ring), algorithm="d2_sgd")


def test_a_resumed_run_that_computes_nothing_has_a_table():
    """Worker 1 is lost; worker 0 had computed all gradients in the run before."""
    records = {0: Record.unpack(Record(before=7).pack())}
    communicator, ring = djax.communicators.simulated(2), djax.topologies.ring(2)
    job = runtime.Live(
        *(None, communicator, np.zeros((1, 3)), None),
        *(ring, runtime.Runtime(), 1.0, 7, 0),
    )
    assert not job.reported
    job.report = djax.asynchronous.Report(2, np.ones(2), {1: "has died"}, records)
    job.events = job.report.events
    rows = dict(job.describe())
    assert job.reported
    assert rows["the rows below count from"] == "the resumption of the run"
    assert rows["the rows below leave out"] == "lost workers: 1"
    assert rows["averagings during a gradient, mean (most)"] == "0 (0)"
    assert job.traffic()["averagings_largest"] == 0
