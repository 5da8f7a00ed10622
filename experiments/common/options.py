"""Options of functions, read from the command line."""

import ast
import inspect
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
    return values
