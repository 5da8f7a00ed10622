"""DeMo: what the published code does, what travels, and that all models stay equal."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from test_golden import GOLDEN

import djax
from djax import communicators, compressors, training

DEMO = np.load(GOLDEN / "demo_n4.npz")
CASES = json.loads((GOLDEN / "demo_n4.json").read_text())
del CASES["splits"]
N = 4
WORKERS = communicators.simulated(N)


def unflatten(x):
    """Two tensors, of which a dictionary has the second one first."""
    return {"b": x[48:], "a": x[:48].reshape(8, 6)}


def flatten(params):
    return jnp.concatenate([params["a"].ravel(), params["b"]])


@pytest.mark.parametrize("case", CASES)
def test_follows_the_published_code(case):
    options = CASES[case]
    assert options["shapes"] == [[8, 6], [12]]
    optimizer = djax.demo(
        options["lr"],
        WORKERS,
        decay=options["decay"],
        chunk=options["chunk"],
        k=options["topk"],
        weight_decay=options["wd"],
    )

    def worker(matrix, offset, x):
        def step(carry, _):
            params, state = carry
            x = flatten(params)
            gradient = unflatten(matrix.T @ (matrix @ x - offset))
            updates, state = optimizer.update(gradient, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (flatten(params), flatten(state.residual))

        carry = unflatten(x), optimizer.init(unflatten(x))
        return jax.lax.scan(step, carry, length=options["steps"])[1]

    with jax.enable_x64(True):
        starts = np.broadcast_to(DEMO["x0"], (N, 60))
        arrays = map(jnp.asarray, (DEMO["A"], DEMO["b"], starts))
        models, residuals = map(np.asarray, jax.jit(WORKERS.spmd(worker))(*arrays))
    np.testing.assert_array_equal(models, np.tile(models[:1], (N, 1, 1)))
    np.testing.assert_allclose(models[0], DEMO[f"x__{case}"][1:], rtol=0, atol=1e-9)
    wanted = DEMO[f"delta__{case}"][1:].swapaxes(0, 1)
    np.testing.assert_allclose(residuals, wanted, rtol=0, atol=1e-9)


PARAMS = {"w": jnp.ones((12, 20)), "b": jnp.ones(5), "s": jnp.ones(())}


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_each_worker_sends_its_message_to_all_others(size):
    optimizer = djax.demo(0.1, communicators.simulated(size), chunk=8, k=3)
    cost = djax.communication_cost(optimizer, PARAMS, communicators.simulated(size))
    message = compressors.message_bytes(compressors.dct(3, chunk=8), PARAMS)
    assert cost.bytes_per_step == ((size - 1) * message,) * size


@pytest.mark.parametrize("where", [communicators.simulated, communicators.mesh])
@pytest.mark.parametrize(
    ("size", "options"), [(5, {}), (4, {"message_dtype": "bfloat16"})]
)
def test_models_stay_equal_to_the_last_bit(where, size, options):
    """All workers add up the messages in one order, also with rounds of silence."""
    workers = where(size, **options)
    optimizer = djax.demo(optax.linear_schedule(0.1, 0.0, 20), workers, k=2)

    def worker(key):
        def step(carry, key):
            params, state = carry
            grads = optax.tree.random_like(key, params)
            updates, state = optimizer.update(grads, state, params)
            return (optax.apply_updates(params, updates), state), None

        carry = PARAMS, optimizer.init(PARAMS)
        keys = jax.random.split(jax.random.wrap_key_data(key), 9)
        return jax.lax.scan(step, carry, keys)[0][0]

    keys = jax.random.key_data(jax.random.split(jax.random.key(0), size))
    params = jax.jit(workers.spmd(worker))(keys)
    for start, leaf in zip(*map(jax.tree.leaves, (PARAMS, params)), strict=True):
        rows = np.asarray(leaf).reshape(size, -1)
        np.testing.assert_array_equal(rows, np.tile(rows[:1], (size, 1)))
        assert (rows[0] != np.ravel(start)).all()


def test_what_is_sent_and_what_is_kept_are_the_gradients():
    """With rounded messages, what rounding leaves out is kept as well."""
    workers = communicators.simulated(1, message_dtype="bfloat16")
    optimizer = djax.demo(0.5, workers, k=2, chunk=4)
    x = {"w": jnp.asarray(np.random.default_rng(0).normal(size=(1, 8, 6)), jnp.float32)}

    def worker(x):
        return optimizer.update(x, optimizer.init(x), x)[1].residual

    kept = jax.jit(workers.spmd(worker))(x)["w"][0]
    code = compressors.dct(2, chunk=4)
    half = {"w": x["w"][0] / 2}

    @jax.jit
    def through(half):
        message, _ = code.compress(half, code.init(half))
        rounded = djax.mixing.as_sent(message, workers)
        return [code.decompress(m, half)["w"] for m in (rounded, message)]

    sent, exact = through(half)
    np.testing.assert_allclose(kept + sent, half["w"], rtol=1e-5, atol=1e-6)
    assert abs(exact - sent).max() > 1e-4


def test_half_precision_keeps_its_residual_in_float32():
    optimizer = djax.demo(1e-3, WORKERS)
    params = {"w": jnp.ones((N, 8, 8), "bfloat16")}

    def worker(x):
        return optimizer.update(x, optimizer.init(x), x)

    updates, state = jax.eval_shape(WORKERS.spmd(worker), params)
    assert updates["w"].dtype == jnp.bfloat16
    assert state.residual["w"].dtype == jnp.float32


def test_trains_in_loops_over_steps_and_passes_the_check():
    optimizer = djax.demo(optax.linear_schedule(0.05, 0.0, 300), WORKERS, k=2)
    djax.check(optimizer, WORKERS, PARAMS)
    target = jnp.asarray(np.random.default_rng(0).normal(size=(N, 1, 6)), jnp.float32)

    def gradient_fn(params, model_state, batch):
        return params - batch, model_state, {}

    start = communicators.replicate(WORKERS, jnp.zeros(6))
    workers = training.init_workers(optimizer, WORKERS, start)
    steps = training.make_steps(gradient_fn, optimizer, WORKERS)
    workers, _ = steps(workers, jnp.tile(target, (1, 300, 1)))
    mean = np.tile(target.mean(0), (N, 1))
    np.testing.assert_allclose(workers.params, mean, atol=0.1)


def test_the_rate_may_be_injected():
    make = optax.inject_hyperparams(djax.demo, static_args=("k", "chunk"))
    optimizer, plain = make(0.1, WORKERS, k=2), djax.demo(0.1, WORKERS, k=2)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(N, 6)), jnp.float32)

    def step(optimizer):
        def worker(x):
            return optimizer.update(x, optimizer.init(x), x)[0]

        return jax.jit(WORKERS.spmd(worker))(x)

    np.testing.assert_allclose(step(optimizer), step(plain), rtol=1e-6)


LOSSY = communicators.simulated(N, drop_probability=0.1)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: djax.demo(-0.1, WORKERS), "demo: learning_rate must be at least 0"),
        (lambda: djax.demo(0.1, LOSSY), "demo needs every message, but the communic"),
        (lambda: djax.demo(0.1, WORKERS, decay=1.0), "demo: decay must be below 1"),
        (lambda: djax.demo(0.1, WORKERS, k=0), "demo: k must be an integer of at l"),
        (lambda: djax.demo(0.1, WORKERS, chunk=2.5), "demo: chunk must be an integer"),
        (lambda: djax.demo(0.1, WORKERS, weight_decay=-1), "demo: weight_decay must"),
        (
            lambda: djax.every(2, djax.demo(0.1, WORKERS)),
            "every the mechanism alone, without demo",
        ),
    ],
)
def test_what_goes_wrong_is_refused(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_other_arguments_are_refused():
    with pytest.raises(TypeError, match="demo needs a communicator"):
        djax.demo(0.1, djax.topologies.ring(N))
    complex_params = {"z": jnp.ones((N, 3), jnp.complex64)}
    with pytest.raises(TypeError, match=r"demo is for real arrays.*\['z'\]"):
        WORKERS.spmd(djax.demo(0.1, WORKERS).init)(complex_params)
    optimizer = djax.demo(0.1, WORKERS)
    state = WORKERS.spmd(optimizer.init)(jnp.zeros((N, 3)))
    with pytest.raises(ValueError, match="residual is not like the parameters"):
        WORKERS.spmd(optimizer.update)(*(jnp.zeros((N, 4)), state, jnp.zeros((N, 4))))
