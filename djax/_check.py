"""Mistakes of composition that raise no error, found by a trial of the optimizer.

A chain of optax takes its links in any order. With the wrong one, or with a mask that
leaves nothing, nobody is told: the run just ends at a wrong point. What the workers do
then differs so much from decentralized training that a few steps on tiny models show
it. :func:`check` makes these steps by the user's own optimizer and communicator.

A worker has heard of another one if its model is not, bit for bit, what it would be if
the other one had started somewhere else. That is seen within a few steps, however
slowly the models come together.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ._arrays import check_arrays
from ._base import Communicator, PyTree, as_transformation, check_communicator
from ._codes import bias, mean_error, name_of
from ._mechanism import parts_within
from ._refusals import Part
from ._trial import STEPS, Trial, one_differs

_CALLS = 64  # Of the compiled program, at most: `every` may have periods of 4096 steps.
_EXTENT = 4  # Entries that are left of each dimension of a parameter.
_LARGEST = 4096  # Entries of a leaf on which a code is measured.
_SPREAD = 8.0  # Of the models that start apart; clipping at 1 is noticed.
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
      >>> djax.check(optax.chain(optax.adam(0.1), gossip), workers, params)
      >>> djax.check(optax.chain(gossip, optax.adam(0.1)), workers, params)
      Traceback (most recent call last):
      ...
      ValueError: check: the optimizer has 1 problem.
      1. Models that start apart do not come together ...
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
    problems = _problems_of_codes(parts, communicator, shapes)
    if trial.paths:
        problems += _problems_of_averaging(trial, parts)
        problems += _problems_of_gradients(trial)
    if problems:
        count = f"{len(problems)} problem{'s' * (len(problems) > 1)}"
        listed = "".join(f"\n{i}. {text}" for i, text in enumerate(problems, 1))
        raise ValueError(f"check: the optimizer has {count}.{listed}")


class _Meeting(NamedTuple):
    """How workers have met that started apart; the last axis of arrays is the leaves.

    Attributes:
      steps: number of steps that they have made.
      shrunk: `float[leaves]`, by which factor their squared distance has changed.
      mean_moved: `float[leaves]`, how far their mean has moved, in units of their
        distance at the start.
      heard: `int[3, leaves]`, how many workers behave otherwise since the first one has
        another model, the last one has another model, the last one has a gradient; that
        one counts itself.
      before: the same after half of the steps.
      size: number of workers.
    """

    steps: int
    shrunk: np.ndarray
    mean_moved: np.ndarray
    heard: np.ndarray
    before: np.ndarray
    size: int

    @property
    def together(self) -> np.ndarray:
        """`bool[leaves]`, whether workers hear of each other's models."""
        return (self.heard[:2] > 1).any(0)

    @property
    def complete(self) -> np.ndarray:
        """`bool[leaves]`, whether all workers hear of those of whom some hear."""
        some, everybody = self.heard > 1, self.heard == self.size
        by_updates = everybody[2] | ~some[2]
        return np.where(self.together, everybody[:2].all(0), by_updates)

    @property
    def is_over(self) -> bool:
        """Whether more steps would tell nothing new."""
        if not np.isfinite(self.shrunk).all() or self.shrunk.max() > 1e6:
            return True
        met = self.complete & (~self.together | (self.shrunk < 0.5))
        return bool(met.all() and (self.heard > 1).any())


def _meet(trial: Trial, parts: Sequence[Part]) -> _Meeting:
    """Lets workers make steps without gradients until it is known how they meet."""
    spread = min([_SPREAD, *_needed_distances(parts)])
    models, others = trial.models(spread), trial.models(spread, seed=1)
    zeros, last = trial.models(0), trial.size - 1
    calm, apart = trial.group(zeros, zeros), trial.group(models, zeros)
    changed = [
        trial.group(one_differs(models, others, 0), zeros),
        trial.group(one_differs(models, others, last), zeros),
        trial.group(zeros, one_differs(zeros, trial.gradients(), last)),
    ]
    first_distance = np.array(
        [np.square(abs(x)).mean() for x in trial.measured(models)]
    )
    history = []
    while True:
        calm, nobody = trial.advance(calm, calm.params)
        apart, seen = trial.advance(apart, apart.params)
        heard = []
        for i, unchanged in enumerate((apart, apart, calm)):
            changed[i], found = trial.advance(changed[i], unchanged.params)
            heard.append(np.rint(trial.size * found.changed).astype(int))
        history.append(np.stack(heard))
        moved = [abs(x - y).mean() for x, y in zip(seen.mean, nobody.mean, strict=True)]
        meeting = _Meeting(
            STEPS * len(history),
            seen.distance / first_distance,
            np.array(moved) / np.sqrt(first_distance),
            history[-1],
            history[len(history) // 2],
            trial.size,
        )
        alone = not parts and (meeting.heard <= 1).all()
        if meeting.is_over or alone or len(history) == _CALLS:
            return meeting


def _problems_of_averaging(trial: Trial, parts: Sequence[Part]) -> list[str]:
    """What is wrong with how workers average when they have no gradients."""
    if trial.size == 1:
        return []
    met = _meet(trial, parts)
    if (met.heard <= 1).all():
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
            "link, its consensus rate is too large."
        )
    some = ~apart & ~met.complete
    some &= (met.heard == met.before).all(0) & (met.steps == STEPS * _CALLS)
    if some.any():
        problems.append(
            f"Some workers never hear of others{_where(trial, some)}: in {met.steps} "
            f"steps a change of one worker reaches {met.heard[:, some].min()} of "
            f"{met.size} workers. Average over a graph that connects all workers, and "
            "give all of them the same mask."
        )
    moved = met.together & ~apart & (met.mean_moved > 0.02)
    if moved.any() and _keep_mean(parts):
        problems.append(
            "Averaging moves the mean of the workers, without gradients by "
            f"{met.mean_moved[moved].max():.1%} of their distance at the start"
            f"{_where(trial, moved)}. Put links that bound or normalize updates, such "
            "as optax.clip, in front of the mechanism: behind it they cut what one "
            "worker gains and another one loses by different amounts."
        )
    return problems


def _never(met: _Meeting, parts: Sequence[Part]) -> str:
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
    total = seen.climbed.sum(0)
    raw = (abs(seen.climbed - 1) < 0.01).any(0)
    climbs = raw | (total > np.maximum(1e-6, 0.1 * abs(seen.climbed).sum(0)))
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


def _problems_of_codes(
    parts: Sequence[Part], communicator: Communicator, shapes: PyTree
) -> list[str]:
    """What is wrong with codes that do not say of which class they are."""
    problems = {}
    shapes = jax.tree.map(_few_entries, shapes)
    for part in parts:
        for kind, measure, text in (
            ("contraction", mean_error, _no_contraction),
            ("unbiased", bias, _biased),
        ):
            code = part.conditions.get(kind)
            if code is None or getattr(code, kind, None) is not None:
                continue
            found = _measured(measure, code, communicator, shapes)
            if problem := text(part.name, name_of(code), found):
                problems[part.name, kind, id(code)] = problem
    return list(problems.values())


def _measured(
    measure: Callable[..., jax.Array],
    code: Any,
    communicator: Communicator,
    shapes: PyTree,
) -> float:
    """The mean over the processes, which then come to the same verdict."""

    def worker(_):
        return communicator.mean(measure(code, shapes))

    found = jax.jit(communicator.spmd(worker))(jnp.zeros(communicator.rows))
    return float(np.asarray(found.addressable_data(0))[0])


def _no_contraction(name: str, code: str, error: float) -> str | None:
    if error < 1:
        return None
    return (
        f"{name} needs a contraction, but of random models {code} leaves out "
        f"{error:.3g} times their square norm, on average: the models would diverge. "
        "Divide what it decompresses by that number and one, or use a code such as "
        "djax.compressors.top_k(0.01)."
    )


def _biased(name: str, code: str, bias: float) -> str | None:
    if bias < 0.03:
        return None
    return (
        f"{name} needs an unbiased code, but the mean of many draws of {code} is off by "
        f"{bias:.1%} of the norm of what is compressed: what is left out would be lost. "
        "Use a code such as djax.compressors.quantize(8); biased codes are for "
        "choco_gossip and deep_squeeze."
    )


def _keep_mean(parts: Sequence[Part]) -> bool:
    """Whether all mechanisms promise to keep the mean of the workers."""
    return bool(parts) and not any(
        part.facts.get("moves_mean")
        or (part.communicator and part.communicator.drop_probability > 0)
        for part in parts
    )


def _needed_distances(parts: Sequence[Part]) -> list[float]:
    """How far apart models may start; numbers that are traced are not known."""
    found = [part.conditions.get("distance") for part in parts]
    return [
        0.4 * float(x)
        for x in found
        if not (x is None or isinstance(x, jax.core.Tracer))
    ]


def _where(trial: Trial, leaves: np.ndarray) -> str:
    """Names the leaves, unless it is all of them."""
    if leaves.all():
        return ""
    names = [path for path, is_one in zip(trial.paths, leaves, strict=True) if is_one]
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f", in params{', params'.join(names[:3])}{more}"


def _shape_of(x: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(np.shape(x), jnp.result_type(x))


def _few_entries(x: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
    """Halves the longest dimension until a code is measured soon."""
    shape = list(x.shape)
    while np.prod(shape) > _LARGEST:
        longest = int(np.argmax(shape))
        shape[longest] = -(-shape[longest] // 2)
    return x.update(shape=tuple(shape))
