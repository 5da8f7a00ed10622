"""What a mechanism is, and who refuses it for that.

A mechanism is an opaque pair of functions, possibly wrapped several times: only its own
`init` knows its properties, and states them. What is around it refuses some of them.
"""

import contextlib
import contextvars
from collections.abc import Callable, Iterator
from typing import NamedTuple

from ._base import Communicator

REASONS = {
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
"""By property: why it is refused.

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


class _Refusal(NamedTuple):
    """What the mechanisms that are initialized inside of a context may not be."""

    by: str
    properties: tuple[str, ...]
    smallest_eigenvalue: float


_REFUSALS: contextvars.ContextVar[tuple[_Refusal, ...]] = contextvars.ContextVar(
    "djax_refusals", default=()
)
_DEALT_OUT: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "djax_dealt_out", default=False
)


@contextlib.contextmanager
def refusing(
    by: str, *properties: str, smallest_eigenvalue: float = -1.0
) -> Iterator[None]:
    """Refuses mechanisms with these properties that are initialized inside.

    Contexts may be nested; all of them count.

    Args:
      by: who refuses them, for the error.
      *properties: names of :data:`REASONS`.
      smallest_eigenvalue: the smallest that the matrix of an average may have.
    """
    refusal = _Refusal(by, properties, smallest_eigenvalue)
    token = _REFUSALS.set((*_REFUSALS.get(), refusal))
    try:
        yield
    finally:
        _REFUSALS.reset(token)


def state_facts(
    mechanism: str,
    communicator: Communicator | None = None,
    *,
    smallest_eigenvalue: Callable[[], float] | None = None,
    **properties: bool | str | None,
) -> None:
    """States the properties of a mechanism that is being initialized.

    Args:
      mechanism: its name, for errors.
      communicator: how its messages travel; None for what sends nothing itself.
      smallest_eigenvalue: returns that of the matrix by which it averages; None if it
        is not known.
      **properties: names of :data:`REASONS`, and whether it has them; a text is the
        remedy, for the error.

    Raises:
      ValueError: inside of a :func:`refusing` that refuses one of them.
    """
    probability = getattr(communicator, "drop_probability", 0.0)
    properties = {"mechanism": True, "losses": probability > 0} | properties
    for refusal in _REFUSALS.get():
        for name in refusal.properties:
            if remedy := properties.get(name):
                if remedy is True:
                    remedy = f"use {mechanism} without {name}=True"
                reason = REASONS[name].format(
                    by=refusal.by,
                    mechanism=mechanism,
                    probability=probability,
                    remedy=remedy,
                )
                raise ValueError(reason)
        if smallest_eigenvalue is not None and refusal.smallest_eigenvalue > -1:
            found = smallest_eigenvalue()
            if found < refusal.smallest_eigenvalue - 1e-6:  # Rates may be float32.
                raise ValueError(
                    f"{refusal.by} diverges with this {mechanism}: the smallest "
                    f"eigenvalue of its averages is {found:.4f}, and may not be below "
                    f"{refusal.smallest_eigenvalue:.4f}. Use a topology with "
                    "weights='lazy', or half the consensus_rate."
                )


@contextlib.contextmanager
def dealing_out() -> Iterator[None]:
    """Tells mechanisms that are initialized inside that matrices were cut to vectors.

    Only a mechanism knows whether it compresses matrices; without any it would silently
    send everything.
    """
    token = _DEALT_OUT.set(True)
    try:
        yield
    finally:
        _DEALT_OUT.reset(token)


def check_not_dealt_out(name: str) -> None:
    """Raises ValueError inside of :func:`dealing_out`; `name` compresses matrices."""
    if _DEALT_OUT.get():
        raise ValueError(
            f"{name} compresses matrices, but djax.interleave deals out their single "
            f"coordinates, so that it would send everything: use {name} without "
            "interleave."
        )
