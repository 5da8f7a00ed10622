"""Reads, checks and writes keyword arguments of functions on the command line."""

import ast
import contextlib
import inspect
import math
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Annotated, Any

from tyro.constructors import PrimitiveConstructorSpec

from .errors import UsageError, lookup
from .ranges import Range, flag


def _read(words: Sequence[str]) -> dict[str, Any]:
    """Reads words such as `momentum 0.9 nesterov True`.

    A value that is not a literal of Python is a text.
    """
    if len(words) % 2:
        raise ValueError("each name needs a value behind it")
    return dict(zip(words[::2], map(_literal, words[1::2]), strict=True))


def _literal(word: str) -> Any:
    try:
        return ast.literal_eval(word)
    except (SyntaxError, TypeError, ValueError):
        return word


def write_options(options: Mapping[str, Any]) -> list[str]:
    """Returns the words of the command line that `_read` turns into these options."""
    return [_word(word) for pair in options.items() for word in pair]


def write_flags(options: Mapping[str, Any]) -> list[str]:
    """Returns the words of the command line that set fields of a configuration."""
    words = []
    for name, value in options.items():
        if isinstance(value, bool):
            words.append(flag(name if value else f"no_{name}"))
        elif isinstance(value, Mapping):
            words += [flag(name), *write_options(value)]
        else:
            values = value if isinstance(value, tuple) else (value,)
            words += [flag(name), *map(_word, values)]
    return words


def changed(options: Any) -> dict[str, Any]:
    """Returns the values of those fields of a dataclass that differ from defaults."""
    defaults = vars(type(options)())
    return {k: value for k, value in vars(options).items() if value != defaults[k]}


def _word(value: Any) -> str:
    """Returns the shortest word that is read as this value."""
    if isinstance(value, float) and float(short := f"{value:g}") == value:
        return short
    return str(value)


Options = Annotated[
    dict[str, Any],
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[NAME VALUE ...]",
        instance_from_str=_read,
        is_instance=lambda x: isinstance(x, dict),
        str_from_instance=write_options,
    ),
]
"""The type of an option that holds arguments of a function, such as the optimizer."""

_SAID = {
    r"make it without drop_probability, or use [^.]*": "leave --drop-probability away, "
    "or choose --algorithm dpsgd, relay_sgd or sgp",
    r"\buse resume=True\b": "add --resume",
    r"^checkpoints: ": "--checkpoints ",
    r"\bcommunicators\.simulated\b": "--communicator simulated",
    r"""\bweights=(['"])(\w+)\1""": r"--weights \2",
    r"\bUse a smaller consensus_rate \(that of exact diffusion is 0\.5\), or a "
    "topology in place of a schedule": "Choose --algorithm gradient_tracking_sgd, or "
    "d2_sgd with a smaller --consensus-rate or --no-check, or a --topology that does "
    "not change with time",
    r"\bhalf the consensus_rate\b": "half the --consensus-rate",
    r"^\w+: consensus_rate (?=must be)": "--consensus-rate ",
    r"\bat dual_rate=": "at --dual-rate ",
    r"\bthe largest stable dual_rate is\b": "the largest stable --dual-rate is",
    r"\bThey shrink at dual_rate=": "They shrink at --dual-rate ",
    r"\buse \w+ without overlap=True": "leave --overlap away",
    r"^outer: period (?=must be)": "--outer-period ",
    r"^outer: delay (?=must be)": "--delay ",
    r"\bperiod / fragments\b": "--outer-period / --fragments",
    r"^outer: fragments=(?=\d)": "--fragments ",
    r"^draw_(?:events|rounds): (?=(?:rate|speeds|variation)\b)": "--",
    r"\bthe rate, the speeds, or what ends the run\b": "--rate, --speeds or --epochs",
    r"^d2 diverges with this gossip: over a period\b": "D² diverges over this "
    "--topology: in each period",
    r"\b(\w+)\(\d+, (max_degree|degree)=(\d+)\)": r"--topology \1 --topology-options "
    r"\2 \3",
    r"\bring\(\d+\)": "--topology ring",
}
"""From patterns of djax's advice to the same advice in options of the command line."""


@contextlib.contextmanager
def said_as_options() -> Iterator[None]:
    """Replaces arguments of functions by options in the advice of djax's errors."""
    try:
        yield
    except Exception as error:
        text = str(error)
        for pattern, option in _SAID.items():
            text = re.sub(pattern, option, text)
        if text == str(error):
            raise
        raise UsageError(text) from error


def check_ranges(
    what: str, values: Mapping[str, Any], ranges: Mapping[str, Range]
) -> None:
    """Raises UsageError for an option of a function that is out of range."""
    for name, value in values.items():
        if name not in ranges or value is None:
            continue
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not (number and ranges[name].has(value)):
            allowed = ranges[name].describe(whole=False)
            raise UsageError(f"{what}: {name}={value!r} must be {allowed}.")


def check_options(
    what: str,
    make: Callable,
    options: Mapping[str, Any],
    *,
    given: int = 1,
    without: Collection[str] = (),
) -> dict[str, Any]:
    """Returns the options, or raises UsageError if the function does not take them.

    The first `given` arguments of the function are not options. Errors say `what` the
    options belong to.
    """
    parameters = list(inspect.signature(make).parameters.values())[given:]
    known = {p.name: p.default for p in parameters if p.name not in without}
    if options and not known:
        raise UsageError(f"{what}: there are none, but {', '.join(options)} was given.")
    for name, value in options.items():
        _check_type(what, name, value, known[lookup(what, name, known)])
    return dict(options)


_KINDS = (
    (bool, bool, "True or False"),
    (int, (int, float), "an integer"),  # The function will refuse fractions.
    (float, (int, float), "a number"),
    (str, str, "a text"),
)
"""For the type of a default: the types of values that are accepted, and their name."""


def _check_type(what: str, name: str, value: Any, default: Any) -> None:
    """Raises UsageError for a value whose type differs from that of the default."""
    if isinstance(value, str) and not isinstance(default, str):
        raise UsageError(
            f"{what}: cannot read {name}={value}; write a number, a tuple, True, "
            "False or None."
        )
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
        raise UsageError(f"{what}: {name}={value} must be a finite number.")
    if value is None:
        return
    for kind, accepted, said in _KINDS:
        if isinstance(default, kind):
            truth = isinstance(value, bool) and kind is not bool
            if truth or not isinstance(value, accepted):
                raise UsageError(f"{what}: {name}={value} must be {said}.")
            return
