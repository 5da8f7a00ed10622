"""Why a mechanism is refused by what is around it."""

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
    "uneven_sums": "{by} ends at a wrong point with {mechanism}, {remedy}.",
    "rounded_sums": "{by} sums up the rounding errors of {mechanism}'s weights, and "
    "moves away from the right point: use gradient_tracking in place of {by}.",
    "optimizer": "{by} takes a mechanism, but {mechanism} is an optimizer and a "
    "mechanism in one: give {by} the mechanism alone, without {mechanism}.",
    "correction": "{by} corrects what {mechanism} corrects already: use one of them.",
    "mechanism": "{by} averages by itself, between the gradients: give it the "
    "optimizer alone, without {mechanism}.",
    "every_step": "{mechanism} has to see the updates of all steps, and would end at a "
    "wrong point within {by}: use {mechanism}(every(k, ...)).",
}
"""By fact: why it is refused.

* `opaque`: nothing is known of it, since optax wraps it;
* `overlap`: the parameters are averaged without this step's updates;
* `losses`: the communicator loses messages;
* `needs_every_message`: it cannot go on without a message;
* `old_models`: models of several steps are averaged;
* `uneven_sums`: the averages over all steps do not add up to what went in;
* `rounded_sums`: they do so only but for rounding errors that point in one direction;
* `optimizer`: it makes steps out of gradients;
* `correction`: it corrects for differences between the workers' data;
* `mechanism`: it averages; true of all that state anything;
* `every_step`: it goes wrong if it does not see every step.
"""


class Part(NamedTuple):
    """One mechanism within a mechanism, and what is to be known of it.

    Attributes:
      name: of its maker, for errors.
      communicator: of messages that may be lost; None for what sends none.
      facts: names of :data:`REASONS`, and whether they are true of it; a text is the
        remedy. Besides, for :func:`djax.check`: `moves_mean`, it does not promise that
        the mean of the workers stays where it is; `averages_updates`, it does not draw
        their models together.
      matrices: returns `float64[period, n, n]`, by which it averages in each step; None
        if they are not known.
      conditions: what it needs in order to converge, which only a trial can tell:
        `contraction` or `unbiased`, the code that has to be one; `distance`, how far
        apart neighbours' models may be.
    """

    name: str
    communicator: Communicator | None
    facts: Mapping[str, bool | str | None]
    matrices: Callable[[], np.ndarray] | None = None
    conditions: Mapping[str, Any] = {}


def refuse(by: str, parts: Iterable[Part], *facts: str) -> None:
    """Raises ValueError if one of these facts is true of one of the mechanisms.

    Args:
      by: who refuses them, for the error.
      parts: what the mechanisms consist of.
      *facts: names of :data:`REASONS`.
    """
    for part in parts:
        losses = part.communicator.drop_probability if part.communicator else 0.0
        true = {"mechanism": True, "losses": losses > 0} | dict(part.facts)
        for name in facts:
            if remedy := true.get(name):
                if remedy is True:
                    remedy = f"use {part.name} without {name}=True"
                raise ValueError(
                    REASONS[name].format(
                        by=by, mechanism=part.name, probability=losses, remedy=remedy
                    )
                )
