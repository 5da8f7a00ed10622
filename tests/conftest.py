"""Sets JAX up for the tests before anything imports it.

The tests get eight devices on the CPU, and arrays are never promoted unasked: a dtype
that is wider than wanted then fails in the tests rather than being slow in a training.

Most of the suite's time goes into building programs. All processes of one run, the
ranks that tests start included, therefore keep compiled programs in one folder, so that
each program is compiled once. The folder is removed after the run, unless the
environment variable `JAX_COMPILATION_CACHE_DIR` names one: the next run then starts
with the programs of this one.
"""

import gc
import os
import tempfile

from launch import QUICK_COMPILATION

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + f" --xla_force_host_platform_device_count=8 {QUICK_COMPILATION}"
)
os.environ["MPLBACKEND"] = "agg"
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:  # This is the first process.
    COMPILED = tempfile.TemporaryDirectory(prefix="djax-", ignore_cleanup_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = COMPILED.name
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
os.environ["JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES"] = "-1"
# A process that is killed may leave half a compiled program behind, which JAX compiles
# again with a warning.
os.environ.setdefault(
    "PYTHONWARNINGS", "ignore:Error reading persistent compilation cache"
)
# Where each operation was written makes programs larger, and is never read.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"

import hypothesis
import jax
import pytest


def set_promotion(dtype: str, rank: str) -> None:
    """Sets how JAX promotes, in all threads, unlike JAX's own context managers."""
    jax.config.update("jax_numpy_dtype_promotion", dtype)
    jax.config.update("jax_numpy_rank_promotion", rank)


set_promotion("strict", "raise")

hypothesis.settings.register_profile("djax", deadline=None, derandomize=True)
hypothesis.settings.load_profile("djax")


@pytest.fixture
def as_users():
    """Promotion as users have it: experiments and optax's optimizers rely on it."""
    set_promotion("standard", "allow")
    yield
    set_promotion("strict", "raise")


@pytest.fixture
def unseen(monkeypatch):
    """Trainings hardly time their steps, and draw no pictures: both take a second."""
    from experiments.lib import report, synchronous

    monkeypatch.setattr(report.RunFolder, "save", lambda *arguments: None)
    monkeypatch.setattr(synchronous, "TIMED_SECONDS", 0.0)
    monkeypatch.setattr(synchronous, "TIMED_REPEATS", 1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks as quick what is run while working: every test once, but for slow ones.

    Of a test with parameters the first case is quick. Tests that start processes, and
    those that are marked as slow by themselves or by their file, are not.
    """
    seen = set()
    for item in items:
        name = item.nodeid.partition("[")[0]
        slow = item.get_closest_marker("slow") or item.get_closest_marker("xdist_group")
        if name not in seen and not slow:
            item.add_marker("quick")
        seen.add(name)


def pytest_collection_finish() -> None:
    """Keeps Python's garbage collector from reading thousands of tests again and again.

    Tracing a program makes so many small objects that a collection is due every few
    milliseconds by default.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)
