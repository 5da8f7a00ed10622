"""Finds mistakes in optimizers that raise no error, by a trial on tiny models.

A chain of optax takes its links in any order. A wrong order, or a mask that leaves out
all parameters, raises no error: the run just ends at a wrong point. A few steps on tiny
models are enough to see such a mistake, since the workers then do what workers of a
decentralized algorithm never do: they stay apart, move their mean, or climb along the
gradient. :func:`check` makes these steps with the user's optimizer and communicator.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arguments import of_the_run
from djax._arrays.checks import check_arrays
from djax._interfaces import Communicator, PyTree
from djax._mechanism.refusals import Part
from djax._mechanism.value import parts_within
from djax._transformations import as_transformation

from .codes import problems_of_codes
from .meeting import Meeting, cut_off, loses, meet
from .trial import Trial

_EXTENT = 4  # Each dimension of a parameter is cut to this number of entries.
# Rounding moves the mean of the workers by less than this share of their distance.
_MOVED = 0.02
_REMEDY = "optax.chain(optax.sgd(0.1), djax.gossip(graph, communicator))"


def check(
    optimizer: optax.GradientTransformation, communicator: Communicator, params: PyTree
) -> None:
    """Finds mistakes in an optimizer that would let a run end at a wrong point.

    Call it once before a long run. The optimizer makes 64 steps on tiny models, and up
    to 4096 until the workers have met. The tiny models have the tree structure, the
    dtypes and the numbers of dimensions of the parameters, but at most 4 entries in
    each dimension. The check finds that

    * workers never meet: the optimizer contains no mechanism, or a mask leaves out all
      of its parameters;
    * some workers never hear of others, in a parameter that the others average;
    * models that start apart do not come together, as in `chain(gossip, sgd)`, where
      the optimizer takes the averaging for a gradient;
    * models climb along the gradient, as in `every(4, chain(sgd, gossip))`, which adds
      raw gradients to the models;
    * averaging moves the mean of the workers, as in `chain(sgd, gossip, clip)`. This is
      not checked where messages get lost, nor for mechanisms that do not promise to
      keep the mean (`relay`, `dcd`, `ecd`, `quasi_global_adam`, those made by
      :func:`djax.mechanism`);
    * a code that does not declare its class is not a contraction, within `choco_gossip`
      and `deep_squeeze`, or biased, within `dcd` and `ecd`, as measured on random
      trees.

    Step sizes are not judged: a consensus rate or a learning rate that is too large for
    the real model and its data may pass. Masks have to decide by names, dtypes or
    numbers of dimensions, and not by sizes, which differ from those of the real model.

    Args:
      optimizer: the whole chain that is going to train.
      communicator: connects the workers. Under MPI all processes have to call `check`.
      params: the parameters of ONE worker, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      None, since an optimizer with mistakes raises an error.

    Raises:
      TypeError: if `optimizer` is not an optax transformation, which also holds for
        asynchronous algorithms such as :func:`djax.acid`, if `communicator` is no
        communicator, or if a leaf is not an array.
      ValueError: if there are mistakes. The error names all of them, each with its
        remedy. Under MPI all processes raise the same error.

    Examples:
      >>> import djax, jax, optax
      >>> ring, workers = djax.topologies.ring(8), djax.communicators.simulated(8)
      >>> params = {"w": jax.ShapeDtypeStruct((784, 10), "float32")}
      >>> gossip = djax.gossip(ring, workers)
      >>> djax.check(optax.chain(optax.sgd(0.1), gossip), workers, params)
      >>> djax.check(optax.chain(gossip, optax.sgd(0.1)), workers, params)
      Traceback (most recent call last):
      ...
      ValueError: check: the optimizer has 1 problem.
      1. Models that start apart do not come together ...

    References:
      Lian et al., `Can Decentralized Algorithms Outperform Centralized Algorithms?
      <https://arxiv.org/abs/1705.09056>`_, 2017: first the step, then the average;
      Koloskova, Stich and Jaggi, `Decentralized Stochastic Optimization and Gossip
      Algorithms with Compressed Communication <https://arxiv.org/abs/1902.00340>`_,
      2019: what a contraction is
    """
    optimizer = as_transformation("check", optimizer)
    communicator = of_the_run("check", communicator)
    check_arrays("check", params, what="params", modules=False)
    shapes = jax.tree.map(_shape_of, params)
    small = jax.tree.map(
        lambda x: x.update(shape=tuple(min(n, _EXTENT) for n in x.shape)), shapes
    )
    all_rows = jax.tree.map(
        lambda x: x.update(shape=(communicator.rows, *x.shape)), small
    )
    parts = parts_within(optimizer, communicator, all_rows)
    trial = Trial(optimizer, communicator, small, _groups(parts))
    problems = problems_of_codes(parts, communicator, shapes)
    if trial.paths and trial.size > 1:
        problems += _problems_of_averaging(trial, parts)
    if trial.paths:
        problems += _problems_of_gradients(trial)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        listed = "".join(f"\n{i}. {text}" for i, text in enumerate(problems, 1))
        raise ValueError(f"check: the optimizer has {count}.{listed}")


def _problems_of_averaging(trial: Trial, parts: Sequence[Part]) -> list[str]:
    """Describes what is wrong with the averaging of workers without gradients."""
    met = meet(trial, parts)
    if not met.finite:
        return []  # Training raises an error of its own for values that are not finite.
    if met.never:
        return [_never(met, parts)]
    problems = []
    apart = met.together & ~(met.shrunk < 0.99)
    moved = met.together & ~apart & (met.mean_moved > _MOVED + 16 * trial.precisions)
    if apart.any():
        problems.append(_stays_apart(trial, met, apart, parts))
    elif (silent := cut_off(trial, parts, met)).any():
        problems.append(_is_cut_off(trial, met, silent))
    if moved.any() and _keep_mean(parts):
        problems.append(_moves_mean(trial, met, moved))
    return problems


def _stays_apart(
    trial: Trial, met: Meeting, apart: np.ndarray, parts: Sequence[Part]
) -> str:
    outer = any(part.name == "outer" for part in parts)
    worst = np.nanmax(met.shrunk[apart], initial=0) ** 0.5
    return (
        "Models that start apart do not come together without gradients: in "
        f"{met.steps} steps their distance to the mean is multiplied by {worst:.3g}"
        f"{_where(trial, apart)}. Put the mechanism last, as in {_REMEDY}: an "
        "optimizer behind it takes the averaging for a gradient. If it is the last "
        "link, its consensus rate is too large, or its code too coarse."
        + " The momentum or the learning rate of the outer optimizer may be too large."
        * outer
    )


def _is_cut_off(trial: Trial, met: Meeting, silent: np.ndarray) -> str:
    workers = _listed([i for i, row in enumerate(silent) if row.any()])
    leaves = np.asarray(silent.any(axis=0))
    return (
        f"Some workers never hear of others{_where(trial, leaves)}: in {met.steps} "
        f"steps the workers {workers} are the same whatever worker 0, or worker "
        f"{trial.size - 1}, starts from. Average over a graph that connects all "
        "workers, and give all of them the same mask."
    )


def _moves_mean(trial: Trial, met: Meeting, moved: np.ndarray) -> str:
    return (
        "Averaging moves the mean of the workers, without gradients by "
        f"{met.mean_moved[moved].max():.1%} of their distance at the start"
        f"{_where(trial, moved)}. Put links that bound or normalize updates, such "
        "as optax.clip, in front of the mechanism: behind it they cut what one "
        "worker gains and another one loses by different amounts."
    )


def _never(met: Meeting, parts: Sequence[Part]) -> str:
    """Describes why no worker hears of another one."""
    if not parts:
        return (
            "The workers never meet: the optimizer contains no mechanism. Append one, "
            f"as in {_REMEDY}."
        )
    names = ", ".join(dict.fromkeys(part.name for part in parts))
    return (
        f"The workers never meet: in {met.steps} steps {names} averages no parameter. "
        "Give optax.masked or djax.only a mask that is True for some of them; a mask "
        "that is a function is asked about parameters that are cut to at most "
        f"{_EXTENT} entries in each dimension."
    )


def _problems_of_gradients(trial: Trial) -> list[str]:
    """Describes how models move along a gradient that is equal on all workers."""
    zeros, gradients = trial.models(0), trial.gradients()
    group = trial.group(zeros, gradients)
    _, seen = trial.advance(group, group.params)
    raw = (abs(seen.climbed - 1) < 0.01).any(0)
    climbs = raw | ((seen.climbed > -1e-6) & (seen.climbed.max(0) > 1e-6)).all(0)
    if not climbs.any():
        return []
    what = "raw gradients are added to them" if raw.any() else "the sign is wrong"
    return [
        "Models climb along the gradient, with the same gradient on all workers"
        f"{_where(trial, climbs)}: {what}. Give every, d2 and other wrappers the "
        "mechanism alone, without its optimizer, as in optax.chain(optax.sgd(0.1), "
        "djax.every(4, gossip)). Where optax.masked leaves a parameter out of the "
        "optimizer, its gradient passes as it is: use optax.partition with "
        "optax.set_to_zero."
    ]


def _groups(parts: Sequence[Part]) -> np.ndarray | None:
    """The number of each worker's group, if workers of a group have to start equal."""
    found = (part.conditions.get("equal_within") for part in parts)
    local = next((each for each in found if each is not None), None)
    return None if local is None else local.level.circle_of


def _keep_mean(parts: Sequence[Part]) -> bool:
    """Whether all mechanisms promise to keep the mean of the workers."""
    moves = any(part.facts.get("moves_mean") or loses(part) for part in parts)
    return bool(parts) and not moves


def _where(trial: Trial, leaves: np.ndarray) -> str:
    """Names the leaves that are True, unless all of them are."""
    if leaves.all():
        return ""
    names = [path for path, is_one in zip(trial.paths, leaves, strict=True) if is_one]
    return f", in {_listed([f'params{name}' for name in names])}"


def _listed(items: Sequence[Any]) -> str:
    """Lists the first three items, and the number of the others."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
