"""Tells numbers from booleans in arguments.

Python counts a boolean as an integer, but a boolean in place of a number is a mistake.
Numbers of NumPy are numbers, too.
"""

from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether a value is an integer and no boolean."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether a value is an integer or a float, and no boolean."""
    return is_whole(value) or isinstance(value, (float, np.floating))
