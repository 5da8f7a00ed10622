"""What is learned: data, model, loss and score."""

import ast
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from sklearn import datasets, model_selection

from . import partition
from .errors import UsageError, lookup
from .models import MLP
from .quadratics import random_quadratics


class Setting(NamedTuple):
    """Who learns a task.

    Attributes:
      workers: number of workers.
      local_ranks: those of this process; data are made for them alone.
      split: which samples each holds, see :mod:`experiments.common.partition`.
      batch_size: samples of a worker's step.
      seed: of the split, the batches and the noise.
    """

    workers: int
    local_ranks: Sequence[int]
    split: str
    batch_size: int
    seed: int


class Task(NamedTuple):
    """What the trainer needs to know.

    Attributes:
      init: `key -> params`, one model's parameters.
      gradient_fn: as :func:`djax.simulation.make_steps` takes it; its metrics have a
        `loss`.
      evaluate: `params -> {name: float[]}` of one model, on what is held out.
      score: which of those names counts.
      higher_is_better: whether a good score is a high one.
      batches: `epoch -> tree`, for the local workers, leaves `[local, steps, ...]`.
      steps_per_epoch: number of steps in one epoch.
      model_state: of the local workers, leaves `[local, ...]`; `()` if there is none.
      dispatch: as :func:`djax.simulation.make_steps` takes it.
      class_counts: `int[workers, classes]`, samples held; None without classes.
    """

    init: Callable[[jax.Array], Any]
    gradient_fn: Callable[[Any, Any, Any], tuple[Any, Any, dict[str, jax.Array]]]
    evaluate: Callable[[Any], dict[str, jax.Array]]
    score: str
    higher_is_better: bool
    batches: Callable[[int], Any]
    steps_per_epoch: int
    model_state: Any = ()
    dispatch: bool = False
    class_counts: np.ndarray | None = None


def digits(setting: Setting, hidden: Sequence[int] = (128,)) -> Task:
    """Handwritten digits (1,797 images of 8 x 8, ten classes), and an MLP.

    A fifth of each class is held out for the evaluation.

    Args:
      setting: who learns.
      hidden: widths of the hidden layers.
    """
    images, labels = datasets.load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = model_selection.train_test_split(
        np.asarray(images, np.float32) / 16,
        np.asarray(labels, np.int32),
        test_size=0.2,
        stratify=labels,
        random_state=0,
    )
    shares = partition.split(y_train, setting.workers, setting.split, setting.seed)
    steps = steps_per_epoch(shares, setting.batch_size)
    model = MLP((*hidden, 10))

    def loss_fn(params, batch):
        images, labels = batch
        logits = jnp.asarray(model.apply(params, images))
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        return losses.mean(), logits

    def gradient_fn(params, model_state, batch):
        (loss, _), grads = jax.value_and_grad(loss_fn, has_aux=True)(params, batch)
        return grads, model_state, {"loss": loss}

    def evaluate(params):
        loss, logits = loss_fn(params, (jnp.asarray(x_test), jnp.asarray(y_test)))
        accuracy = jnp.mean((logits.argmax(-1) == y_test).astype(loss.dtype))
        return {"loss": loss, "accuracy": accuracy}

    def batches(epoch):
        chosen = np.stack(
            [
                _shuffled_batches(shares[rank], setting, steps, epoch, rank)
                for rank in setting.local_ranks
            ]
        )
        return x_train[chosen], y_train[chosen]

    return Task(
        init=lambda key: model.init(key, jnp.zeros((1, x_train.shape[1]))),
        gradient_fn=gradient_fn,
        evaluate=evaluate,
        score="accuracy",
        higher_is_better=True,
        batches=batches,
        steps_per_epoch=steps,
        class_counts=partition.count_classes(y_train, shares),
    )


def quadratics(
    setting: Setting,
    dim: int = 10,
    heterogeneity: float = 1.0,
    noise: float = 0.0,
    distance: float = 10.0,
    smallest: float | None = 0.5,
    steps_per_epoch: int = 10,
) -> Task:
    r"""Random quadratics: each worker follows :math:`A_i^\top (A_i x - b_i)` + noise.

    The score is the suboptimality of a model under the mean objective. The split and
    the batch size play no role.

    Args:
      setting: who learns.
      dim: number of parameters.
      heterogeneity: mean squared norm of the workers' gradients at the optimum.
      noise: standard deviation of a gradient, over all coordinates together.
      distance: of the optimum from the start.
      smallest: smallest singular value of each matrix (the largest is 1), or None for
        those of a Gaussian matrix.
      steps_per_epoch: how many steps are called an epoch.
    """
    problem = random_quadratics(
        setting.workers,
        dim,
        heterogeneity,
        distance=distance,
        smallest=smallest,
        seed=setting.seed,
    )
    best = problem.value(problem.optimum)
    local = np.asarray(setting.local_ranks)

    def gradient_fn(params, objective, noise):
        matrix, offset = objective
        residual = matrix @ params - offset
        gradient = matrix.T @ residual + noise
        return gradient, objective, {"loss": jnp.sum(residual**2)}

    def evaluate(params):
        # f(x) - f* is the mean of |A_i (x - x*)|^2: no cancellation near the optimum.
        matrices = jnp.asarray(problem.matrices, params.dtype)
        offset = params - jnp.asarray(problem.optimum, params.dtype)
        suboptimality = jnp.sum((matrices @ offset) ** 2) / setting.workers
        return {"loss": suboptimality + best, "suboptimality": suboptimality}

    def batches(epoch):
        shape = (steps_per_epoch, dim)
        draws = [
            _rng(setting, epoch, rank).standard_normal(shape)
            for rank in setting.local_ranks
        ]
        return np.stack(draws) * (noise / np.sqrt(dim))

    return Task(
        init=lambda key: jnp.zeros(dim),
        gradient_fn=gradient_fn,
        evaluate=evaluate,
        score="suboptimality",
        higher_is_better=False,
        batches=batches,
        steps_per_epoch=steps_per_epoch,
        model_state=(problem.matrices[local], problem.offsets[local]),
    )


TASKS: dict[str, Callable[..., Task]] = {"digits": digits, "quadratics": quadratics}


def make_task(name: str, setting: Setting, options: Mapping[str, str]) -> Task:
    """Makes a task by its name on the command line.

    Args:
      name: a key of `TASKS`.
      setting: who learns.
      options: the task's own arguments, as Python literals.

    Raises:
      UsageError: if the name or an option is unknown, or the task refuses a value.
    """
    make = TASKS[lookup("--task", name, TASKS)]
    values = read_options(f"--task-options of {name}", make, options)
    try:
        return make(setting, **values)
    except (TypeError, ValueError) as error:
        raise UsageError(f"--task {name} with options {values}: {error}") from error


def read_options(
    what: str, make: Callable, options: Mapping[str, str], *, given: int = 1
) -> dict[str, Any]:
    """Reads `name=value` options of a function from the command line.

    Args:
      what: they are, for errors.
      make: the function.
      options: its arguments, as Python literals.
      given: how many of its first arguments are not the user's.

    Raises:
      UsageError: if the function has no such option, or a value is no literal.
    """
    known = list(inspect.signature(make).parameters)[given:]
    values = {}
    if options and not known:
        raise UsageError(f"{what}: there are none, but {', '.join(options)} was given.")
    for name, text in options.items():
        lookup(what, name, known)
        try:
            values[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            raise UsageError(
                f"{what}: cannot read {name}={text}; write a number, a tuple, True, "
                "False or None."
            ) from None
    return values


def steps_per_epoch(shares: Sequence[np.ndarray], batch_size: int) -> int:
    """How many full batches everyone has.

    Raises:
      UsageError: if somebody has not even one.
    """
    smallest = min(map(len, shares))
    if not 1 <= batch_size <= smallest:
        raise UsageError(
            f"--batch-size {batch_size} does not fit the smallest share of "
            f"{smallest} samples; use from 1 to {smallest}, or fewer workers."
        )
    return smallest // batch_size


def _shuffled_batches(share, setting, steps, epoch, rank) -> np.ndarray:
    """`int[steps, batch_size]`: one pass over a share, the incomplete batch dropped."""
    order = _rng(setting, epoch, rank).permutation(share)
    return order[: steps * setting.batch_size].reshape(steps, setting.batch_size)


def _rng(setting: Setting, epoch: int, rank: int) -> np.random.Generator:
    return np.random.default_rng((setting.seed, epoch, rank))
