"""Models of very many small leaves: what is compiled must not grow with each of them.

A random draw is the slowest thing to compile of all that a mechanism does.
"""

import conformance
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import djax
from djax import communicators, compressors, topologies
from djax._counting import jaxprs_in

N = 4
RING, WORKERS = topologies.ring(N), communicators.simulated(N)

ROUNDED = {"biased": compressors.quantize(4, unbiased=False)}
ROUNDED["unbiased"] = compressors.quantize(8)
DRAWING = {
    "power_gossip": lambda c: djax.power_gossip(RING, c, 2),
    "cold power_gossip": lambda c: djax.power_gossip(RING, c, 2, 2, warm_start=False),
    "moniqua": lambda c: djax.moniqua(RING, c, 1.0, 0.1),
    "choco_gossip": lambda c: djax.choco_gossip(RING, c, ROUNDED["biased"], 0.1),
    "deep_squeeze": lambda c: djax.deep_squeeze(RING, c, ROUNDED["biased"], 0.1),
    "dcd": lambda c: djax.dcd(RING, c, ROUNDED["unbiased"]),
    "ecd": lambda c: djax.ecd(RING, c, ROUNDED["unbiased"]),
    "sparse": lambda c: djax.sparse(djax.gossip(RING, c), 0.3),
    "parts": lambda c: djax.sparse(djax.gossip(RING, c), 0.3, selection="shuffled"),
    "random_k": lambda c: djax.choco_gossip(RING, c, compressors.random_k(0.5), 0.1),
}
each_drawing = pytest.mark.parametrize("name", DRAWING)


def draws(jaxpr):
    """How many random draws a program has."""
    count = 0
    for equation in jaxpr.eqns:
        count += equation.primitive.name in ("random_bits", "threefry2x32")
        count += equation.params.get("name") == "random_words"
        count += sum(draws(inner) for inner in jaxprs_in(equation))
    return count


def programs(mechanism, leaves):
    """Those that start the state, and that make a step."""
    params = [jnp.ones((N, 3, 2 + i % 5)[: 2 + i % 2]) for i in range(leaves)]

    def worker(x):
        return mechanism.update(x, mechanism.init(x), x)

    for fn in (mechanism.init, worker):
        yield jax.make_jaxpr(WORKERS.spmd(fn))(params).jaxpr


@pytest.mark.slow
@each_drawing
def test_all_leaves_share_a_draw(name):
    few = [draws(p) for p in programs(DRAWING[name](WORKERS), 4)]
    many = [draws(p) for p in programs(DRAWING[name](WORKERS), 40)]
    assert many == few and 1 <= few[1]


SMALL = [(4, 6), (5,), (3, 8)]
TOGETHER = ["power_gossip", "moniqua", "choco_gossip", "deep_squeeze", "dcd", "ecd"]


def equations(jaxpr):
    """How many equations a program has, with all that is within it."""
    return sum(
        1 + sum(equations(inner) for inner in jaxprs_in(equation))
        for equation in jaxpr.eqns
    )


@pytest.mark.parametrize("name", TOGETHER)
def test_a_small_leaf_more_adds_little_to_a_program(name):
    """Less than three times as many equations as gossip needs for it."""

    def growth(mechanism):
        def worker(x):
            return mechanism.update(x, mechanism.init(x), x)

        few, many = (
            equations(
                jax.make_jaxpr(WORKERS.spmd(worker))(
                    [jnp.ones((N, *shape)) for shape in SMALL * count]
                ).jaxpr
            )
            for count in (3, 6)
        )
        return (many - few) / (3 * len(SMALL))

    assert growth(DRAWING[name](WORKERS)) < 3 * growth(djax.gossip(RING, WORKERS))


def mixed():
    """Leaves of several dtypes, some of them empty, and scalars."""
    rng = np.random.default_rng(0)
    shapes = [(), (0, 3), (3, 4), (5,)]
    return [
        jnp.asarray(rng.normal(size=(N, *shape)), dtype)
        for shape in shapes
        for dtype in (jnp.float64, jnp.float32, jnp.bfloat16)
    ]


@pytest.mark.slow
@each_drawing
def test_leaves_of_all_dtypes_and_sizes_have_a_part_of_the_draw(name):
    with jax.enable_x64(True):
        mechanism, params = DRAWING[name](WORKERS), mixed()
        models = conformance.average(mechanism, WORKERS, params, 5)
        for steps, before in zip(models, params, strict=True):
            x = steps[:, -1]
            assert x.dtype == before.dtype and x.shape == before.shape
            assert jnp.isfinite(x).all()
            assert x.size == 0 or (x != before).any()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["power_gossip", "cold power_gossip", "random_k"])
def test_both_ends_draw_the_same_in_simulation_and_on_a_mesh(name):
    """Of one program for all workers, and of a program with slices of its own."""
    rng, found = np.random.default_rng(1), []
    shapes = [(3, 4), (5,), (2, 3, 2)]
    params = [jnp.asarray(rng.normal(size=(N, *s)), jnp.float32) for s in shapes]
    for communicator in (WORKERS, communicators.mesh(N)):
        mechanism = DRAWING[name](communicator)

        def worker(x, mechanism=mechanism):
            def step(state, _):
                updates, state = mechanism.update(x, state, x)
                return state, updates

            return jax.lax.scan(step, mechanism.init(x), length=3)[1]

        found.append(jax.jit(communicator.spmd(worker))(params))
    for one, other in zip(*found, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)
