"""Files about the project say the same as each other."""

import re
import shlex
import tomllib

import pytest
import yaml
from launch import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def test_hooks_run_what_ci_runs_before_the_tests():
    lines = (ROOT / ".ci" / "run").read_text().splitlines()
    checks = [shlex.split(line) for line in lines if line.startswith("uv run ")]
    assert checks.pop() == ["uv", "run", "pytest"]
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    hooks = [hook for repo in config["repos"] for hook in repo["hooks"]]
    assert [shlex.split(hook["entry"]) for hook in hooks] == checks
    # Without file names they check the whole project, as `.ci/run` does.
    assert not any(hook["pass_filenames"] for hook in hooks)


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"]
    assert citation["license"] == PROJECT["license"]
    links = [reference["url"] for reference in citation["references"]]
    readme = (ROOT / "README.md").read_text()
    assert len(links) == 3 and all(link in readme for link in links)


def test_the_changelog_has_this_version():
    assert PROJECT["version"] in (ROOT / "CHANGELOG.md").read_text()


def test_what_contributing_names_exists():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"`((?:djax|docs|experiments|benchmarks|tests)/[\w/.]*)`", text)
    assert len(paths) > 20
    for path in paths:
        assert path.endswith("_name.py") or (ROOT / path).exists(), path


@pytest.mark.parametrize(
    "name", ["README.md", "CONTRIBUTING.md", "benchmarks/README.md"]
)
def test_links_lead_to_files(name):
    """Sphinx checks those within the site."""
    file = ROOT / name
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", file.read_text())
    assert links
    for link in links:
        assert (file.parent / link).exists(), link


def test_the_readme_is_short():
    """What takes longer to read belongs to the site."""
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150
