"""A code says of which class it is, and mechanisms refuse what cannot work there."""

import inspect

import conformance
import jax.numpy as jnp
import numpy as np
import pytest

import djax
from djax import communicators, compressors, topologies
from experiments.lib import algorithms, optimizers
from experiments.lib.errors import UsageError

RING, COMMUNICATOR = topologies.ring(4), communicators.simulated(4)
CONTRACTIONS = {
    "beer": lambda code: djax.beer(0.1, RING, COMMUNICATOR, code, 0.1),
    "choco_gossip": lambda code: djax.choco_gossip(RING, COMMUNICATOR, code, 0.1),
    "choco_sgd": lambda code: djax.choco_sgd(0.1, RING, COMMUNICATOR, code, 0.1),
    "deep_squeeze": lambda code: djax.deep_squeeze(RING, COMMUNICATOR, code, 0.1),
}
UNBIASED = {
    "dcd": lambda code: djax.dcd(RING, COMMUNICATOR, code),
    "dcd_psgd": lambda code: djax.dcd_psgd(0.1, RING, COMMUNICATOR, code),
    "ecd": lambda code: djax.ecd(RING, COMMUNICATOR, code),
    "ecd_psgd": lambda code: djax.ecd_psgd(0.1, RING, COMMUNICATOR, code),
}
TAKERS = {
    **CONTRACTIONS,
    **UNBIASED,
    "message_bytes": lambda code: compressors.message_bytes(code, jnp.ones(3)),
}
CODES = {
    "identity": (compressors.identity(), True, True),
    "top_k": (compressors.top_k(0.5), True, False),
    "random_k": (compressors.random_k(0.5), True, False),
    "random_k, unbiased": (compressors.random_k(0.5, unbiased=True), False, True),
    "sign": (compressors.sign(), True, False),
    "low_rank": (compressors.low_rank(1), True, False),
    "quantize": (compressors.quantize(2), False, True),
    "quantize, fine": (compressors.quantize(8), False, True),
    "quantize, biased": (compressors.quantize(2, unbiased=False), True, False),
}


@pytest.mark.parametrize("name", CODES)
def test_each_code_declares_its_class(name):
    code, contraction, unbiased = CODES[name]
    assert (code.contraction, code.unbiased) == (contraction, unbiased)
    for takers, fits in ((CONTRACTIONS, contraction), (UNBIASED, unbiased)):
        for take in takers.values():
            if fits:
                take(code)
            else:
                with pytest.raises(ValueError, match=name.split(",")[0]):
                    take(code)


@pytest.mark.parametrize("taker", CONTRACTIONS)
def test_what_is_no_contraction_is_refused_with_the_remedy(taker):
    with pytest.raises(ValueError, match="needs a contraction.* unbiased=False"):
        CONTRACTIONS[taker](compressors.quantize(2))


@pytest.mark.parametrize("taker", UNBIASED)
def test_what_is_biased_is_refused_with_the_remedy(taker):
    with pytest.raises(ValueError, match=r"needs an unbiased code.*quantize\(8\)"):
        UNBIASED[taker](compressors.quantize(2, unbiased=False))


@pytest.mark.parametrize("taker", TAKERS)
def test_a_code_of_three_functions_that_declares_nothing_is_accepted(taker):
    init, compress, decompress = compressors.identity()[:3]
    TAKERS[taker](djax.Compressor(init, compress, decompress))


def test_choco_with_the_right_form_of_quantize_stays_finite_on_matrices():
    """With 2 bits the unbiased form gave nan here."""
    code = compressors.quantize(2, unbiased=False)
    mechanism = djax.choco_gossip(RING, COMMUNICATOR, code, 0.1)
    x = jnp.asarray(np.random.default_rng(0).normal(size=(4, 30, 20)))

    end = conformance.average(mechanism, COMMUNICATOR, x, 500)[:, -1]
    before, after = (np.linalg.norm(m - np.mean(m, 0, keepdims=True)) for m in (x, end))
    assert after < 0.5 * before


@pytest.mark.parametrize("taker", TAKERS)
@pytest.mark.parametrize(
    ("code", "message"),
    [
        (compressors.top_k, r"got the function top_k.*top_k\(0.01\)"),
        (compressors.sign, r"got the function sign.*sign\(\)"),
        (compressors.quantize, r"got the function quantize.*quantize\("),
        ("top_k", r"got 'top_k'.*top_k\(0.01\)"),
        ("zip", r"got 'zip'.*compressors\.quantize\("),
        (djax.Compressor, r"got the class Compressor.*Compressor\(init,"),
        (compressors.TopKMessage, "got the class TopKMessage"),
        (
            tuple(compressors.sign())[:3],
            r"got \(.*Compressor\(init, compress",
        ),
        (lambda x: x, "got the function"),
        (None, "got None"),
        (0.1, "got 0.1"),
        (RING, r"got Topology\(ring"),
    ],
)
def test_what_is_no_code_is_refused_at_construction(taker, code, message):
    with pytest.raises(TypeError, match=f"needs a djax.Compressor, {message}"):
        TAKERS[taker](code)


def test_the_calls_that_errors_name_are_right():
    """Who follows the message has a code that the mechanism accepts."""
    for takers in (CONTRACTIONS, UNBIASED):
        for take in takers.values():
            for name, function in inspect.getmembers(compressors, inspect.isfunction):
                if name == "message_bytes":
                    continue
                with pytest.raises(TypeError) as error:
                    take(function)
                call = str(error.value).split("compressors.")[-1].rstrip(".")
                take(eval(call, vars(compressors)))


def from_the_command_line(**config):
    """The optimizer that `python -m experiments.train` makes of these options."""
    base = optimizers.BaseOptimizer(warmup=0.0, decay_at=())
    options = algorithms.Algorithm(**config)
    return algorithms.make_optimizer(options, base, 10, (RING,), COMMUNICATOR)


@pytest.mark.parametrize("compressor", ["identity", "quantize", "random_k"])
@pytest.mark.parametrize(
    "options",
    [
        {"algorithm": "choco_sgd", "consensus_rate": 0.1},
        {"algorithm": "deep_squeeze", "consensus_rate": 0.1},
        {"algorithm": "dcd_psgd"},
        {"algorithm": "ecd_psgd"},
    ],
)
def test_the_command_line_takes_the_form_that_fits(options, compressor):
    from_the_command_line(compressor=compressor, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {
                "algorithm": "choco_sgd",
                "consensus_rate": 0.1,
                "compressor": "quantize",
                "compressor_options": {"bits": 4, "unbiased": True},
            },
            "choco_sgd needs a contraction.*leave that option away",
        ),
        ({"algorithm": "dcd_psgd", "compressor": "top_k"}, "choose identity, quantize"),
        ({"algorithm": "ecd_psgd", "compressor": "sign"}, "choose identity, quantize"),
        (
            {
                "algorithm": "dcd_psgd",
                "compressor_options": {"bits": 8, "unbiased": False},
            },
            "--compressor quantize is not here",
        ),
    ],
)
def test_the_command_line_names_the_options_of_codes_that_do_not_fit(options, message):
    with pytest.raises(UsageError, match=message):
        from_the_command_line(**options)
