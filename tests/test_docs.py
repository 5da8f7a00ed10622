"""What the documentation promises: complete docstrings, a README that runs."""

import inspect
import re
import tomllib

import conformance
import numpy as np
import pytest
import references
from launch import ROOT, mpirun

import djax
from djax import communicators

README = ROOT / "README.md"
(EXAMPLE,) = re.findall(r"```python\n(.*?)```", README.read_text(), re.S)
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
def test_the_example_of_the_readme_runs(capsys):
    exec(compile(EXAMPLE, str(README), "exec"), {})
    scores, cost = capsys.readouterr().out.splitlines()
    worst, averaged = map(float, re.findall(r"[\d.]+", scores))
    assert worst == pytest.approx(0.82, abs=0.03)  # As the README says.
    assert averaged == pytest.approx(0.95, abs=0.02)
    assert f"# {cost} bytes a step" in EXAMPLE


@pytest.mark.xdist_group("mpi")
def test_the_example_of_the_readme_runs_under_mpirun():
    """Nothing but the communicator changes, as a comment in the example says."""
    example = EXAMPLE.replace("simulated(8)", "mpi()").replace("range(40)", "range(2)")
    assert "mpi()\n" in example and "range(2)" in example
    result = mpirun(2, "-c", example, timeout=120)
    assert result.returncode == 0, result.stderr
    assert result.stdout.count("worst worker") == 2


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


def test_the_page_on_choosing_names_every_algorithm():
    text = (ROOT / "docs" / "choosing.md").read_text()
    for name in FACTORIES:
        assert f"`{name}" in text or f"djax.{name}" in text, name


def test_uv_and_pip_are_given_the_same_versions():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    pins = project["tool"]["uv"]["constraint-dependencies"]
    lines = (ROOT / "requirements.lock").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == pins
