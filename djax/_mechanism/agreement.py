"""The comparison between processes when a mechanism starts.

Under MPI, each rank runs a program of its own. If ranks were started with different
parameters, graphs or options, MPI would stop with an error that names none of these, or
the ranks would average wrong values without an error. For this reason, the `init` of
each mechanism compares parameters, graphs and options between all ranks once.
"""

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager
from contextvars import ContextVar
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from djax._arrays.checks import named_leaves
from djax._arrays.keys import is_key
from djax._context import setting
from djax._counting import present_counter
from djax._interfaces import Communicator, Compressor, PyTree
from djax.topologies import Graph, Schedule, Topology

from .states import GraphLabel

_AROUND: ContextVar[tuple[str, ...]] = ContextVar("djax_around", default=())


def around(form: str) -> AbstractContextManager[tuple[str, ...]]:
    """Tells mechanisms that are initialized within the context what wraps them.

    Args:
      form: text of the wrapper, with `{}` for the mechanism, such as `every(4, {})`.
    """
    return setting(_AROUND, (*_AROUND.get(), form))


def check_same(
    mechanism: str, communicator: Communicator, params: PyTree, **given: Any
) -> None:
    """Compares the start of a mechanism between all processes.

    The comparison waits for the other processes, at most as long as the start of MPI
    does. Within `jax.jit` the comparison is made when the program runs, and options
    that are traced are compared by their types alone. `jax.eval_shape` and
    :func:`djax.communication_cost` run no program and compare nothing.

    Args:
      mechanism: the name of the mechanism.
      communicator: how its messages travel; only with MPI are there other processes.
      params: this worker's parameters; structure, shapes and dtypes are compared.
      **given: those arguments of the mechanism that have to be the same on all ranks.

    Raises:
      ValueError: if something differs; the error names it, and on which ranks. Within
        `jax.jit` the program raises `jax.errors.JaxRuntimeError` with this text.
    """
    if communicator.size == 1 or present_counter() is not None:
        return
    facts = _facts(mechanism, params, given)
    communicator.compare_starts(mechanism, facts, params)


def _facts(mechanism: str, params: PyTree, given: dict[str, Any]) -> dict[str, Any]:
    """Names what is compared; the values can be sent and can be shown as text."""
    for form in reversed(_AROUND.get()):
        mechanism = form.format(mechanism)
    facts: dict[str, Any] = {"the mechanism": mechanism}
    for path, leaf in named_leaves(params):
        facts[f"params{path}"] = _type(leaf)
    for name, value in given.items():
        if isinstance(value, Topology):
            facts["the graph"] = _labelled(value, [np.asarray(value.rounds)])
            facts["the graph's weights"] = _labelled(value, _weights(value))
        elif isinstance(value, Schedule):
            facts["the schedule"] = _labelled(value, _weights(value))
        elif isinstance(value, Compressor):
            facts["the compressor"] = value.compress.__qualname__.partition(".")[0]
            facts["the compressor's messages"] = _message_type(value, params)
        else:
            facts[name] = text_of(value)
    return facts


def _weights(graph: Graph) -> Iterator[np.ndarray]:
    """The weights of all steps and their places."""
    for t in range(graph.period):
        matrix = graph.weights_at(t).copy()
        # Different machines may round the same weights differently.
        matrix.data = np.round(matrix.data, 9)
        matrix.eliminate_zeros()
        yield from (matrix.indptr, matrix.indices, matrix.data)


def _labelled(graph: Graph, numbers: Iterable[np.ndarray]) -> GraphLabel:
    """Makes a label that compares a graph by its numbers, and shows it by its name."""
    digest = hashlib.sha256()
    for array in numbers:
        same = array.astype(np.float64)
        digest.update(f"{same.shape}".encode() + same.tobytes())
    return GraphLabel(graph.name, graph.size, digest.hexdigest()[:12])


def _type(x: Any) -> str:
    shape = ", ".join(map(str, np.shape(x)))
    return f"{jnp.result_type(x)}[{shape}]"


def _message_type(code: Compressor, params: PyTree) -> str:
    """Shapes and dtypes of a code's messages, which depend on most of its options."""
    message = jax.eval_shape(lambda x: code.compress(x, code.init(x))[0], params)
    return " ".join(map(_type, jax.tree.leaves(message)))


def text_of(value: Any) -> str:
    """The text by which an argument is compared; of a traced one, only its type."""
    if isinstance(value, jax.core.Tracer):
        return _type(value)
    if is_key(value):
        # Within a traced program, the data of a key would otherwise be traced as well.
        with jax.ensure_compile_time_eval():
            return f"the key {np.asarray(jax.random.key_data(value)).tolist()}"
    if isinstance(value, (jax.Array, np.ndarray, np.generic)):
        return str(np.asarray(value).tolist())
    return str(value)


def differences(facts: list[dict[str, Any]]) -> list[str]:
    """Says in words what is not the same on all ranks.

    Args:
      facts: the facts of each rank, by name. If the mechanisms are different ones, only
        their names are compared.
    """
    found = []
    for name in dict.fromkeys(name for each in facts for name in each):
        ranks: dict[Any, list[int]] = {}
        for rank, each in enumerate(facts):
            ranks.setdefault(each.get(name, "missing"), []).append(rank)
        if len(ranks) > 1:
            found.append(
                f"{name} is "
                + " but ".join(f"{value} on {_on(r)}" for value, r in ranks.items())
            )
            if name == "the mechanism":
                break
    return found


def _on(ranks: list[int]) -> str:
    """Names a few ranks."""
    if len(ranks) == 1:
        return f"rank {ranks[0]}"
    more = f" and {len(ranks) - 4} more" if len(ranks) > 4 else ""
    return f"ranks {', '.join(map(str, ranks[:4]))}{more}"
