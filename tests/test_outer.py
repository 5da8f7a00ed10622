"""Outer optimizers: their limits, what they keep, what they send, what they refuse."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import average
from test_every import MECHANISMS, waiting_loops

import djax
from djax import communicators, topologies
from djax._counting import jaxprs_in
from djax.corrections import _fragments

N = 4
WORKERS = communicators.simulated(N)
RING = topologies.ring(N)
GOSSIP = djax.gossip(RING, WORKERS)
MEAN = djax.all_reduce(WORKERS)
NESTEROV = optax.sgd(0.7, 0.9, nesterov=True)
SHAPES = {"a": (3, 2), "b": (2,), "c": (5,), "d": (2, 2)}
COUNT = sum(int(np.prod(shape)) for shape in SHAPES.values())


def models(seed=0):
    """The parameters of all workers."""
    rng = np.random.default_rng(seed)
    return {k: jnp.float32(rng.normal(size=(N, *s))) for k, s in SHAPES.items()}


def one_model():
    """The parameters of one worker."""
    return jax.tree.map(lambda x: x[0], models())


def nbytes(tree):
    """Bytes of all arrays of a tree."""
    return sum(x.size * x.dtype.itemsize for x in jax.tree.leaves(tree))


def trained(optimizer, params, steps, communicator=WORKERS):
    """Trains towards a target of each worker; the models after each step."""

    def worker(params, target):
        def step(carry, _):
            params, state = carry
            grads = jax.tree.map(jnp.subtract, params, target)
            updates, state = optimizer.update(grads, state, params)
            params = optax.apply_updates(params, updates)
            return (params, state), (params, state)

        carry = params, optimizer.init(params)
        return jax.lax.scan(step, carry, length=steps)[1]

    return jax.jit(communicator.spmd(worker))(params, models(1))


AVERAGES = {name: m for name, m in MECHANISMS.items() if name != "every"} | {
    "base graph": djax.gossip(topologies.base_graph(N), WORKERS),
    "interleave": djax.interleave([GOSSIP, MEAN]),
    "only": djax.only({"w": True, "b": False}, GOSSIP),
    "deep_squeeze": djax.deep_squeeze(RING, WORKERS, djax.compressors.sign(), 0.1),
    "moniqua": djax.moniqua(RING, WORKERS, 8.0, 0.5, bits=8),
}


@pytest.mark.parametrize("name", AVERAGES)
def test_a_plain_outer_step_is_every(name):
    params = {"w": jnp.zeros((N, 3, 2)), "b": jnp.arange(1.0 * N)[:, None]}
    outer = djax.outer(3, optax.sgd(1.0), AVERAGES[name])
    found = average(outer, WORKERS, params, steps=12)
    expected = average(djax.every(3, AVERAGES[name]), WORKERS, params, steps=12)
    jax.tree.map(
        lambda x, y: np.testing.assert_allclose(x, y, rtol=0, atol=2e-6),
        *(found, expected),
    )


@pytest.mark.parametrize(
    "options", [{}, {"fragments": 2}, {"fragments": 2, "delay": 1}]
)
def test_a_local_step_computes_nothing(options):
    """All work is in loops that have no iteration in local steps."""
    outer = djax.outer(4, NESTEROV, GOSSIP, **options)
    params = models()
    state = WORKERS.spmd(outer.init)(params)
    program = jax.make_jaxpr(WORKERS.spmd(outer.update))(params, state, params).jaxpr
    assert list(waiting_loops(program)) == [True] * options.get("fragments", 1)
    assert max(sizes_outside_of_loops(program)) <= N


def sizes_outside_of_loops(jaxpr):
    """The sizes of the arrays that are computed in every step."""
    for equation in jaxpr.eqns:
        inner = list(jaxprs_in(equation))
        if equation.primitive.name == "while":
            continue
        for each in inner:
            yield from sizes_outside_of_loops(each)
        if not inner:
            yield from (v.aval.size for v in equation.outvars)


def test_equal_anchors_stay_equal_to_the_last_bit_under_the_exact_average():
    params = jax.tree.map(lambda x: jnp.broadcast_to(x[:1], x.shape), models())
    found, states = trained(djax.diloco(optax.sgd(0.1), WORKERS, period=5), params, 30)
    for anchor in jax.tree.leaves(states[1].fragments[0].anchor):
        same = jnp.broadcast_to(anchor[:1], anchor.shape)
        np.testing.assert_array_equal(anchor, same)
    spread = np.ptp(np.asarray(found["a"]), axis=0).max((1, 2))
    assert spread[3] > 0.01 and spread[4::5].max() < 1e-6


@pytest.mark.parametrize("fragments", [1, 2, 4])
def test_the_state_has_an_anchor_and_what_the_optimizer_keeps(fragments):
    outer = djax.outer(4, NESTEROV, MEAN, fragments=fragments)
    state = outer.init(one_model())
    counter, model = 4, 4 * COUNT
    assert nbytes(state) == counter + 2 * model


def test_fragments_of_one_shape_share_the_memory_of_what_was_sent():
    params = {str(i): jnp.zeros((3, 5)) for i in range(4)}
    state = djax.outer(8, optax.sgd(1.0), MEAN, fragments=4, delay=1).init(params)
    assert [x.shape for x in state.sent] == [(3, 5)]


def test_an_anchor_in_bfloat16_takes_half_of_the_memory():
    sgd = optax.sgd(0.7)
    states = [
        jax.eval_shape(djax.outer(4, sgd, MEAN, anchor_dtype=dtype).init, one_model())
        for dtype in (None, "bfloat16")
    ]
    full, half = (nbytes(state.fragments) for state in states)
    assert full == 2 * half == 4 * COUNT


def test_small_outer_steps_are_not_lost_in_bfloat16():
    """The steps are a tenth of the distance between two numbers of bfloat16."""
    step, steps = 2.0**-8 / 10, 400

    def run(dtype):
        averaging = djax.outer(1, optax.sgd(0.5), MEAN, anchor_dtype=dtype)
        optimizer = optax.chain(optax.scale(-step), averaging)

        def worker(x):
            def advance(carry, _):
                x, state = carry
                updates, state = optimizer.update(-jnp.ones_like(x), state, x)
                return (x + updates, state), None

            return jax.lax.scan(advance, (x, optimizer.init(x)), length=steps)[0][0]

        start = jnp.ones((N, 2000))
        return np.asarray(jax.jit(WORKERS.spmd(worker))(start))

    exact, rounded = run(None), run("bfloat16")
    assert np.ptp(rounded, axis=0).max() < 1e-6  # All workers draw the same noise.
    moved = exact.mean() - 1
    assert moved == pytest.approx(0.5 * step * steps, rel=1e-2)
    assert rounded.mean() - 1 == pytest.approx(moved, rel=0.05)


def test_anchors_in_the_memory_of_the_host_change_nothing():
    options = [{}, {"anchor_memory": "host"}]
    (found, _), (expected, _) = (
        trained(
            optax.chain(optax.sgd(0.1), djax.outer(3, NESTEROV, GOSSIP, **each)),
            *(models(), 12),
        )
        for each in options
    )
    jax.tree.map(np.testing.assert_array_equal, found, expected)


@pytest.mark.parametrize(
    ("count", "sizes", "numbers"),
    [
        (2, [1, 1, 1, 1], [0, 0, 1, 1]),
        (2, [100, 1, 1], [0, 1, 1]),
        (3, [1, 1, 100], [0, 1, 2]),
        (3, [5, 5, 5, 5, 5, 5], [0, 0, 1, 1, 2, 2]),
    ],
)
def test_leaves_are_split_in_their_order(count, sizes, numbers):
    params = [np.zeros(size) for size in sizes]
    assert _fragments.number_leaves("outer", count, params) == numbers


def test_fragments_may_be_a_prefix_or_a_function():
    params = {"body": [jnp.zeros(2), jnp.zeros(3)], "head": jnp.zeros(4)}
    prefix = {"body": 1, "head": 0}
    for fragments in (prefix, lambda params: prefix):
        assert _fragments.number_leaves("outer", fragments, params) == [1, 1, 0]


@pytest.mark.parametrize("make", [djax.diloco, djax.streaming_diloco, djax.slowmo])
def test_bytes_are_those_of_one_model_in_a_period(make):
    optimizer = make(optax.sgd(1e-3), WORKERS, period=100)
    cost = djax.communication_cost(optimizer, one_model(), WORKERS)
    assert cost.mean_bytes == 4 * COUNT / 100


@pytest.mark.parametrize(("rate", "models_sent"), [(None, 1), (0.5, 2)])
def test_noloco_sends_one_model_unless_the_consensus_rate_differs(rate, models_sent):
    optimizer = djax.noloco(optax.sgd(0.1), WORKERS, period=10, consensus_rate=rate)
    cost = djax.communication_cost(optimizer, one_model(), WORKERS)
    assert cost.mean_bytes == models_sent * 4 * COUNT / 10


def test_slowmo_resets_the_state_of_the_base_optimizer():
    base = optax.sgd(0.1, 0.9)
    _, states = trained(
        djax.slowmo(base, WORKERS, period=3, base_state="reset"), models(), 7
    )
    trace = states[0].inner_state[0].trace["a"]
    is_zero = np.asarray(jnp.all(trace == 0, axis=(0, 2, 3)))
    assert is_zero.tolist() == [False, False, True, False, False, True, False]


def test_a_reset_leaves_the_schedule_of_the_learning_rate_as_it_is():
    falling = optax.linear_schedule(0.1, 0.0, 10)
    base = optax.chain(
        optax.trace(0.9),
        optax.inject_hyperparams(optax.sgd)(falling),
        optax.sgd(falling),
    )
    reset = djax.slowmo(base, WORKERS, period=2, base_state="reset")
    _, states = trained(reset, models(), 4)
    trace, injected, scheduled = states[0].inner_state
    assert not trace.trace["a"][:, -1].any()
    assert injected.count[:, -1].tolist() == [4] * N
    np.testing.assert_allclose(injected.hyperparams["learning_rate"][:, -1], falling(3))
    assert optax.tree.get(scheduled, "count")[:, -1].tolist() == [4] * N


def test_slowmo_bears_a_learning_rate_of_zero():
    """The rate is zero in the second slow step, and the training goes on."""

    def rate(step):
        return jnp.where((step >= 3) & (step < 6), 0.0, 0.1)

    optimizer = djax.slowmo(optax.sgd(rate), WORKERS, period=3, learning_rate=rate)
    found, states = trained(optimizer, models(), 12)
    distance = jnp.abs(found["a"].mean(0) - models(1)["a"].mean(0)[None]).max((1, 2))
    assert distance[-1] < 0.6 * distance[0]
    trace = states[-1].fragments[0].optimizer_state.trace["a"]
    np.testing.assert_array_equal(trace[:, 5], trace[:, 4])


def test_slowmo_averages_the_state_of_the_base_optimizer():
    base = optax.sgd(0.1, 0.9)
    averaged = djax.slowmo(base, WORKERS, period=3, base_state="average")
    _, states = trained(averaged, models(), 4)
    trace = np.asarray(states.optimizer_state[0].trace["a"])
    spread = np.ptp(trace, axis=0).max((1, 2))
    assert spread[2] < 1e-6 < 0.1 < spread[1]
    _, kept = trained(djax.slowmo(base, WORKERS, period=3), models(), 4)
    mean = np.asarray(kept[0][0].trace["a"])[:, 2].mean(0)
    np.testing.assert_allclose(trace[0, 2], mean, rtol=1e-5)


@pytest.mark.parametrize(
    "optimizer",
    [
        djax.diloco(optax.sgd(0.1), WORKERS, period=5),
        djax.diloco(optax.adam(1e-2), GOSSIP, period=5),
        djax.streaming_diloco(optax.sgd(0.1), WORKERS, fragments=4, period=8, delay=1),
        djax.slowmo(optax.chain(optax.sgd(0.1), GOSSIP), None, period=6),
        djax.noloco(optax.sgd(0.1), WORKERS, period=4),
    ],
)
def test_check_finds_nothing_wrong(optimizer):
    with jax.numpy_dtype_promotion("standard"):  # Adam needs it.
        djax.check(optimizer, WORKERS, one_model())


@pytest.mark.parametrize("make", [djax.diloco, djax.streaming_diloco, djax.slowmo])
def test_a_large_momentum_over_compressed_messages_is_warned_of(make):
    compressing = djax.power_gossip(RING, WORKERS)
    with pytest.warns(UserWarning, match="power_gossip.*at most 0.5 was safe"):
        make(optax.sgd(0.1), compressing, outer_momentum=0.9)
    make(optax.sgd(0.1), compressing, outer_momentum=0.5)
    make(optax.sgd(0.1), GOSSIP, outer_momentum=0.9)


def test_check_names_the_outer_optimizer_if_models_move_apart():
    outer = djax.outer(1, optax.sgd(0.7, 0.99), djax.power_gossip(RING, WORKERS))
    with pytest.raises(ValueError, match="outer optimizer may be too large"):
        djax.check(optax.chain(optax.sgd(0.1), outer), WORKERS, one_model())


@pytest.mark.parametrize("make", [djax.diloco, djax.slowmo, djax.noloco])
def test_anchors_of_named_algorithms_can_be_halved(make):
    optimizer = make(optax.sgd(0.1), WORKERS, anchor_dtype="bfloat16")
    anchor = optimizer.init(one_model())[-1].fragments[0].anchor
    assert {x.dtype.name for x in jax.tree.leaves(anchor)} == {"bfloat16"}


def push_sum():
    """Push-sum on a graph that changes the weights of the models."""
    directed = topologies.from_matrices([[[0.5, 1.0], [0.5, 0.0]]])
    return djax.push_sum(directed, communicators.simulated(2))


@pytest.mark.parametrize(
    ("mechanism", "said"),
    [
        (djax.gossip(RING, WORKERS, overlap=True), "overlap"),
        (djax.on_updates(GOSSIP), "averages updates"),
        (djax.gradient_tracking(GOSSIP), "updates of all steps"),
        (djax.outer(2, NESTEROV, GOSSIP), "without outer"),
        (djax.quasi_global_momentum(0.1, GOSSIP), "without quasi_global_momentum"),
        (push_sum(), "weights"),
    ],
)
def test_refuses_mechanisms_that_do_not_average_models(mechanism, said):
    with pytest.raises(ValueError, match=said):
        djax.outer(3, NESTEROV, mechanism)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"period": 0}, "period"),
        ({"period": 5, "fragments": 2}, "multiple of the 2 fragments"),
        ({"period": 4, "fragments": 2, "delay": 2}, "delay must be less than"),
        ({"fragments": [0, 2]}, r"leave none out; got \[0, 2\]"),
        ({"blend": 1.5}, "blend must be at most 1"),
        ({"blend": 0}, "blend must be positive"),
        ({"anchor_dtype": "float16"}, "anchor_dtype"),
        ({"anchor_memory": "disk"}, "anchor_memory"),
        ({"optimizer": GOSSIP}, "averages by itself"),
    ],
)
def test_refuses_wrong_arguments(options, said):
    given = {"period": 4, "optimizer": NESTEROV, "mechanism": MEAN} | options
    with pytest.raises(ValueError, match=said):
        djax.outer(**given)


@pytest.mark.parametrize(
    ("fragments", "said"),
    [
        (8, "only 4 leaves"),
        ({"a": 0, "b": 1}, "tree of numbers like the parameters"),
        (lambda params: {**params, "a": 0.5}, "number the leaves by the integers"),
        (
            lambda params: dict.fromkeys(params, 0) | {"a": 1, "b": 2},
            "multiple of the 3",
        ),
    ],
)
def test_init_refuses_fragments_that_do_not_fit(fragments, said):
    with pytest.raises(ValueError, match=said):
        djax.outer(8, NESTEROV, MEAN, fragments=fragments).init(one_model())


@pytest.mark.parametrize("fragments", [1, lambda params: {}])
def test_no_parameters_have_nothing_to_average(fragments):
    outer = djax.outer(2, NESTEROV, MEAN, fragments=fragments, delay=1)

    def worker(_):
        return outer.update({}, outer.init({}), {})[0]

    assert WORKERS.spmd(worker)(jnp.zeros(N)) == {}


def test_complex_anchors_are_not_rounded():
    outer = djax.outer(2, NESTEROV, MEAN, anchor_dtype="bfloat16")
    with pytest.raises(TypeError, match=r"anchor_dtype is for real.*complex64"):
        outer.init(jnp.zeros(2, jnp.complex64))


def test_a_state_of_other_fragments_is_refused():
    two, four = (djax.outer(4, NESTEROV, MEAN, fragments=k) for k in (2, 4))
    params = one_model()
    with pytest.raises(ValueError, match="belongs to 2"):
        four.update(params, two.init(params), params)


def test_noloco_refuses_what_it_cannot_use():
    falling = optax.linear_schedule(0.7, 0.1, 10)
    with pytest.raises(ValueError, match="noloco: with a consensus_rate, outer_"):
        djax.noloco(
            *(optax.sgd(0.1), WORKERS), outer_learning_rate=falling, consensus_rate=0.5
        )
    with pytest.raises(TypeError, match="noloco needs a communicator"):
        djax.noloco(optax.sgd(0.1), GOSSIP)


def test_slowmo_refuses_what_it_cannot_reset_or_average():
    base = optax.chain(optax.sgd(0.1), GOSSIP)
    with pytest.raises(ValueError, match="would reset gossip"):
        djax.slowmo(base, WORKERS, base_state="reset").init(one_model())
    with pytest.raises(ValueError, match="needs a communicator"):
        djax.slowmo(base, None, base_state="average")
