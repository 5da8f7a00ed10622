"""What counts as a number in an argument: a number of Python or NumPy, but no boolean.

A boolean is an integer for Python, but in an argument it is a mistake.
"""

from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether a value is an integer."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float."""
    return is_whole(value) or isinstance(value, (float, np.floating))
