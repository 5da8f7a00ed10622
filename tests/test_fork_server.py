"""Copies of the process that tests keep begin and end as other processes do."""

import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from launch import ROOT, by_copies, python, variables

pytestmark = [
    pytest.mark.xdist_group("mpi"),
    pytest.mark.skipif(sys.platform != "linux", reason="of Linux's kernel"),
]


def test_arguments_output_and_folder_are_the_clients():
    program = """
import os, sys
print(sys.argv, os.getcwd(), __name__)
print("wrong", file=sys.stderr)
"""
    result = python("-c", program, "a b", "ä")
    assert result.returncode == 0
    assert result.stdout == f"['-c', 'a b', 'ä'] {ROOT} __main__\n"
    assert result.stderr == "wrong\n"


def test_variables_are_the_clients(monkeypatch):
    monkeypatch.setenv("DJAX_TEST", "here")
    result = python("-c", "import os; print(os.environ['DJAX_TEST'])")
    assert result.stdout == "here\n"


def test_modules_are_run_as_programs():
    assert "usage: " in python("-m", "json.tool", "--help").stdout


@pytest.mark.parametrize(
    ("program", "code"),
    [
        ("pass", 0),
        ("import sys; sys.exit(7)", 7),
        ("import os; os._exit(3)", 3),
        ("raise ValueError('no')", 1),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    ],
)
def test_a_client_ends_as_its_program(program, code):
    result = python("-c", program)
    assert result.returncode == code
    assert ("ValueError: no" in result.stderr) == ("ValueError" in program)


def test_what_is_registered_for_the_exit_is_done():
    program = "import atexit; atexit.register(print, 'last'); print('first')"
    assert python("-c", program).stdout == "first\nlast\n"


def test_a_program_ends_with_its_client():
    program = "import os, time; print(os.getpid(), flush=True); time.sleep(100)"
    client = subprocess.Popen(
        [sys.executable, *by_copies(), "-c", program],
        env=variables(),
        stdout=subprocess.PIPE,
    )
    with client.stdout as said:
        child = int(said.readline())
        client.kill()
        client.wait()
        end = time.monotonic() + 30
        while pathlib.Path(f"/proc/{child}").exists():
            assert time.monotonic() < end
            time.sleep(0.01)
    with pytest.raises(ProcessLookupError):
        os.kill(child, 0)
