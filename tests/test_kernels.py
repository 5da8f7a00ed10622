"""The compiled steps have as many kernels as they had before."""

import json
import os
import subprocess
import sys

import jax
import pytest
from launch import ROOT

TABLE = json.loads((ROOT / "tests" / "kernels.json").read_text())
MEASURE = (
    "import json; from benchmarks import kernels as k; print(json.dumps(k.measure()))"
)


@pytest.mark.slow
@pytest.mark.skipif(
    jax.__version__ != TABLE["jax"] or jax.default_backend() != "cpu",
    reason="another XLA fuses differently",
)
def test_a_step_has_the_kernels_of_the_committed_table():
    # In a process of its own, since the options of JAX in tests change programs.
    plain = {k: v for k, v in os.environ.items() if k != "XLA_FLAGS"}
    command = [sys.executable, "-c", MEASURE]
    options = {"cwd": ROOT, "env": plain, "capture_output": True, "text": True}
    program = subprocess.run(command, check=True, **options)
    found, known = json.loads(program.stdout), TABLE["mechanisms"]
    differing = {k: (x, known.get(k)) for k, x in found.items() if x != known.get(k)}
    assert not differing, (
        f"Steps have other kernels than tests/kernels.json says: {differing}. If that "
        "is meant, write the table anew: python -m benchmarks.kernels --renew"
    )
