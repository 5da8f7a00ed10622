"""What is released: archives that anyone can build again, and a wheel that works."""

import hashlib
import re
import subprocess
import sys
import zipfile

import pytest
import yaml
from launch import ROOT

WORKFLOW = ROOT / ".github" / "workflows" / "release.yml"


def run(*command, code=0, **options):
    result = subprocess.run(command, capture_output=True, text=True, **options)
    assert result.returncode == code, f"{result.stdout}\n{result.stderr}"
    return result.stdout


def build(folder):
    """Builds a source archive, and a wheel from that archive."""
    run(
        sys.executable, "-m", "build", "--installer=uv", f"--outdir={folder}", str(ROOT)
    )
    return {path.name: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    return build(tmp_path_factory.mktemp("dist"))


@pytest.mark.slow
def test_a_second_build_has_the_same_bytes(built, tmp_path):
    def digests(files):
        return {
            name: hashlib.sha256(path.read_bytes()).hexdigest()
            for name, path in files.items()
        }

    assert len(built) == 2
    assert digests(build(tmp_path)) == digests(built)


@pytest.mark.slow
def test_the_wheel_has_the_library_alone(built):
    (wheel,) = [path for name, path in built.items() if name.endswith(".whl")]
    names = zipfile.ZipFile(wheel).namelist()
    assert "djax/py.typed" in names
    assert {name.split("/")[0].split("-")[0] for name in names} == {
        "djax",
        "djax_gossip",
    }


@pytest.mark.slow
def test_the_wheel_works_in_an_empty_environment(built, tmp_path):
    """It brings what it needs, and type checkers read its annotations."""
    (wheel,) = [path for name, path in built.items() if name.endswith(".whl")]
    uv, python = [sys.executable, "-m", "uv"], str(tmp_path / "env" / "bin" / "python")
    run(*uv, "venv", "--quiet", f"--python={sys.executable}", str(tmp_path / "env"))
    pins = ROOT / "requirements.lock"
    run(*uv, "pip", "install", f"--python={python}", "-c", str(pins), str(wheel))
    program = (
        "import djax, jax.numpy as jnp\n"
        "workers = djax.communicators.simulated(4)\n"
        "optimizer = djax.dpsgd(0.5, djax.topologies.ring(4), workers)\n"
        "djax.check(optimizer, workers, jnp.zeros(3))\n"
        "print(djax.communication_cost(optimizer, jnp.zeros(3), workers).mean_bytes)\n"
    )
    # In another folder, so that the checkout does not stand in for the wheel.
    assert run(python, "-c", program, cwd=tmp_path) == "24\n"
    mistaken = tmp_path / "mistaken.py"
    mistaken.write_text("import djax\n\nsize: int = djax.topologies.ring(4)\n")
    checker = [sys.executable, "-m", "pyrefly", "check", "--preset=strict"]
    options = [f"--python-interpreter-path={python}", str(mistaken)]
    told = run(*checker, *options, cwd=tmp_path, code=1)
    assert re.search("`Topology` is not assignable to `int`", told)


def test_the_release_builds_as_the_tests_do():
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["build"]["steps"]
    commands = [step["run"] for step in steps if "run" in step]
    assert any("python -m build --installer=uv" in command for command in commands)
    assert any(".ci/run" in command for command in commands)
