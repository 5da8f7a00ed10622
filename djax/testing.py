"""Tests of your own mechanism against plain NumPy, on every communicator.

A mechanism says what one worker does, so that mistakes in what all workers do together
are easily overlooked. In NumPy, the models of all workers are the rows of a matrix, and
the algorithm of all workers together is a few lines. :func:`assert_matches` runs both
on a small problem, and compares the models at the end.

The problem is quadratic, and each worker has a Hessian of its own. With equal Hessians,
the mean of the workers would follow exact gradient descent whatever they send, and the
test would prove nothing.

`import djax` does not import this module: write `import djax.testing`.
"""

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.typing import DTypeLike

from . import communicators as _communicators
from ._interfaces import Communicator, PyTree
from .topologies import Graph
from .training import apply_gradients

__all__ = [
    "Make",
    "Problem",
    "Reference",
    "assert_equal_models_stay_equal",
    "assert_keeps_mean",
    "assert_matches",
    "quadratics",
    "run",
]
__dir__ = __all__.copy  # For dir() and completion.

Make = Callable[[Graph, Communicator], optax.GradientTransformation]
Reference = Callable[..., np.ndarray]


class Problem(NamedTuple):
    """The objectives: worker i has `0.5 * sum(hessian[i] * (x - target[i]) ** 2)`.

    Attributes:
      hessian: `float[workers, 6]`, diagonals of the Hessians.
      target: `float[workers, 6]`, each worker's own optimum.
      start: `float[workers, 6]`, the models at the start.
    """

    hessian: np.ndarray
    target: np.ndarray
    start: np.ndarray

    @property
    def optimum(self) -> np.ndarray:
        """`float[6]`, the optimum of the mean of the workers' objectives."""
        return (self.hessian * self.target).sum(0) / self.hessian.sum(0)

    def gradient(self, x: np.ndarray) -> np.ndarray:
        """The gradients of all workers at their models, `float[workers, 6]`."""
        return self.hessian * (x - self.target)


def quadratics(size: int) -> Problem:
    """The problem on which mechanisms are tested, the same in every call.

    Args:
      size: number of workers.
    """
    rng, shape = np.random.default_rng(0), (size, 6)
    hessian, target = rng.uniform(0.5, 1.5, shape), rng.normal(size=shape)
    return Problem(hessian, target, np.random.default_rng(1).normal(size=shape))


def run(
    mechanism: optax.GradientTransformation,
    communicator: Communicator,
    *,
    steps: int = 20,
    learning_rate: optax.ScalarOrSchedule = 0.1,
    dtype: DTypeLike = "float32",
    problem: Problem | None = None,
    **extra_args: Any,
) -> np.ndarray:
    """Runs a mechanism behind SGD, all steps in one program.

    The six parameters of a worker are a vector of two entries and a 2 × 2 matrix.

    Args:
      mechanism: the link that follows `optax.sgd` in the chain.
      communicator: where the workers live. Under MPI all processes have to call it.
      steps: number of steps.
      learning_rate: learning rate of SGD.
      dtype: dtype of the parameters and gradients.
      problem: the objectives of the workers; :func:`quadratics` by default.
      **extra_args: further arguments of the mechanism's update, in each step.

    Returns:
      `[local workers, 6]`, the models of the workers of this process at the end.

    Examples:
      >>> import djax, djax.testing
      >>> ring, workers = djax.topologies.ring(4), djax.communicators.simulated(4)
      >>> djax.testing.run(djax.gossip(ring, workers), workers).shape
      (4, 6)
    """
    optimizer = optax.chain(optax.sgd(learning_rate), mechanism)
    program = _program(optimizer, communicator, steps, extra_args)
    return np.asarray(jax.jit(program)(*_arrays(communicator, dtype, problem)))


def _program(
    optimizer: optax.GradientTransformationExtraArgs,
    communicator: Communicator,
    steps: int,
    extra: Mapping[str, Any] = {},
) -> Callable[..., jax.Array]:
    """Makes the program of all steps; its arguments are those of :func:`_arrays`."""

    def worker(hessian, target, x):
        def step(carry, _):
            params, state = carry
            gradient = _unflatten(hessian * (_flatten(params) - target))
            return apply_gradients(optimizer, gradient, state, params, **extra), None

        carry = _unflatten(x), optimizer.init(_unflatten(x))
        (params, _), _ = jax.lax.scan(step, carry, length=steps)
        return _flatten(params)

    return communicator.spmd(worker)


def _arrays(
    communicator: Communicator, dtype: DTypeLike, problem: Problem | None = None
) -> list[jax.Array]:
    """The three arrays of the problem, for the workers of this process."""
    local = np.asarray(communicator.local_ranks)
    problem = quadratics(communicator.size) if problem is None else problem
    return [jnp.asarray(array[local], dtype) for array in problem]


def _unflatten(x: jax.Array) -> PyTree:
    return {"b": x[:2], "w": x[2:].reshape(2, 2)}


def _flatten(params: PyTree) -> jax.Array:
    return jnp.concatenate([params["b"], params["w"].ravel()])


def assert_matches(
    make: Make,
    reference: Reference,
    graph: Graph,
    communicators: Sequence[Communicator] | None = None,
    *,
    steps: int = 20,
    learning_rate: float = 0.1,
    dtype: Literal["float32", "float64"] = "float32",
) -> None:
    """Asserts that a mechanism does what a NumPy function of the matrices does.

    Args:
      make: makes the mechanism: `(graph, communicator) -> mechanism`.
      reference: the algorithm for all workers at once: `(gradient, x, learning_rate,
        steps, matrices) -> x`. The rows of `x`, `float[workers, 6]`, are the models of
        the workers, `gradient(x)` returns their gradients, and `matrices` is
        `graph.matrices`, `float[period, workers, workers]`; step 0 uses the first one.
      graph: a :class:`djax.Topology` or :class:`djax.Schedule`.
      communicators: where to run the mechanism. By default it runs wherever there can
        be as many workers as the graph has: in simulation, on the devices of this
        process, and, if mpirun started it, over MPI.
      steps: number of steps.
      learning_rate: learning rate of SGD.
      dtype: dtype of the parameters. Models have to be equal up to 1e-5 in float32, and
        up to 1e-12 in float64, which tells mistakes from rounding errors more clearly.

    Raises:
      AssertionError: if models differ; it shows them and names the communicator.

    Examples:
      >>> import djax, djax.testing
      >>> def make(graph, communicator):
      ...     def mix(model, state):
      ...         return djax.mixing.displacement(model, graph, communicator), state
      ...     return djax.mechanism(lambda params: (), mix, communicator, graph)
      >>> def reference(gradient, x, learning_rate, steps, matrices):
      ...     for _ in range(steps):
      ...         x = matrices[0] @ (x - learning_rate * gradient(x))
      ...     return x
      >>> ring = djax.topologies.ring(4)
      >>> djax.testing.assert_matches(make, reference, ring, dtype="float64")
    """
    wanted = _expected(reference, graph, steps, learning_rate)
    rtol = {"float32": 1e-5, "float64": 1e-12}[dtype]
    options = {"learning_rate": learning_rate, "dtype": dtype}
    for where, models in _models(make, graph, communicators, steps, **options):
        np.testing.assert_allclose(models, wanted, rtol, rtol / 10, err_msg=where)


def _expected(
    reference: Reference,
    graph: Graph,
    steps: int = 20,
    learning_rate: optax.ScalarOrSchedule = 0.1,
) -> np.ndarray:
    """Runs the reference; returns the models at the end, `float[workers, 6]`."""
    x, gradient = quadratics(graph.size).start, quadratics(graph.size).gradient
    return reference(gradient, x, learning_rate, steps, graph.matrices)


def assert_keeps_mean(
    make: Make,
    graph: Graph,
    communicators: Sequence[Communicator] | None = None,
    *,
    steps: int = 20,
) -> None:
    """Asserts that without gradients the mean of the workers stays where it is.

    Args:
      make: makes the mechanism: `(graph, communicator) -> mechanism`.
      graph: a :class:`djax.Topology` or :class:`djax.Schedule`.
      communicators: where to run the mechanism: see :func:`assert_matches`.
      steps: number of steps.

    Raises:
      AssertionError: if the mean moves.

    Examples:
      >>> import djax, djax.testing
      >>> djax.testing.assert_keeps_mean(djax.gossip, djax.topologies.star(4))
    """
    wanted = quadratics(graph.size).start.mean(axis=0)
    for where, models in _models(make, graph, communicators, steps, learning_rate=0.0):
        mean, about = models.mean(axis=0), f"the mean {where}"
        np.testing.assert_allclose(mean, wanted, 0, 1e-6, err_msg=about)


def assert_equal_models_stay_equal(
    make: Make,
    graph: Graph,
    communicators: Sequence[Communicator] | None = None,
    *,
    steps: int = 20,
) -> None:
    """Asserts that workers that start equal and have the same data stay equal.

    Args:
      make: makes the mechanism: `(graph, communicator) -> mechanism`.
      graph: a :class:`djax.Topology` or :class:`djax.Schedule`.
      communicators: where to run the mechanism: see :func:`assert_matches`.
      steps: number of steps.

    Raises:
      AssertionError: if the model of some worker differs from that of worker 0.

    Examples:
      >>> import djax, djax.testing
      >>> ring = djax.topologies.ring(4)
      >>> djax.testing.assert_equal_models_stay_equal(djax.gossip, ring)
    """
    alike = Problem(*(np.tile(x[:1], (graph.size, 1)) for x in quadratics(graph.size)))
    for where, models in _models(make, graph, communicators, steps, problem=alike):
        first, about = np.broadcast_to(models[0], models.shape), f"equal models {where}"
        np.testing.assert_allclose(models, first, 1e-5, 1e-6, err_msg=about)


def _models(
    make: Make,
    graph: Graph,
    communicators: Sequence[Communicator] | None,
    steps: int,
    **options: Any,
) -> Iterator[tuple[str, np.ndarray]]:
    """Runs a mechanism on every communicator, and gathers the models of all workers."""
    is_double = options.get("dtype") == "float64"
    for communicator in _all_of(graph, communicators):
        with jax.enable_x64(True) if is_double else contextlib.nullcontext():
            found = run(make(graph, communicator), communicator, steps=steps, **options)
        models = np.array(communicator.gather(list(found)))
        yield f"on {communicator}, after {steps} steps", models


def _all_of(
    graph: Graph, communicators: Sequence[Communicator] | None
) -> Sequence[Communicator]:
    """The given communicators; by default, all that this process can have."""
    if communicators is not None:
        return communicators
    found = [_communicators.simulated(graph.size)]
    if len(jax.devices()) >= graph.size:
        found.append(_communicators.mesh(graph.size))
    if _communicators.launcher_size() == graph.size:
        found.append(_communicators.mpi())
    return found
