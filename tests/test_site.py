"""The site builds: its notebooks run, and its reference has all public names."""

import subprocess
import sys

import pytest
from launch import ROOT

SPHINX = [sys.executable, "-m", "sphinx", "-W", "docs"]


def test_the_readme_has_the_command():
    command = " ".join(["uv run python", *SPHINX[1:], "docs/_build"])
    assert command in (ROOT / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.xdist_group("mpi")  # Some notebooks start mpirun.
def test_the_site_builds_without_warnings(tmp_path):
    command = [*SPHINX, str(tmp_path / "site")]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "index.html").exists()


@pytest.mark.slow
def test_the_committed_pictures_are_those_that_the_script_draws(tmp_path):
    script = f"import pathlib, pictures; pictures.main(pathlib.Path({str(tmp_path)!r}))"
    subprocess.run([sys.executable, "-c", script], cwd=ROOT / "docs", check=True)
    drawn = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert drawn.keys() == {"idea.svg", "logo.svg", "social.png"}
    for name, picture in drawn.items():
        assert picture == (ROOT / "docs" / "_static" / name).read_bytes(), name
