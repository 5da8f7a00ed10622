"""The site builds: its notebooks run, and its reference has all public names."""

import re
import subprocess
import sys

import pytest
from launch import ROOT


@pytest.mark.slow
@pytest.mark.xdist_group("mpi")  # Some notebooks start mpirun.
def test_the_site_builds_without_warnings(tmp_path):
    lines = (ROOT / "README.md").read_text().splitlines()
    (command,) = [line for line in lines if "sphinx" in line]
    words = re.sub(r"#.*", "", command).split()
    assert words[:6] == ["uv", "run", "python", "-m", "sphinx", "-W"]
    words = [sys.executable, *words[3:-1], "-q", tmp_path / "site"]
    result = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "site" / "index.html").exists()
