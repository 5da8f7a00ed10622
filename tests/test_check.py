"""A trial finds compositions that end at wrong points, and blames no others."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from conformance import ALGORITHMS, make
from launch import mpirun

import djax
from djax import communicators, compressors, topologies
from djax._checking.meeting import cut_off, meet
from djax._checking.trial import Trial
from djax._mechanism.value import parts_within

pytestmark = pytest.mark.usefixtures("as_users")

N = 8
RING, CHAIN = topologies.ring(N), topologies.chain(N)
WORKERS = communicators.simulated(N)
GOSSIP = djax.gossip(RING, WORKERS)
SGD = optax.sgd(0.1)
PARAMS = {
    "b": jax.ShapeDtypeStruct((10,), "float32"),
    "w": jax.ShapeDtypeStruct((784, 10), "float32"),
}
W, B = {"b": False, "w": True}, {"b": True, "w": False}


def in_halves():
    """Averages over two rings of four workers, which hear nothing of each other."""
    forth = [i + 1 if i % 4 < 3 else i - 3 for i in range(N)]
    back = [forth.index(i) for i in range(N)]

    def mix(model, state):
        left, right = (WORKERS.permute(model, source) for source in (forth, back))
        moves = jax.tree.map(lambda x, y, z: (y + z - 2 * x) / 3, model, left, right)
        return moves, state

    return djax.mechanism(lambda params: (), mix, WORKERS)


def code(function):
    """A code of a user, which says nothing of itself."""
    return djax.Compressor(
        lambda params: (),
        lambda tree, state: (jax.tree.map(function, tree), state),
        lambda message, like: message,
    )


COARSE = compressors.quantize(2)._replace(contraction=None)
DOUBLING = code(lambda x: 2.5 * x)
BIASED = compressors.top_k(0.5)._replace(unbiased=None)

MISTAKES = {
    "averaging before the step": (
        lambda: optax.chain(GOSSIP, SGD),
        "Models that start apart do not .* in 64 steps .* Put the mechanism last",
    ),
    "averaging before Adam": (
        lambda: optax.chain(GOSSIP, optax.adam(1e-3)),
        "Models that start apart do not .* in 4096 steps .* Put the mechanism last",
    ),
    "averaging before the step, of one parameter": (
        lambda: optax.chain(optax.masked(GOSSIP, W), SGD, djax.only(B, GOSSIP)),
        r"Models that start apart .*, in params\['w'\]\. Put the mechanism last",
    ),
    "no mechanism": (lambda: SGD, "never meet: .* contains no mechanism. Append one"),
    "a mask that is False everywhere": (
        lambda: optax.chain(SGD, optax.masked(GOSSIP, {"b": False, "w": False})),
        "never meet: .* gossip averages no parameter. Give optax.masked or djax.only",
    ),
    "a mask that leaves nothing": (
        lambda: optax.chain(
            SGD,
            djax.only(lambda tree: jax.tree.map(lambda x: x.ndim > 2, tree), GOSSIP),
        ),
        "gossip averages no parameter. .* cut to at most 4 entries in each dimension",
    ),
    "two halves": (
        lambda: optax.chain(SGD, in_halves()),
        "Some workers never hear of others: .* 0, 1, 2 and 5 more are .* Average over",
    ),
    "two halves in one parameter": (
        lambda: optax.chain(SGD, djax.only(W, in_halves()), djax.only(B, GOSSIP)),
        r"Some workers never hear of others, in params\['w'\]: .* the same mask",
    ),
    "every around a chain": (
        lambda: djax.every(4, optax.chain(SGD, GOSSIP)),
        "Models climb .*: raw gradients .* the mechanism alone, without its optimizer",
    ),
    "no optimizer": (lambda: GOSSIP, "Models climb along the gradient, .* raw grad"),
    "a parameter outside of the optimizer": (
        lambda: optax.chain(optax.masked(SGD, W), GOSSIP),
        r"Models climb .*, in params\['b'\]: raw gradients .* optax.set_to_zero",
    ),
    "a wrong sign": (
        lambda: optax.chain(optax.scale_by_adam(), optax.scale(0.1), GOSSIP),
        "Models climb along the gradient, .*: the sign is wrong",
    ),
    "clipping behind the mechanism": (
        lambda: optax.chain(SGD, GOSSIP, optax.clip(1.0)),
        r"Averaging moves the mean .* by 1\d\.\d% .* in front of the mechanism",
    ),
    "averaging before the step, with averaged moments": (
        lambda: djax.decentralized(
            optax.chain(GOSSIP, ADAM), optax.identity(), average_state=GOSSIP
        ),
        "Models that start apart do not .* in 4096 steps .* Put the mechanism last",
    ),
    "normalizing behind the mechanism": (
        lambda: optax.chain(SGD, GOSSIP, optax.clip_by_global_norm(1.0)),
        "Averaging moves the mean .* in front of the mechanism",
    ),
    "a biased code": (
        lambda: djax.dcd_psgd(0.1, RING, WORKERS, BIASED),
        r"dcd needs an unbiased code, .* of top_k is off by 2\d\.\d% .*quantize\(8\)",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_found_alone_and_its_remedy_is_named(name):
    wrong, message = MISTAKES[name]
    with pytest.raises(ValueError, match=message) as error:
        djax.check(wrong(), WORKERS, PARAMS)
    assert str(error.value).startswith("check: the optimizer has 1 problem.\n1. ")
    assert "\n2. " not in str(error.value)


SEVERAL = {
    "of order and of sign": (
        lambda: optax.chain(SGD, GOSSIP, optax.scale(-1.0)),
        r"2 problems\.\n1\. Models that start apart .*\n2\. Models climb",
    ),
    # Codes that are no contraction make the models diverge, as they were said to.
    "a quantization": (
        lambda: djax.choco_sgd(0.1, RING, WORKERS, COARSE, 0.5),
        r"1\. choco_gossip needs a contraction, .* quantize leaves out 1\d\.\d times",
    ),
    "a doubling code": (
        lambda: optax.chain(SGD, djax.deep_squeeze(RING, WORKERS, DOUBLING, 0.1)),
        r"1\. deep_squeeze needs a contraction, .* leaves out 2\.25 times .*top_k\(",
    ),
}


@pytest.mark.parametrize("name", SEVERAL)
def test_all_mistakes_are_listed(name):
    wrong, message = SEVERAL[name]
    with pytest.raises(ValueError, match=f"(?s){message}"):
        djax.check(wrong(), WORKERS, PARAMS)


@pytest.mark.parametrize("wrap", [lambda x: x, lambda x: optax.chain(x)])
def test_asynchronous_algorithms_are_refused(wrap):
    acid = djax.acid(SGD, djax.acid_constants(RING))
    with pytest.raises(TypeError, match="djax.acid and djax.adpsgd are asynchronous"):
        djax.check(wrap(acid), WORKERS, PARAMS)


def test_what_is_no_optimizer_communicator_or_array_is_refused():
    with pytest.raises(TypeError, match="check: expected an optimizer"):
        djax.check(None, WORKERS, PARAMS)
    with pytest.raises(TypeError, match="check needs a communicator"):
        djax.check(GOSSIP, RING, PARAMS)
    with pytest.raises(
        TypeError, match=r"check: params\['w'\] is 'x', which is no arr"
    ):
        djax.check(GOSSIP, WORKERS, {"w": "x"})


WARM_UP = optax.linear_schedule(0.0, 0.1, 1000)
MOMENTUM, ADAM = optax.sgd(0.1, 0.9), optax.adam(WARM_UP)
ADAMW = optax.adamw(1e-2, weight_decay=0.1)
MIXED = {
    "b": jax.ShapeDtypeStruct((10,), "bfloat16"),
    "w": jax.ShapeDtypeStruct((784, 10), "float16"),
}


@pytest.mark.parametrize("name", [name for name in ALGORITHMS if name != "dcd"])
def test_no_mechanism_is_blamed(name):
    """But for `dcd`, which the table gives a code that is biased."""
    djax.check(optax.chain(ADAMW, make(name, RING, WORKERS)), WORKERS, PARAMS)


RELAY = djax.relay(CHAIN, WORKERS)
QUANTIZED = compressors.quantize(8)._replace(unbiased=None)
FINE = {
    "dpsgd": lambda: djax.dpsgd(0.1, RING, WORKERS, momentum=0.9),
    "all_reduce_sgd": lambda: djax.all_reduce_sgd(0.1, WORKERS, momentum=0.9),
    "relay_sgd": lambda: djax.relay_sgd(
        WARM_UP, topologies.double_binary_trees(N), WORKERS, momentum=0.9
    ),
    "relay_sgd_grad": lambda: djax.relay_sgd_grad(0.1, CHAIN, WORKERS, momentum=0.9),
    "relay_adamw_grad": lambda: optax.chain(ADAMW, djax.on_updates(RELAY)),
    "d2_sgd": lambda: djax.d2_sgd(0.1, topologies.ring(N, weights=0.32), WORKERS),
    "exact_diffusion": lambda: djax.exact_diffusion(0.1, RING, WORKERS, momentum=0.9),
    "gradient_tracking_sgd": lambda: djax.gradient_tracking_sgd(WARM_UP, RING, WORKERS),
    "sgp": lambda: djax.sgp(0.1, topologies.one_peer_exponential(N), WORKERS),
    "power_gossip_sgd": lambda: djax.power_gossip_sgd(0.1, RING, WORKERS, rank=2),
    "choco_sgd": lambda: djax.choco_sgd(
        0.1, RING, WORKERS, compressors.top_k(0.01), 0.04
    ),
    "dcd_psgd": lambda: djax.dcd_psgd(0.1, RING, WORKERS, QUANTIZED),
    "ecd_psgd": lambda: djax.ecd_psgd(0.1, RING, WORKERS, compressors.quantize(8)),
    "moniqua": lambda: optax.chain(SGD, djax.moniqua(RING, WORKERS, 0.25, 0.005)),
    "quasi_global_momentum": lambda: djax.quasi_global_momentum(WARM_UP, GOSSIP),
    "quasi_global_adam": lambda: djax.quasi_global_adam(0.1, djax.only(W, GOSSIP)),
    "averaged momentum": lambda: djax.decentralized(
        MOMENTUM, GOSSIP, average_state=True
    ),
    "Adam with averaged moments": lambda: djax.decentralized(
        ADAMW, GOSSIP, average_state=djax.every(50, djax.all_reduce(WORKERS))
    ),
    "momentum_tracking": lambda: djax.momentum_tracking(WARM_UP, RING, WORKERS),
    "beer": lambda: djax.beer(0.1, RING, WORKERS, compressors.top_k(0.1), 0.1),
    "gut": lambda: djax.gut(0.1, RING, WORKERS),
    "gut with momentum": lambda: djax.gut(0.1, RING, WORKERS, momentum=0.9),
    "inject_hyperparams": lambda: optax.inject_hyperparams(djax.dpsgd)(
        WARM_UP, RING, WORKERS
    ),
    "injected moniqua": lambda: optax.chain(
        SGD,
        optax.inject_hyperparams(djax.moniqua, static_args="bits")(
            RING, WORKERS, 0.25, 0.005
        ),
    ),
    "Adam warming up": lambda: optax.chain(ADAM, GOSSIP),
    "clipping in front": lambda: optax.chain(optax.clip(1.0), MOMENTUM, GOSSIP),
    "rarely": lambda: optax.chain(MOMENTUM, djax.every(3000, GOSSIP)),
    "rarely along a tree": lambda: optax.chain(SGD, djax.every(100, RELAY)),
    "led": lambda: optax.chain(MOMENTUM, djax.led(4, GOSSIP, 0.2)),
    "k_gt": lambda: optax.chain(ADAM, djax.k_gt(4, GOSSIP)),
    "prox_skip": lambda: optax.chain(SGD, djax.prox_skip(0.1, GOSSIP, 0.1)),
    "in several steps": lambda: optax.MultiSteps(optax.chain(SGD, GOSSIP), 4),
    "masked": lambda: optax.chain(ADAMW, optax.masked(GOSSIP, W)),
    "only": lambda: optax.chain(ADAMW, djax.d2(djax.only(W, slow_gossip()))),
}


def slow_gossip():
    return djax.gossip(RING, WORKERS, consensus_rate=0.5)


@pytest.mark.parametrize("name", FINE)
def test_no_right_composition_is_blamed(name):
    djax.check(FINE[name](), WORKERS, PARAMS)


@pytest.mark.parametrize(
    "base", [SGD, MOMENTUM, ADAMW], ids=["sgd", "momentum", "adamw"]
)
@pytest.mark.parametrize("name", ["gossip", "relay", "d2", "choco_gossip"])
def test_half_precision_is_not_blamed(name, base):
    """Nor Adam's, whose eps of 1e-8 is zero in float16."""
    djax.check(optax.chain(base, make(name, RING, WORKERS)), WORKERS, MIXED)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        (name, {"message_dtype": "bfloat16"})
        for name in ("gossip", "relay", "push_sum", "choco_gossip", "quasi_global_adam")
    ]
    + [
        (name, {"drop_probability": 0.2})
        for name in ("gossip", "relay", "push_sum", "push_sum_rounds")
    ],
)
def test_rounded_and_lost_messages_are_not_blamed(name, options):
    workers = communicators.simulated(N, **options)
    djax.check(optax.chain(SGD, make(name, RING, workers)), workers, PARAMS)


@pytest.mark.parametrize(
    "params",
    [
        jax.ShapeDtypeStruct((), "float32"),
        {"a": np.ones((0, 3), np.float32), "z": np.ones(3, np.complex64)},
        {},
    ],
)
def test_all_kinds_of_parameters(params):
    djax.check(djax.dpsgd(0.1, RING, WORKERS), WORKERS, params)


def test_integers_that_a_mask_leaves_out():
    params = {"w": jnp.ones(3), "count": jnp.ones((), jnp.int32)}
    optimizer = optax.masked(
        djax.dpsgd(0.1, RING, WORKERS), {"w": True, "count": False}
    )
    djax.check(optimizer, WORKERS, params)


def test_an_only_worker_meets_nobody():
    alone = communicators.simulated(1)
    djax.check(djax.dpsgd(0.1, topologies.ring(1), alone), alone, PARAMS)
    with pytest.raises(ValueError, match="raw gradients"):
        djax.check(djax.gossip(topologies.ring(1), alone), alone, PARAMS)


def test_on_a_mesh():
    mesh = communicators.mesh(N)
    gossip = djax.gossip(RING, mesh)
    djax.check(optax.chain(SGD, gossip), mesh, PARAMS)
    with pytest.raises(ValueError, match="do not come together"):
        djax.check(optax.chain(gossip, SGD), mesh, PARAMS)


def test_no_array_has_all_pairs_of_workers():
    """On a ring of 16,384 workers, there are 268 million pairs."""
    count = 37
    workers, ring = communicators.simulated(count), topologies.ring(count)
    optimizer = optax.chain(SGD, djax.gossip(ring, workers))
    trial = Trial(optimizer, workers, jax.ShapeDtypeStruct((3,), "float32"))
    group = trial.group(trial.models(), trial.gradients())
    text = str(jax.make_jaxpr(trial._advance)(*group, group.params))
    assert f"[{count},3]" in text and f"[{count},{count}" not in text


def test_news_that_are_lost_to_rounding_are_passed_on():
    """From those who have heard them: on a large graph they become too small."""
    optimizer = djax.dpsgd(0.1, RING, WORKERS)
    params = {"w": jax.ShapeDtypeStruct((3,), "bfloat16")}
    trial = Trial(optimizer, WORKERS, params)
    stacked = {"w": jax.ShapeDtypeStruct((N, 3), "bfloat16")}
    parts = parts_within(optimizer, WORKERS, stacked)
    meeting = meet(trial, parts)
    assert meeting.heard.all() and meeting.together.all()
    meeting.heard[:2, 3:6] = False
    assert not cut_off(trial, parts, meeting).any()


@pytest.mark.xdist_group("mpi")
def test_all_ranks_raise_the_same():
    program = """
import djax, jax, optax
workers = djax.communicators.mpi()
ring = djax.topologies.ring(2)
gossip, sgd = djax.gossip(ring, workers), optax.sgd(0.1)
params = {"b": jax.ShapeDtypeStruct((10,), "float32")}
djax.check(optax.chain(sgd, gossip), workers, params)
wrong = [optax.chain(gossip, sgd), djax.every(4, optax.chain(sgd, gossip))]
for optimizer in wrong:
    try:
        djax.check(optimizer, workers, params)
    except ValueError as error:
        found = workers.gather([str(error)])
        assert found[0] == found[1], found
        print(found[0])
"""
    result = mpirun(2, "-c", program, timeout=200)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("do not come together") == 2
    assert result.stdout.count("raw gradients are added") == 2
