"""Defines which numbers each option of the command line may have.

Every numeric option is checked before anything is computed, so that an error names the
option with the mistake. Otherwise nan and infinity would only be noticed at the first
loss, and the error would blame the learning rate.
"""

import dataclasses
import math
from typing import Any, NamedTuple

from .errors import UsageError


class Range(NamedTuple):
    """Numbers that an option may have; infinity and nan are in no range.

    Attributes:
      open_below: whether `least` itself is too small.
      open_above: whether `most` itself is too large.
    """

    least: float = -math.inf
    most: float = math.inf
    open_below: bool = False
    open_above: bool = False

    def has(self, value: float) -> bool:
        """Tells whether a number is in the range."""
        if isinstance(value, float) and not math.isfinite(value):
            return False
        above = value > self.least if self.open_below else value >= self.least
        below = value < self.most if self.open_above else value <= self.most
        return above and below

    def describe(self, whole: bool) -> str:
        """Returns the text that follows "must be" in an error."""
        if self.most == math.inf:
            if self.open_below:
                return "positive and finite"
            if self.least == 0 and not whole:
                return "a finite number, at least 0"
            return f"at least {self.least:g}"
        if whole and self.most < 100:
            return f"{self.least:g} to {self.most:g}"
        if self == SHARE:
            return "in [0, 1], as all shares of the training"
        left, right = "[("[self.open_below], "])"[self.open_above]
        return f"in {left}{self.least:g}, {self.most:g}{right}"


POSITIVE = Range(0, open_below=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
AT_LEAST_ONE = Range(1)

RANGES = {
    "learning_rate": POSITIVE,
    "weight_decay": NOT_NEGATIVE,
    "clip_norm": POSITIVE,
    "linear_scaling": AT_LEAST_ONE,
    "warmup_from": NOT_NEGATIVE,
    "warmup": SHARE,
    "decay_at": SHARE,
    "decay_factor": Range(0, 1, open_below=True),
    "decay_over": SHARE,
    "consensus_rate": POSITIVE,
    "local_steps": AT_LEAST_ONE,
    "dual_rate": POSITIVE,
    "k_gt_rate": POSITIVE,
    "probability": Range(0, 1, open_below=True),
    "chi": AT_LEAST_ONE,
    "coin_seed": Range(0, 2**32, open_above=True),
    "outer_period": AT_LEAST_ONE,
    "outer_learning_rate": POSITIVE,
    "outer_momentum": Range(0, 1, open_above=True),
    "fragments": AT_LEAST_ONE,
    "delay": NOT_NEGATIVE,
    "blend": Range(0, 1, open_below=True),
    "rounds": AT_LEAST_ONE,
    "rank": AT_LEAST_ONE,
    "iterations": AT_LEAST_ONE,
    "theta": POSITIVE,
    "bits": Range(2, 8),
    "rate": NOT_NEGATIVE,
    "speeds": POSITIVE,
    "variation": NOT_NEGATIVE,
    "max_backlog": NOT_NEGATIVE,
    "seconds": POSITIVE,
    "timeout": POSITIVE,
    "checkpoint_every": POSITIVE,
    "keep_checkpoints": AT_LEAST_ONE,
    "stopped_code": Range(0, 125),  # Shells use the larger ones themselves.
    "group_size": AT_LEAST_ONE,
    "workers": AT_LEAST_ONE,
    "drop_probability": Range(0, 1, open_above=True),
    "drop_bursts": AT_LEAST_ONE,
    "rounding_seed": Range(0, 2**32, open_above=True),
    "batch_size": AT_LEAST_ONE,
    "accumulation": AT_LEAST_ONE,
    "epochs": AT_LEAST_ONE,
    "steps_per_epoch": AT_LEAST_ONE,
    "evaluations": AT_LEAST_ONE,
    "collapse": Range(),
    "seed": Range(0, 2**32, open_above=True),
}
"""Allowed values of fields of :class:`experiments.lib.config.Config` and its parts."""

ARGUMENTS = {
    *("consensus_rate", "local_steps", "rounds", "rank", "iterations", "theta", "bits"),
    *("rate", "speeds", "variation", "drop_probability", "dual_rate", "probability"),
    *("outer_learning_rate", "outer_momentum", "fragments", "delay", "blend"),
}
"""Options that have the same names as arguments of djax's functions."""


def flag(name: str) -> str:
    """Returns the name of a field on the command line."""
    return f"--{name}".replace("_", "-")


def check(options: Any) -> None:
    """Raises UsageError, which names the option, for a number that is out of range."""
    for field in dataclasses.fields(options):
        value = getattr(options, field.name)
        if dataclasses.is_dataclass(value):
            check(value)
        elif field.name in RANGES and value is not None and value != "node":
            _check_numbers(field.name, value, whole="int" in str(field.type))


def _check_numbers(name: str, value: Any, whole: bool) -> None:
    allowed = RANGES[name]
    for number in value if isinstance(value, tuple) else (value,):
        kinds = int if whole else (int, float)
        right = isinstance(number, kinds) and not isinstance(number, bool)
        if not (right and allowed.has(number)):
            what = f": {name} must be" if name in ARGUMENTS else " must be"
            if name == "collapse":
                what += " two finite numbers"
            else:
                # These are the words of djax's errors about its arguments.
                if whole and name in ARGUMENTS and allowed.most == math.inf:
                    what += " an integer of"
                what += f" {allowed.describe(whole)}"
            raise UsageError(f"{flag(name)} {number}{what}.")
