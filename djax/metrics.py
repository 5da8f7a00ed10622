r"""How far the workers are from each other, and how good their models are.

The first three functions, :func:`mean_params`, :func:`worker_distance` and
:func:`consensus_distance`, say what one worker does, as mechanisms do: they run inside
:meth:`djax.Communicator.spmd`, on the parameters :math:`x_i` of one worker. Each of
them makes one all-reduce of arrays like the parameters.

:func:`evaluate` is called outside of the program of one worker, between training steps.
It evaluates the model of every worker, and the averaged model, on held-out data.

Examples:
  >>> import djax, jax, jax.numpy as jnp
  >>> communicator = djax.communicators.simulated(2)
  >>> params = {"w": jnp.asarray([[0.0, 0.0], [2.0, 4.0]])}
  >>> distance = lambda x: djax.metrics.consensus_distance(x, communicator)
  >>> print(communicator.spmd(distance)(params))
  [5. 5.]
"""

# This file is longer than 300 lines because a third of it describes arguments and
# results.

import functools
import operator
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._arguments import check_flags, of_the_run
from ._arrays.checks import (
    check_arrays,
    check_averageable,
    check_leading_axis,
    is_array,
    named_leaves,
    shortened,
)
from ._arrays.precision import promote
from ._interfaces import Communicator, PyTree
from ._layout import to_local
from ._values import describe

__all__ = [
    "Scores",
    "consensus_distance",
    "evaluate",
    "mean_params",
    "worker_distance",
]
__dir__ = __all__.copy  # For dir() and completion.

# Programs of this many evaluations are kept: a script has one or two.
_KEPT_PROGRAMS = 8


class Scores(NamedTuple):
    """One score of all workers' models, and of the averaged model.

    Attributes:
      workers: `float64[size]`, the score of each worker's model, in the order of ranks.
      mean: the mean of `workers`.
      worst: the smallest score of a worker, or the largest if lower is better.
      averaged: the score of the averaged model.
    """

    workers: np.ndarray
    mean: float
    worst: float
    averaged: float


def mean_params(params: optax.Params, communicator: Communicator) -> optax.Params:
    r"""The averaged model :math:`\bar x = \frac1n \sum_i x_i`.

    Args:
      params: the parameters of this worker, a tree of arrays of floats.
      communicator: connects the workers.

    Returns:
      A tree like `params`, the same on every worker. The leaves keep their dtypes.
    """
    return communicator.mean(params)


def worker_distance(params: optax.Params, communicator: Communicator) -> jax.Array:
    r"""This worker's squared distance from the mean, :math:`\|x_i - \bar x\|^2`.

    Args:
      params: the parameters of this worker.
      communicator: connects the workers.

    Returns:
      `float[]`, the sum over all leaves, in float32 or wider; 0 if there are no leaves.
    """
    check_averageable("worker_distance", params)
    promoted = jax.tree.map(promote, params)
    mean = mean_params(promoted, communicator)
    squares = jax.tree.map(
        lambda x, m: jnp.sum(jnp.square(jnp.abs(x - m))), promoted, mean
    )
    leaves = jax.tree.leaves(squares)
    return functools.reduce(operator.add, leaves) if leaves else jnp.zeros(())


def consensus_distance(params: optax.Params, communicator: Communicator) -> jax.Array:
    r"""The variance of the workers' models, :math:`\frac1n \sum_i \|x_i - \bar x\|^2`.

    Args:
      params: the parameters of this worker.
      communicator: connects the workers.

    Returns:
      `float[]`, the same on every worker, in float32 or wider.
    """
    return communicator.mean(worker_distance(params, communicator))


def evaluate(
    evaluate_fn: Callable[[Any, Any], Mapping[str, Any]],
    params: PyTree,
    batches: Iterable[PyTree],
    communicator: Communicator,
    *,
    lower_is_better: Sequence[str] = ("loss",),
    dispatch: bool = False,
) -> dict[str, Scores]:
    """Evaluates each worker's model, and the averaged model, on the same data.

    The mean of the workers' losses hides a worker that has not learned, and a single
    model does not show how far the workers are apart. Papers therefore report the
    worst worker, the mean of the workers and the averaged model, which is what this
    function returns.

    Every process has to call the function, with the same data. The programs are
    compiled in the first call and kept, as long as `evaluate_fn` and `communicator` are
    the same objects: define `evaluate_fn` once, outside of the loop over epochs.

    Args:
      evaluate_fn: the function that evaluates ONE model, `(params, batch) -> scores`.
        It returns a dictionary of scalars, such as `{"accuracy": ..., "loss": ...}`.
        Each of them is a mean over the samples of the batch.
      params: the models of the local workers, a tree of arrays of floats `[local
        workers, ...]`. A model with statistics, as those of batch normalization, passes
        the pair `(params, statistics)`, and `evaluate_fn` gets such a pair. The
        averaged model then has the mean of the workers' statistics.
      batches: the batches of the held-out data, an iterable of trees of arrays `[batch,
        ...]`. Data that fit into one batch are passed as `[data]`. The batches may have
        different sizes: each counts as often as it has samples. A batch without arrays,
        `()`, counts as one sample.
      communicator: where the workers live.
      lower_is_better: the names of the scores whose `worst` is the largest one.
      dispatch: whether the models are evaluated one after another, as in
        :func:`djax.training.make_steps`. On CPUs, this is faster for models with
        convolutions.

    Returns:
      The :class:`Scores` of each name, the same on every process. They are added up in
      float64.

    Raises:
      TypeError: if `evaluate_fn` does not return a dictionary of real scalars, a leaf
        of `params` is not an array of floats, `batches` is not an iterable of batches,
        or `communicator` is not a communicator.
      ValueError: if a leaf of `params` has no leading axis of local workers, there are
        no batches, the arrays of a batch differ in their numbers of samples,
        `lower_is_better` has a name that `evaluate_fn` does not return ("loss" is
        allowed), or processes have different numbers of samples.

    Examples:
      >>> import djax, jax.numpy as jnp
      >>> communicator = djax.communicators.simulated(2)
      >>> def evaluate_fn(w, batch):  # what ONE model scores
      ...     errors = w * batch["x"] - batch["y"]
      ...     return {"loss": jnp.mean(errors**2)}
      >>> data = {"x": jnp.asarray([1.0, 2.0]), "y": jnp.asarray([2.0, 4.0])}
      >>> models = jnp.asarray([1.0, 3.0])  # of two workers; 2 would be right
      >>> scores = djax.metrics.evaluate(evaluate_fn, models, [data], communicator)
      >>> print(scores["loss"])
      Scores(workers=array([2.5, 2.5]), mean=2.5, worst=2.5, averaged=0.0)
    """
    communicator = of_the_run("evaluate", communicator)
    check_flags("evaluate", dispatch=dispatch)
    if not callable(evaluate_fn):
        raise TypeError(
            "evaluate: evaluate_fn must be a function (params, batch) -> scores, got "
            f"{describe(evaluate_fn)}."
        )
    check_leading_axis("evaluate", (), communicator.rows, {"params": params})
    check_averageable("evaluate", params)
    one, workers, average = _make_programs(evaluate_fn, communicator, dispatch)
    averaged = average(params)
    if communicator.sharding is None:
        averaged = _take(averaged, 0)
    samples, own, shared = [], [], []
    for batch in _check_batches(batches):
        samples.append(_count_samples(batch, len(samples)))
        if communicator.sharding is None:
            shared.append(one(averaged, batch))
        else:  # On a mesh, all workers evaluate the averaged model.
            shared.append(workers(averaged, batch))
        own.append(workers(params, batch))
        if len(own) == 1:
            _check_names(lower_is_better, shared[0])
    if not samples:
        raise ValueError("evaluate: batches is empty; it needs at least one batch.")
    own = to_local(communicator, own)
    if communicator.sharding is not None:
        shared = jax.tree.map(lambda x: x[0], to_local(communicator, shared))
    rows = _mean(own, samples), _mean(shared, samples), sum(samples)
    everyone = communicator.gather(_rows_of(rows, len(communicator.local_ranks)))
    return _collect(everyone, lower_is_better)


@functools.lru_cache(maxsize=_KEPT_PROGRAMS)
def _make_programs(
    evaluate_fn: Callable[[Any, Any], Mapping[str, Any]],
    communicator: Communicator,
    dispatch: bool,
) -> tuple[Callable, Callable, Callable]:
    """Makes programs that evaluate one model and all, and one that averages models."""

    @jax.jit
    def one(params, batch):
        scores = evaluate_fn(params, batch)
        _check_scores(scores)
        return dict(scores)

    def together(params, batch):
        return communicator.spmd(lambda own: one(own, batch))(params)

    def one_by_one(params, batch):
        scores = [one(_take(params, i), batch) for i in range(communicator.rows)]
        return jax.tree.map(lambda *values: jnp.stack(values), *scores)

    def average(params):
        return communicator.spmd(communicator.mean)(params)

    dispatched = dispatch and communicator.shares_device
    return one, one_by_one if dispatched else jax.jit(together), jax.jit(average)


@jax.jit
def _take(tree: PyTree, *index: int) -> PyTree:
    """Indexes all leaves in one program, faster than by one call for each leaf."""
    return jax.tree.map(lambda x: x[index], tree)


def _mean(results: list[dict[str, jax.Array]], samples: list[int]) -> dict[str, Any]:
    """Returns means over batches in float64, each as often as it has samples."""

    def mean(*values):
        numbers = [np.asarray(value, np.float64) for value in values]
        return np.average(numbers, axis=0, weights=samples)

    return jax.tree.map(mean, *results)


def _rows_of(rows: tuple[Any, Any, int], local: int) -> list[Any]:
    """Returns what each local worker tells the others, as Python numbers."""
    own, averaged, samples = rows
    averaged = {name: float(value) for name, value in averaged.items()}
    return [
        ({name: float(values[i]) for name, values in own.items()}, averaged, samples)
        for i in range(local)
    ]


def _collect(everyone: list[Any], lower_is_better: Sequence[str]) -> dict[str, Scores]:
    """Makes the scores of what all workers have told each other."""
    if len(counts := {samples for _, _, samples in everyone}) > 1:
        raise ValueError(
            "evaluate: the processes have evaluated different numbers of samples, "
            f"{sorted(counts)}; pass the same held-out data on every process."
        )
    _, averaged, _ = everyone[0]
    found = {}
    for name, score in averaged.items():
        workers = np.asarray([own[name] for own, _, _ in everyone])
        worst = workers.max() if name in lower_is_better else workers.min()
        found[name] = Scores(workers, float(workers.mean()), float(worst), score)
    return found


def _check_scores(scores: Any) -> None:
    """Raises TypeError unless a function has returned a dictionary of real scalars."""
    if not (isinstance(scores, Mapping) and scores):
        raise TypeError(
            "evaluate: evaluate_fn must return a dictionary of scalars with at least "
            f"one name, such as {{'loss': loss}}, got {describe(scores)}."
        )
    for name, value in scores.items():
        if not is_array(value):
            raise TypeError(
                f"evaluate: evaluate_fn returns {name!r} as {describe(value)}, but a "
                "score is a real scalar."
            )
        if np.shape(value) != () or jnp.iscomplexobj(value):
            raise TypeError(
                f"evaluate: evaluate_fn returns {name!r} of shape {np.shape(value)} "
                f"and dtype {jnp.result_type(value)}, but a score is a real scalar: "
                "return the mean over the samples of the batch."
            )


def _check_names(lower_is_better: Any, scores: Mapping[str, Any]) -> None:
    """Raises ValueError for a name that is not that of a score."""
    if isinstance(lower_is_better, str):
        raise ValueError(
            "evaluate: lower_is_better must be a list of names, got the text "
            f"{lower_is_better!r}; write ({lower_is_better!r},)."
        )
    for name in lower_is_better:
        if name not in scores and name != "loss":
            raise ValueError(
                f"evaluate: lower_is_better has the name {name!r}, but evaluate_fn "
                f"returns {', '.join(map(repr, scores))}."
            )


def _check_batches(batches: Any) -> Iterable[PyTree]:
    """Returns the batches, or raises TypeError if they may be a single batch."""
    single = isinstance(batches, Mapping) or is_array(batches)
    if single or not isinstance(batches, Iterable):
        raise TypeError(
            "evaluate: batches must be an iterable of batches, got "
            f"{shortened(batches)}; pass a list, such as [data] for a single batch."
        )
    return batches


def _count_samples(batch: PyTree, number: int) -> int:
    """Returns the length of the arrays of a batch, or raises unless it is the same."""
    name = f"batches[{number}]"
    check_arrays("evaluate", batch, what=name)
    shapes = {path: np.shape(leaf) for path, leaf in named_leaves(batch)}
    counts = {shape[:1] for shape in shapes.values()} or {(1,)}
    if len(counts) == 1 and (count := counts.pop()) not in ((), (0,)):
        return count[0]
    found = ", ".join(f"{name}{path} has shape {s}" for path, s in shapes.items())
    raise ValueError(
        "evaluate: the arrays of a batch need a leading axis of samples, of the same "
        f"positive length; {found}."
    )
