"""What counts as a number among the arguments: Python's and NumPy's, no booleans."""

from typing import Any

import numpy as np


def is_whole(value: Any) -> bool:
    """Whether it is an integer."""
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is an integer or a float."""
    return is_whole(value) or isinstance(value, (float, np.floating))
