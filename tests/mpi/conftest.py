"""These tests run on the ranks that `tests/test_mpi.py` starts, and nowhere else."""

import pytest

from djax import communicators

if communicators.launcher_size() is None:
    collect_ignore_glob = ["test_*.py"]


@pytest.fixture
def handed_to_mpi(monkeypatch):
    """The bytes of each message that reaches mpi4jax while a program is traced."""
    import mpi4jax

    sent = []

    def counted(function):
        def call(x, *args, **kwargs):
            sent.append(x.size * x.dtype.itemsize)
            return function(x, *args, **kwargs)

        return call

    for verb in ("sendrecv", "allreduce", "allgather"):
        monkeypatch.setattr(mpi4jax, verb, counted(getattr(mpi4jax, verb)))
    return sent
