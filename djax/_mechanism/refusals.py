"""Why a correction or training loop refuses a mechanism."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from djax._interfaces import Communicator

REASONS = {
    "opaque": "{by} takes a mechanism alone, which it can ask how it averages; in a "
    "chain or another wrapper of optax it cannot. Put the optimizer in front of {by}, "
    "use djax.only(mask, mechanism) in place of optax.masked, and put "
    "optax.inject_hyperparams around {by}.",
    "overlap": "{by} needs the average of this step's updated parameters: {remedy}.",
    "losses": "{by} needs every message, but the communicator of {mechanism} loses "
    "{probability:.3g} of them: make it without drop_probability, or use {mechanism} "
    "without {by}.",
    "needs_every_message": "{by} lets workers go on without a message that is not "
    "finite, but {mechanism} needs every message: use gossip, relay or push_sum.",
    "old_models": "{by} needs the average of this step's models, but {mechanism} "
    "averages older ones too, with which it diverges: use gossip, or "
    "gradient_tracking in place of {by}.",
    "averages_updates": "{by} averages models, but {mechanism} averages updates and "
    "leaves the models apart: give {by} the mechanism without {mechanism}.",
    "weighted": "{by} compares models before and after an averaging, but {mechanism} "
    "changes their weights on this graph: use a graph whose matrices are doubly "
    "stochastic.",
    "partial": "{by} corrects every parameter in every step, but {mechanism} averages "
    "some of them at a time, with which it diverges: use gradient_tracking in place of "
    "{by}.",
    "uneven_sums": "{by} ends at a wrong point with {mechanism}, {remedy}.",
    "rounded_sums": "{by} sums up the rounding errors of {mechanism}'s weights, and "
    "moves away from the right point: use gradient_tracking in place of {by}.",
    "optimizer": "{by} takes a mechanism, but {mechanism} is an optimizer and a "
    "mechanism in one: give {by} the mechanism alone, without {mechanism}.",
    "correction": "{by} corrects what {mechanism} corrects already: use one of them.",
    "corrects_models": "{mechanism} corrects models by how averaging moves them, but "
    "{by} averages updates and moves no model: use {mechanism} without {by}.",
    "mechanism": "{by} averages by itself, between the gradients: give it the "
    "optimizer alone, without {mechanism}.",
    "every_step": "{mechanism} has to see the updates of all steps, and would end at a "
    "wrong point within {by}: {remedy}.",
}
"""For each fact about a mechanism, the error that names it as the reason of a refusal.

* `opaque`: nothing is known about the mechanism, since a wrapper of optax hides it;
* `overlap`: the parameters are averaged without the updates of the present step;
* `losses`: the communicator loses messages;
* `needs_every_message`: the mechanism fails if a message is lost;
* `old_models`: models of several steps are averaged;
* `averages_updates`: updates are averaged, which does not draw models together;
* `weighted`: models carry weights, which change when they are averaged;
* `partial`: only some of the coordinates are averaged in a step;
* `uneven_sums`: the sum of the averages over all steps is not the sum of the models;
* `rounded_sums`: the two sums differ by rounding errors that point in one direction;
* `optimizer`: the mechanism is also an optimizer;
* `correction`: the mechanism already corrects for differences between workers' data;
* `corrects_models`: the same, which makes no sense where only updates are averaged;
* `mechanism`: the mechanism averages, which is true of every mechanism;
* `every_step`: the mechanism ends at a wrong point unless it sees every step.
"""


class Part(NamedTuple):
    """Facts about one of the mechanisms that a mechanism consists of.

    Attributes:
      name: the name of the function that made it, for errors.
      communicator: carries the messages that may be lost; None if it sends none.
      facts: for names of :data:`REASONS`, whether they are true of the mechanism. In
        place of True there may be a text, which is the remedy for the error. Two more
        facts are for :func:`djax.check`. `moves_mean`: the mechanism does not promise
        to keep the mean of the workers. `averages_updates`: it averages updates, which
        does not draw the workers' models together. One more fact is for
        :func:`djax.decentralized`. `compresses`: its messages leave out a part of what
        is averaged.
      matrices: returns the mixing matrices of the steps, `float64[period, n, n]`; None
        if they are not known.
      conditions: conditions of convergence that only a trial can test. Under
        `contraction` or `unbiased` there is a code that has to be of this class; under
        `distance` there is a bound on the difference between neighbours' models; under
        `equal_within` there is a communicator whose workers have to start equal.
    """

    name: str
    communicator: Communicator | None
    facts: Mapping[str, bool | str | None]
    matrices: Callable[[], np.ndarray] | None = None
    conditions: Mapping[str, Any] = {}


def refuse(by: str, parts: Iterable[Part], *facts: str) -> None:
    """Raises ValueError if one of the facts is true of one of the parts.

    Args:
      by: the name of the correction or loop that refuses them.
      parts: the parts of the mechanisms.
      *facts: names of :data:`REASONS`.
    """
    for part in parts:
        losses = part.communicator.drop_probability if part.communicator else 0.0
        corrects = part.facts.get("correction")
        always = {"mechanism": True, "losses": losses > 0, "corrects_models": corrects}
        true = always | dict(part.facts)
        for name in facts:
            if remedy := true.get(name):
                if remedy is True:
                    remedy = f"use {part.name} without {name}=True"
                raise ValueError(
                    REASONS[name].format(
                        by=by, mechanism=part.name, probability=losses, remedy=remedy
                    )
                )
