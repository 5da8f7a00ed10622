"""What a training step, an evaluation and a learning rate are made of."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from djax import communicators
from experiments import train
from experiments.lib import evaluation, optimizers, tasks
from experiments.lib.data import DataOptions
from experiments.lib.optimizers import BaseOptimizer

pytestmark = pytest.mark.usefixtures("as_users")


def make(name, model=None, workers=2, split=None, **options):
    """A compiled task on random data; options of the setting, and of the model."""
    known = {
        key: options.pop(key) for key in ("accumulation", "precision") if key in options
    }
    setting = tasks.Setting(
        workers,
        range(workers),
        split,
        batch_size=4,
        seed=3,
        data=DataOptions(mock=True),
        model=model,
        model_options=options,
        **known,
    )
    task = tasks.make_task(name, setting, {})
    compiled = jax.jit(task.gradient_fn)
    return task._replace(init=jax.jit(task.init), gradient_fn=compiled)


def first(tree):
    return jax.tree.map(lambda x: jnp.asarray(x)[0], tree)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("fashion_mnist", {}),
        ("sotu", {"hidden": 8}),
    ],
)
def test_parts_of_a_batch_give_the_gradient_of_the_whole(name, options):
    """Without dropout, and where images are not moved."""
    whole, parts = (make(name, accumulation=count, **options) for count in (1, 2))
    params = whole.init(jax.random.key(0))
    batch = first(first(whole.epoch(1)))
    state = first(whole.model_state)
    once, twice = (task.gradient_fn(params, state, batch) for task in (whole, parts))
    for ours, theirs in zip(jax.tree.leaves(once), jax.tree.leaves(twice), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_mixed_precision_keeps_parameters_and_gradients():
    exact, coarse = (
        make("fashion_mnist", precision=kind) for kind in ("float32", "bfloat16")
    )
    params = coarse.init(jax.random.key(0))
    batch = first(first(coarse.epoch(1)))
    found, _, measured = coarse.gradient_fn(params, (), batch)
    grads, _, expected = exact.gradient_fn(params, (), batch)
    assert {x.dtype for x in jax.tree.leaves((params, found))} == {jnp.dtype("float32")}
    assert measured["loss"] == pytest.approx(expected["loss"], rel=0.02)
    assert measured["loss"] != expected["loss"]
    distance = optax.tree.norm(optax.tree.sub(found, grads))
    assert 0 < distance < 0.1 * optax.tree.norm(grads)


def test_steps_have_randomness_of_their_own():
    task = make("cifar10", "vgg11", width=0.05)
    params, batch = task.init(jax.random.key(0)), task.epoch(1)
    keys = {tuple(key) for key in batch["key"].reshape(-1, 3).tolist()}
    assert len(keys) == 2 * task.steps_per_epoch
    one = first(first(batch))
    losses = [
        float(task.gradient_fn(params, (), one | {"key": jnp.asarray(key)})[2]["loss"])
        for key in np.uint32([[0, 0, 0], [0, 0, 0], [1, 0, 0], [0, 1, 0]])
    ]
    assert losses[0] == losses[1] and len(set(losses)) == 3


def test_a_state_starts_anew_with_the_text():
    task = make("sotu", hidden=8)
    steps = task.steps_per_epoch
    batches = first(task.batches(steps - 1, steps + 1))
    assert batches["first"].tolist() == [False, True]
    params = task.init(jax.random.key(0))
    worn = jax.tree.map(lambda x: x + 0.5, first(task.model_state))
    for t, matters in ((0, True), (1, False)):
        batch = jax.tree.map(lambda x, t=t: x[t], batches)
        losses = [
            float(task.gradient_fn(params, state, batch)[2]["loss"])
            for state in (first(task.model_state), worn)
        ]
        assert (losses[0] != losses[1]) == matters


def batch_statistics(task, params, worker):
    """Of the worker's first steps, one by one."""
    from experiments.lib.models import IMAGE_MODELS

    model = IMAGE_MODELS["resnet8"](10, width=0.125)
    batches = task.batches(0, min(10, task.steps_per_epoch))
    start = jax.tree.map(jnp.zeros_like, first(task.model_state))

    @jax.jit
    def statistics(images):
        images = (images.astype(jnp.float32) / 255 - 0.2860) / 0.3530
        variables = {"params": params, **start}
        _, after = model.apply(variables, images, train=True, mutable=["batch_stats"])
        return jax.tree.map(lambda x: x / 0.1, after)

    found = [statistics(images) for images in batches["image"][worker]]
    return jax.tree.map(lambda *xs: sum(xs) / len(xs), *found)


def test_the_averaged_model_has_statistics_of_its_own():
    """Of training data of all workers; those of the workers stay where they are."""
    task = make("fashion_mnist", "resnet8", split="iid", width=0.125)
    communicator = communicators.simulated(2)
    models = [task.init(jax.random.key(seed)) for seed in range(2)]
    params = jax.tree.map(lambda *xs: jnp.stack(xs), *models)
    averaged = jax.tree.map(lambda x: x.mean(0), params)
    found = [batch_statistics(task, averaged, worker) for worker in range(2)]
    state = jax.tree.map(lambda a, b: (a + b) / 2, *found)
    expected = task.assess(averaged, state)
    assess = evaluation.make_assess(task, communicator)
    own_state = jax.tree.map(lambda x: jnp.asarray(x) + 0.3, task.model_state)
    record = assess(params, own_state)
    assert record["averaged_loss"] == pytest.approx(float(expected["loss"]), rel=1e-4)
    own = [
        task.assess(models[i], jax.tree.map(lambda x, i=i: x[i], own_state))
        for i in range(2)
    ]
    scores = [float(means["accuracy"]) for means in own]
    np.testing.assert_allclose(record["scores"], scores, atol=1e-6)
    assert record["worst"] == min(record["scores"])
    fresh = assess(params)
    own = task.assess(models[1], batch_statistics(task, models[1], 1))
    assert fresh["scores"][1] == pytest.approx(float(own["accuracy"]), abs=1e-6)
    one = evaluation.assess_one(task, models[0])
    assert one["accuracy"] == pytest.approx(fresh["scores"][0], abs=1e-6)


def test_workers_are_evaluated_alike_together_and_one_by_one():
    task = make("fashion_mnist", "resnet8", split="iid", width=0.125)
    communicator = communicators.simulated(2)
    params = communicators.replicate(communicator, task.init(jax.random.key(0)))
    state = jax.tree.map(jnp.asarray, task.model_state)
    records = [
        evaluation.make_assess(task._replace(dispatch=dispatch), communicator)(
            params, state
        )
        for dispatch in (True, False)
    ]
    for key in records[0]:
        np.testing.assert_allclose(records[0][key], records[1][key], rtol=1e-5)


def test_the_last_batch_of_an_evaluation_is_weighed(monkeypatch):
    from experiments.lib.tasks import _classification

    task = make("fashion_mnist")
    params = task.init(jax.random.key(0))
    whole = task.assess(params)
    monkeypatch.setattr(_classification, "EVALUATION_BATCH", 100)  # 256 samples.
    cut = make("fashion_mnist")
    assert len(list(cut.held_out())) == 3
    monkeypatch.setattr(_classification, "RESIDENT", 0)
    streamed = make("fashion_mnist")
    for task in (cut, streamed):
        for key, value in task.assess(params).items():
            assert value == pytest.approx(float(whole[key]), rel=1e-5)


def run(tmp_path, options):
    return train.main([*options.split(), "--runs", str(tmp_path)])


def test_a_collapsed_run_is_given_up(tmp_path, capsys):
    options = "--epochs 8 --evaluations 4 --collapse 3 0.999"
    history = run(tmp_path, options).history
    assert [record["epoch"] for record in history] == [2, 4]
    assert [record.get("collapsed") for record in history] == [None, True]
    assert "given up" in capsys.readouterr().out
    history = run(tmp_path, "--epochs 8 --evaluations 4 --collapse 3 0.2").history
    assert history[-1]["epoch"] == 8 and "collapsed" not in history[-1]
    low = "--task quadratics --epochs 4 --evaluations 4 --collapse 2 1e-30"
    assert len(run(tmp_path, low).history) == 2


def test_metrics_for_tensorboard(tmp_path):
    run(tmp_path, "--epochs 2 --evaluations 2 --tensorboard")
    (folder,) = tmp_path.iterdir()
    (events,) = folder.glob("events.out.tfevents.*")
    content = events.read_bytes()
    assert b"consensus_distance" in content and b"scores/3" in content


def rates(steps=100, workers=4, **options):
    config = optimizers.scale_linearly(BaseOptimizer(**options), 32 * workers)
    schedule = optimizers.learning_rate_schedule(config, steps)
    return np.array([float(schedule(t)) for t in range(steps)])


def test_learning_rates_grow_to_their_peak():
    plain = rates(learning_rate=0.4, warmup=0.1, decay_at=(0.5,), decay_factor=0.1)
    assert plain[0] == 0 and plain[10] == pytest.approx(0.4)
    assert plain[49:51] == pytest.approx([0.4, 0.04])
    higher = rates(learning_rate=0.4, warmup=0.1, warmup_from=0.1, decay_at=())
    assert higher[[0, 5, 10]] == pytest.approx([0.1, 0.25, 0.4])
    scaled = rates(
        learning_rate=0.1, linear_scaling=64, warmup_from=0.1, warmup=0.1, decay_at=()
    )
    assert scaled[[0, 5, 10]] == pytest.approx([0.1, 0.15, 0.2])


def decayed(which, params):
    config = BaseOptimizer(
        weight_decay=1.0,
        decayed=which,
        learning_rate=1.0,
        warmup=0,
        decay_at=(),
        optimizer_options={"momentum": None},
    )
    base = optimizers.make_base(config, 10)
    zeros = jax.tree.map(jnp.zeros_like, params)
    updates, _ = base.update(zeros, base.init(params), params)
    return jax.tree.map(lambda x: bool((x != 0).all()), updates)


def test_weight_decay_spares_what_it_is_told_to():
    ones, square = jnp.ones(2), jnp.ones((2, 2))
    params = {
        "Dense_0": {"kernel": square, "bias": ones},
        "BatchNorm_0": {"scale": ones, "bias": ones},
        "EvoNormS0_1": {"gamma": ones},
        "layer_0_norm_1": {"scale": ones},
    }
    everything = jax.tree.map(lambda x: True, params)
    assert decayed("all", params) == everything
    norms = jax.tree.map(lambda x: False, params)
    weights = norms | {"Dense_0": {"kernel": True, "bias": True}}
    assert decayed("all_but_norms", params) == weights
    matrices = norms | {"Dense_0": {"kernel": True, "bias": False}}
    assert decayed("matrices", params) == matrices


def test_gradients_are_clipped_before_they_are_used():
    config = BaseOptimizer(
        clip_norm=1.0,
        learning_rate=1.0,
        warmup=0,
        decay_at=(),
        optimizer_options={"momentum": None},
    )
    base = optimizers.make_base(config, 10)
    grads = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    updates, _ = base.update(grads, base.init(grads), grads)
    assert updates["a"] == pytest.approx(-0.6) and updates["b"] == pytest.approx(-0.8)


def test_pooled_variances_are_those_of_all_batches_together():
    """Also where the workers' data have different means, which averages leave out."""
    data = np.random.default_rng(0).normal(size=(2, 4, 8, 3)) + [[[[0.0]]], [[[5.0]]]]

    def statistics(params, batch):
        return {"batch_stats": {"norm": {"mean": batch.mean(0), "var": batch.var(0)}}}

    task = make("fashion_mnist", "mlp")._replace(
        evaluate=lambda params, state, batch: {
            "samples": jnp.ones(()),
            "loss": state["batch_stats"]["norm"]["var"].sum(),
            "accuracy": state["batch_stats"]["norm"]["mean"].sum(),
        },
        held_out=lambda: [0.0],
        batches=lambda start, stop: jnp.asarray(data, jnp.float32),
        steps_per_epoch=4,
        statistics=statistics,
    )
    params, communicator = jnp.zeros((2, 1)), communicators.simulated(2)
    everything = data.reshape(-1, 3)
    for pooled, variance in (
        (True, everything.var(0)),
        (False, data.var(2).mean((0, 1))),
    ):
        assess = evaluation.make_assess(
            task._replace(pooled_statistics=pooled), communicator
        )
        record = assess(params)
        assert record["averaged_loss"] == pytest.approx(variance.sum(), rel=1e-5)
        assert record["averaged"] == pytest.approx(everything.mean(0).sum(), rel=1e-5)
