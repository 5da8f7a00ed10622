"""Commands keep their compiled programs, where the user lets them."""

import os
import sys

import jax
import launch
import pytest

from experiments.lib import processes

NAMES = ("jax_compilation_cache_dir", "jax_enable_compilation_cache")


@pytest.fixture
def unchosen(monkeypatch, tmp_path):
    """JAX without a chosen folder, as users have it, and a home for the cache."""
    names = (*NAMES, *processes.ALL_PROGRAMS)
    before = {name: getattr(jax.config, name) for name in names}
    jax.config.update("jax_compilation_cache_dir", None)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    yield tmp_path / "djax" / "compiled"
    for name, value in before.items():
        jax.config.update(name, value)


def chosen():
    return jax.config.jax_compilation_cache_dir


def test_programs_are_kept_in_the_users_cache(unchosen):
    processes.keep_compiled()
    assert chosen() == str(unchosen)
    for name, value in processes.ALL_PROGRAMS.items():
        assert getattr(jax.config, name) == value


def test_a_folder_that_the_user_has_chosen_stays(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    before = chosen()
    processes.keep_compiled()
    assert before and chosen() == before
    assert not list(tmp_path.iterdir())


def test_nothing_is_kept_if_the_cache_is_switched_off(unchosen):
    jax.config.update("jax_enable_compilation_cache", False)
    processes.keep_compiled()
    assert chosen() is None
    assert not unchosen.exists()


def test_nothing_is_kept_if_no_folder_can_be_made(unchosen):
    unchosen.parent.write_text("a file where the folder would be")
    processes.keep_compiled()
    assert chosen() is None


def test_programs_are_kept_for_a_month(unchosen):
    unchosen.mkdir(parents=True)
    for name, age in (("old", 31), ("new", 29)):
        file = unchosen / name
        file.touch()
        time = file.stat().st_mtime - age * 24 * 3600
        os.utime(file, (time, time))
    processes.keep_compiled()
    assert [file.name for file in unchosen.iterdir()] == ["new"]


def test_a_later_process_finds_the_program(tmp_path):
    """Also if the file of one program is damaged, which nobody hears of."""
    program = (
        "import jax\n"
        "from experiments.lib import processes\n"
        "processes.keep_compiled()\n"
        "hits = []\n"
        "jax.monitoring.register_event_listener(lambda name, **_: hits.append(name))\n"
        "print(jax.jit(lambda x: x + 1)(1.0), jax.jit(lambda x: x * 2)(3.0))\n"
        "print(hits.count('/jax/compilation_cache/cache_hits'))\n"
    )
    environment = {"XDG_CACHE_HOME": str(tmp_path), "JAX_COMPILATION_CACHE_DIR": ""}

    def run():
        result = launch.run(
            sys.executable, "-c", program, timeout=60, **environment, PYTHONWARNINGS=""
        )
        assert not result.stderr
        return result.stdout

    assert run() == "2.0 6.0\n0\n"
    (damaged, *others) = (tmp_path / "djax" / "compiled").glob("*-cache")
    assert len(others) == 1
    damaged.write_bytes(damaged.read_bytes()[:20])
    assert run() == "2.0 6.0\n1\n"
