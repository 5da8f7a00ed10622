"""These tests run on the ranks that `tests/test_mpi.py` starts, and nowhere else."""

from djax import communicators

if communicators.launcher_size() is None:
    collect_ignore_glob = ["test_*.py"]
