"""Mistakes of composition that raise no error, found by a trial of the optimizer.

A chain of optax takes its links in any order. With the wrong one, or with a mask that
leaves nothing, nobody is told: the run just ends at a wrong point. What the workers do
then differs so much from decentralized training that a few steps on tiny models show
it. :func:`check` makes these steps by the user's own optimizer and communicator.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from djax._arguments import check_communicator
from djax._arrays.checks import check_arrays
from djax._interfaces import (
    Communicator,
    PyTree,
)
from djax._mechanism.refusals import Part
from djax._mechanism.value import parts_within
from djax._transformations import as_transformation

from .codes import problems_of_codes
from .meeting import (
    Meeting,
    cut_off,
    loses,
    meet,
)
from .trial import Trial

_EXTENT = 4  # Entries that are left of each dimension of a parameter.
_MOVED = 0.02  # By how much of their distance rounding may move the workers' mean.
_REMEDY = "optax.chain(optax.sgd(0.1), djax.gossip(graph, communicator))"


def check(
    optimizer: optax.GradientTransformation, communicator: Communicator, params: PyTree
) -> None:
    """Finds mistakes in an optimizer that would end at a wrong point without an error.

    Call it once before a long run. The optimizer makes 64 steps, and up to 4096 as long
    as the workers have not met, on tiny models. These have the tree structure, the
    dtypes and the numbers of dimensions of the parameters, but at most 4 entries in
    each dimension. What is found:

    * Workers never meet: the optimizer contains no mechanism, or a mask leaves it none
      of the parameters.
    * Some workers never hear of others, in a parameter that others average.
    * Models that start apart do not come together, as in `chain(gossip, sgd)`: the
      optimizer takes the averaging for a gradient.
    * Models climb along the gradient, as in `every(4, chain(sgd, gossip))`: raw
      gradients are added to the models.
    * Averaging moves the mean of the workers, as in `chain(sgd, gossip, clip)`. This is
      not asked of mechanisms that do not promise to keep it (`relay`, `dcd`, `ecd`,
      `quasi_global_adam`, those made by :func:`djax.mechanism`), nor where messages get
      lost.
    * A code that does not say so itself is no contraction, within `choco_gossip` and
      `deep_squeeze`, or biased, within `dcd` and `ecd`, as measured on random trees.

    Step sizes are not judged: a consensus or learning rate that is too large for the
    real model and its data may pass. Masks have to go by names, dtypes or numbers of
    dimensions, and not by sizes, which are others here.

    Args:
      optimizer: the whole chain that is going to train.
      communicator: where the workers live. Under MPI all processes have to call it.
      params: ONE worker's parameters, or their shapes (`jax.ShapeDtypeStruct`).

    Returns:
      None, if nothing is found.

    Raises:
      TypeError: if the optimizer is none, as an asynchronous algorithm such as
        :func:`djax.acid` is, if the communicator is none, or if a leaf is no array.
      ValueError: names all mistakes that were found, each with its remedy. Under MPI
        all processes raise the same.

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
    check_communicator("check", communicator)
    check_arrays("check", params, what="params", modules=False)
    shapes = jax.tree.map(_shape_of, params)
    small = jax.tree.map(
        lambda x: x.update(shape=tuple(min(n, _EXTENT) for n in x.shape)), shapes
    )
    all_rows = jax.tree.map(
        lambda x: x.update(shape=(communicator.rows, *x.shape)), small
    )
    parts = parts_within(optimizer, communicator, all_rows)
    trial = Trial(optimizer, communicator, small)
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
    """What is wrong with how workers average when they have no gradients."""
    met = meet(trial, parts)
    if not met.finite:
        return []  # Training raises an error of its own.
    if met.never:
        return [_never(met, parts)]
    problems = []
    apart = met.together & ~(met.shrunk < 0.99)
    if apart.any():
        worst = np.nanmax(met.shrunk[apart], initial=0) ** 0.5
        problems.append(
            "Models that start apart do not come together without gradients: in "
            f"{met.steps} steps their distance to the mean is multiplied by {worst:.3g}"
            f"{_where(trial, apart)}. Put the mechanism last, as in {_REMEDY}: an "
            "optimizer behind it takes the averaging for a gradient. If it is the last "
            "link, its consensus rate is too large, or its code too coarse."
        )
    elif (silent := cut_off(trial, parts, met)).any():
        workers = _listed([i for i, row in enumerate(silent) if row.any()])
        leaves = np.asarray(silent.any(axis=0))
        problems.append(
            f"Some workers never hear of others{_where(trial, leaves)}: in {met.steps} "
            f"steps the workers {workers} are the same whatever worker 0, or worker "
            f"{trial.size - 1}, starts from. Average over a graph that connects all "
            "workers, and give all of them the same mask."
        )
    moved = met.together & ~apart & (met.mean_moved > _MOVED + 16 * trial.precisions)
    if moved.any() and _keep_mean(parts):
        problems.append(
            "Averaging moves the mean of the workers, without gradients by "
            f"{met.mean_moved[moved].max():.1%} of their distance at the start"
            f"{_where(trial, moved)}. Put links that bound or normalize updates, such "
            "as optax.clip, in front of the mechanism: behind it they cut what one "
            "worker gains and another one loses by different amounts."
        )
    return problems


def _never(met: Meeting, parts: Sequence[Part]) -> str:
    """What to say of workers that hear of nobody."""
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
    """Whether models move along the gradient that all workers have, not against it."""
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


def _keep_mean(parts: Sequence[Part]) -> bool:
    """Whether all mechanisms promise to keep the mean of the workers."""
    moves = any(part.facts.get("moves_mean") or loses(part) for part in parts)
    return bool(parts) and not moves


def _where(trial: Trial, leaves: np.ndarray) -> str:
    """Names the leaves, unless it is all of them."""
    if leaves.all():
        return ""
    names = [path for path, is_one in zip(trial.paths, leaves, strict=True) if is_one]
    return f", in {_listed([f'params{name}' for name in names])}"


def _listed(items: Sequence[Any]) -> str:
    """The first few of them."""
    more = f" and {len(items) - 3} more" if len(items) > 3 else ""
    return ", ".join(map(str, items[:3])) + more


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))
