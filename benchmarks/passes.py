"""How many passes over the parameters the mathematics of each mechanism needs.

A pass reads and writes the parameters of all workers once. A step without a mechanism
reads and writes parameters and gradients as well, so that only what a mechanism adds is
counted: the trees that its state keeps, and its messages.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from . import contest

AIM = 1.3  # Passes that are made, over those that are needed.


COUNT = 8  # A single pass takes less time than that of a step varies by.


def several() -> optax.GradientTransformation:
    """Reads and writes trees like the parameters, :data:`COUNT` of them, once each."""

    def init(params):
        return [jax.tree.map(jnp.ones_like, params) for _ in range(COUNT)]

    def update(updates, state, params=None):
        return updates, jax.tree.map(lambda x: 0.999 * x, state)

    return optax.GradientTransformation(init, update)


def _needed(
    read: int, written: int, message: float = 1.0, readers: int = 2, messages: int = 1
) -> float:
    """Adds up passes.

    Args:
      read: number of trees of the state that are read.
      written: number of trees of the state that are written, besides messages.
      message: size of a message, as a share of the parameters.
      readers: how many times each message is read: once by each neighbour, of which a
        worker has 2 on a ring.
      messages: how many different messages a worker sends.
    """
    return (read + written + messages * message * (1 + readers)) / 2


# The size of a message. Top-k sends a value and a place for each entry.
_SIGN, _BYTE, _TOP = 1 / 32, 1 / 4, 2 / 100

NEEDED = {
    "all_reduce": _needed(0, 0, readers=1),
    "gossip": _needed(0, 0),
    # The messages of the step before and the initial model are read. A worker on a
    # chain sends a message of its own to each of two neighbours, who keep it.
    "relay": _needed(3, 0, readers=1, messages=2),
    "push_sum": _needed(0, 0, readers=1),
    "d2(gossip)": _needed(1, 1),
    "gradient_tracking(gossip)": _needed(1, 1, messages=2),
    # The messages are small, but they are products with the whole model.
    "power_gossip, rank 1": _needed(1, 0, message=0),
    "power_gossip, rank 4": _needed(1, 0, message=0),
    "choco_gossip, sign": _needed(2, 2, _SIGN),
    "choco_gossip, top 1 %": _needed(2, 2, _TOP),
    "choco_gossip, top 1 % of groups": _needed(2, 2, _TOP),
    "deep_squeeze, sign": _needed(1, 1, _SIGN),
    "moniqua, 8 bits": _needed(0, 0, _BYTE),
    "dcd, 8 bits": _needed(2, 2, _BYTE),
    "ecd, 8 bits": _needed(2, 2, _BYTE),
}


def cells(record: Mapping[str, Any], aim: float) -> list[str | None]:
    """The columns of a table that show one contestant at one batch size.

    Args:
      record: the contestant's record.
      aim: the largest ratio to the time of a step without a mechanism.
    """
    needed = record["passes needed"]
    time, ratio, made = (
        np.median(record[key]) for key in ("milliseconds", "ratio", "passes")
    )
    shown = [f"{time:.3g}", contest.spread(record["ratio"])]
    if needed is None:
        return [*shown, None, None, None]
    limit = round(AIM * needed, 1)
    return [
        *(*shown, contest.verdict(ratio, aim)),
        *(f"{made:.1f}", contest.verdict(made, limit)),
    ]
