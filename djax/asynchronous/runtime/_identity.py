"""Describes a run, so that checkpoints of another run are not resumed by mistake."""

import zlib

import jax
import jax.numpy as jnp

from djax._interfaces import PyTree

from ..algorithms import EventTransformation
from ._settings import Settings


def identify(
    algorithm: EventTransformation,
    settings: Settings,
    params: PyTree,
    model_state: PyTree,
) -> dict[str, str]:
    """Returns values by name that have to be equal in a run and in its resumption.

    Args:
      algorithm: the asynchronous algorithm.
      settings: the settings of the run.
      params: one worker's model.
      model_state: one worker's model state.
    """
    state = jax.eval_shape(algorithm.init, params)
    common = settings.common
    graph = f"{settings.topology.edges} {settings.topology.rounds} {common['rates']}"
    return {
        "the algorithm": type(state).__name__,
        "the optimizer's state": str(jax.tree.structure(state)),
        "the algorithm's constants": _probe(algorithm, params),
        "the graph and rates": f"{zlib.crc32(graph.encode()):08x}",
        "params": describe_arrays((params, model_state)),
        **{name: common[name] for name in ("pairing", "random_times", "seed")},
    }


def describe_arrays(tree: PyTree) -> str:
    """Returns a tree's structure, shapes and dtypes as text."""
    return str(jax.tree.map(lambda x: f"{x.dtype}{list(x.shape)}", tree))


def _probe(algorithm: EventTransformation, params: PyTree) -> str:
    """Returns results of averaging and mixing, which differ if any constant does."""

    @jax.jit
    def act(params):
        zeros = jax.tree.map(jnp.zeros_like, params)
        ones = jax.tree.map(jnp.ones_like, params)
        updates, state = algorithm.average(ones, algorithm.init(zeros), zeros)
        mixed, _ = algorithm.mix(updates, state, jnp.float32(1))
        return [jnp.ravel(jax.tree.leaves(tree)[0])[:1] for tree in (updates, mixed)]

    return " ".join(f"{x:.6g}" for values in act(params) for x in values.tolist())
