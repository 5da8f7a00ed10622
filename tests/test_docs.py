"""What the documentation promises: complete docstrings, a README that runs."""

import inspect
import tomllib

import conformance
import numpy as np
import pytest
import references
from conformance import BLOCKS, README
from launch import mpirun

import djax
from djax import communicators

MPI = "communicator = djax.communicators.mpi()"
FACTORIES = [
    name
    for name, value in vars(djax).items()
    if inspect.isfunction(value) and not name.startswith("_")
]


@pytest.mark.parametrize("name", FACTORIES)
def test_public_functions_say_what_they_take_give_and_come_from(name):
    doc = inspect.getdoc(getattr(djax, name)) or ""
    sections = ["Args:", "Returns:", "Examples:"]
    if "GradientTransformation" in doc or "chain(" in doc:
        sections.append("References:")
    if name in ("on_updates", "every", "interleave", "gossip", "all_reduce"):
        sections.append("References:")
    for section in sections:
        assert section in doc, f"djax.{name} lacks {section}"
    assert ">>>" in doc


@pytest.mark.slow
def test_the_examples_of_the_readme_run():
    blocks = [block for block in BLOCKS if MPI not in block]
    assert blocks
    for block in blocks:
        exec(compile(block, str(README), "exec"), {})


@pytest.mark.xdist_group("mpi")
def test_the_example_under_mpirun_runs(tmp_path):
    (block,) = [block for block in BLOCKS if MPI in block]
    block = block.replace("trace.json", str(tmp_path / "trace.json"))
    result = mpirun(4, "-c", block, timeout=120)
    assert result.returncode == 0, result.stderr
    assert "Report(4 workers: 20" in result.stdout
    assert (tmp_path / "trace.json").read_text().startswith('{"traceEvents"')


def test_a_mechanism_of_ones_own_runs_on_all_communicators():
    """That over MPI is in mpi/test_common_mpi.py."""
    make = conformance.own_mechanism()
    found = []
    for communicator in (communicators.simulated(8), communicators.mesh(8)):
        found.append(conformance.train(make(communicator), communicator))
    np.testing.assert_allclose(*found, rtol=1e-5, atol=1e-6)
    matchings = djax.topologies.random_matchings(8, 100).matrices
    twin = references.gossip_in_time(lambda size: matchings)
    hessian, target, _ = conformance.quadratics(8)
    expected = twin(
        lambda x: hessian * (x - target), conformance.start(8), 0.1, 20, None
    )
    np.testing.assert_allclose(found[0], expected, rtol=1e-4, atol=1e-5)


def test_the_readme_names_every_algorithm():
    text = README.read_text()
    for name in FACTORIES:
        assert f"`{name}" in text or f"djax.{name}" in text, name


def test_uv_and_pip_are_given_the_same_versions():
    root = README.parent
    project = tomllib.loads((root / "pyproject.toml").read_text())
    pins = project["tool"]["uv"]["constraint-dependencies"]
    lines = (root / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == pins
