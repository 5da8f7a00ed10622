"""All that makes a mechanism or an optimizer, within `optax.inject_hyperparams`."""

import re

import jax
import jax.numpy as jnp
import optax
import pytest
from jax.sharding import PartitionSpec

import djax
from djax import communicators, compressors, topologies

N = 4
RING, WORKERS = topologies.ring(N, weights=0.3), communicators.simulated(N)
CHAIN, DIRECTED = topologies.chain(N), topologies.one_peer_exponential(N)
LOCAL, ACROSS = communicators.grouped(WORKERS, 2)
GOSSIP = djax.gossip(RING, WORKERS)
CODE, FINE = compressors.top_k(0.5), compressors.quantize(8)

MAKERS = {
    "all_reduce": (WORKERS,),
    "all_reduce_sgd": (0.1, WORKERS),
    "beer": (0.1, RING, WORKERS, CODE, 0.1),
    "choco_gossip": (RING, WORKERS, CODE, 0.1),
    "choco_sgd": (0.1, RING, WORKERS, CODE, 0.1),
    "d2": (GOSSIP,),
    "d2_sgd": (0.1, RING, WORKERS),
    "dcd": (RING, WORKERS, FINE),
    "dcd_psgd": (0.1, RING, WORKERS, FINE),
    "decentralized": (optax.sgd(0.1, momentum=0.9), GOSSIP),
    "deep_squeeze": (RING, WORKERS, CODE, 0.1),
    "demo": (0.1, WORKERS),
    "diloco": (optax.sgd(0.1), WORKERS),
    "dpsgd": (0.1, RING, WORKERS),
    "ecd": (RING, WORKERS, FINE),
    "ecd_psgd": (0.1, RING, WORKERS, FINE),
    "every": (2, GOSSIP),
    "exact_diffusion": (0.1, RING, WORKERS),
    "gossip": (RING, WORKERS),
    "gradient_tracking": (GOSSIP,),
    "gradient_tracking_sgd": (0.1, RING, WORKERS),
    "gut": (0.1, RING, WORKERS),
    "interleave": ([GOSSIP, GOSSIP],),
    "k_gt": (2, GOSSIP),
    "led": (2, GOSSIP, 0.1),
    "momentum_tracking": (0.1, RING, WORKERS),
    "moniqua": (RING, WORKERS, 1.0, 0.1),
    "noloco": (optax.sgd(0.1), WORKERS),
    "on_updates": (GOSSIP,),
    "outer": (4, optax.sgd(1.0), GOSSIP),
    "power_gossip": (RING, WORKERS),
    "power_gossip_sgd": (0.1, RING, WORKERS),
    "per_shard": (GOSSIP, PartitionSpec()),
    "prox_skip": (0.5, GOSSIP, 0.1),
    "push_sum": (DIRECTED, WORKERS),
    "quasi_global_adam": (0.1, GOSSIP),
    "quasi_global_momentum": (0.1, GOSSIP),
    "relay": (CHAIN, WORKERS),
    "relay_sgd": (0.1, CHAIN, WORKERS),
    "relay_sgd_grad": (0.1, CHAIN, WORKERS),
    "sgp": (0.1, DIRECTED, WORKERS),
    "sharded": (djax.gossip(topologies.ring(2), ACROSS), LOCAL),
    "slowmo": (optax.sgd(0.1), WORKERS),
    "sparse": (GOSSIP, 0.1),
    "streaming_diloco": (optax.sgd(0.1), WORKERS),
}


def returns_a_transformation(name):
    annotations = getattr(getattr(djax, name), "__annotations__", {})
    returned = str(annotations.get("return"))
    return "GradientTransformation" in returned or "Mechanism" in returned


def test_the_table_is_complete():
    made = {name for name in dir(djax) if returns_a_transformation(name)}
    assert made - {"acid", "adpsgd", "mechanism", "only"} == MAKERS.keys()


@pytest.mark.parametrize("name", MAKERS)
def test_it_works_or_says_what_is_static(name):
    """Traced when the state is made, and again in every compiled step."""

    def step(static):
        make = optax.inject_hyperparams(getattr(djax, name), static_args=static)

        def worker(params):
            optimizer = make(*MAKERS[name])
            return optimizer.update(params, optimizer.init(params), params)[0]

        leaf = jnp.zeros((N, 2, 3))
        params = {name: leaf for name in "abcd"}  # As many as there are fragments.
        return jax.eval_shape(jax.jit(WORKERS.spmd(worker)), params)

    try:
        step(())
    except ValueError as error:
        pattern = rf"optax\.inject_hyperparams\({name}, static_args=\((.*)\)\)"
        named = re.search(pattern, str(error))
        assert named, error
        step(tuple(re.findall(r"'(\w+)'", named[1])))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda flag: djax.power_gossip(RING, WORKERS, rows_axis=flag), "rows_axis"),
        (lambda flag: djax.power_gossip(RING, WORKERS, rank=flag), "rank"),
        (lambda flag: djax.power_gossip(RING, WORKERS, 1, flag), "iterations"),
        (lambda flag: compressors.top_k(rank=1, rows_axis=flag), "rows_axis"),
        (lambda flag: compressors.random_k(rank=1, rows_axis=flag), "rows_axis"),
        (lambda flag: compressors.low_rank(1, rows_axis=flag), "rows_axis"),
        (lambda flag: compressors.low_rank(flag), "rank"),
        (lambda flag: djax.moniqua(RING, WORKERS, 1.0, 0.1, bits=flag), "bits"),
        (lambda flag: compressors.quantize(flag), "bits"),
        (lambda flag: compressors.quantize(4, bucket_size=flag), "bucket_size"),
        (lambda flag: djax.every(flag, GOSSIP), "every: k"),
        (lambda flag: djax.led(flag, GOSSIP), "led: period"),
        (lambda flag: djax.k_gt(flag, GOSSIP), "k_gt: period"),
        (lambda flag: djax.prox_skip(flag, GOSSIP, 0.1), "prox_skip: probability"),
        (lambda flag: djax.push_sum(DIRECTED, WORKERS, rounds=flag), "rounds"),
    ],
)
def test_a_truth_value_is_no_number(make, message):
    with pytest.raises(ValueError, match=message):
        make(True)


@pytest.mark.parametrize("flag", ["no", 1, None, 0.0])
@pytest.mark.parametrize(
    "make",
    [
        lambda flag: compressors.quantize(4, unbiased=flag),
        lambda flag: compressors.random_k(0.5, unbiased=flag),
    ],
)
def test_what_is_no_truth_value_is_refused(make, flag):
    with pytest.raises(ValueError, match="unbiased must be True or False, got"):
        make(flag)
