"""Options of functions, read from the command line."""

import ast
import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from .errors import UsageError, lookup


def read_options(
    what: str, make: Callable, options: Mapping[str, str], *, given: int = 1
) -> dict[str, Any]:
    """Reads `name=value` options of a function from the command line.

    Args:
      what: they are, for errors.
      make: the function.
      options: its arguments, as Python literals; what is none is a text where the
        function's default is one.
      given: how many of its first arguments are not the user's.

    Raises:
      UsageError: if the function has no such option, or a value cannot be read.
    """
    parameters = list(inspect.signature(make).parameters.values())[given:]
    known = {parameter.name: parameter.default for parameter in parameters}
    values = {}
    if options and not known:
        raise UsageError(f"{what}: there are none, but {', '.join(options)} was given.")
    for name, text in options.items():
        lookup(what, name, known)
        if isinstance(known[name], str):
            values[name] = text
            continue
        try:
            values[name] = ast.literal_eval(text)
        except (SyntaxError, ValueError):
            raise UsageError(
                f"{what}: cannot read {name}={text}; write a number, a tuple, True, "
                "False or None."
            ) from None
        _check_type(what, name, text, values[name], known[name])
    return values


def _check_type(what: str, name: str, text: str, value: Any, default: Any) -> None:
    """Raises UsageError for a value that cannot stand for the default's type."""
    numbers = value if isinstance(value, tuple) else (value,)
    if any(isinstance(x, float) and not math.isfinite(x) for x in numbers):
        raise UsageError(f"{what}: {name}={text} must be a finite number.")
    if value is None or default in (None, inspect.Parameter.empty):
        return
    for kind, accepted, said in (
        (bool, (bool,), "True or False"),
        (int, (int, float), "an integer"),  # The function itself refuses fractions.
        (float, (int, float), "a number"),
    ):
        if isinstance(default, kind):
            truth = isinstance(value, bool) and kind is not bool
            if truth or not isinstance(value, accepted):
                raise UsageError(f"{what}: {name}={text} must be {said}.")
            return
