"""Ctrl-C during a study: one line, nothing lost, and no process that trains on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from launch import ROOT

# Each process of the study imports it, too. Runs say that they have begun, and hang.
PROGRAM = """
import os, pathlib, sys, time
from experiments.lib import study
from experiments.relaysgd import table2_fashion_mnist as table

def hang(config):
    (pathlib.Path(os.environ["MARKS"]) / str(os.getpid())).write_text("")
    time.sleep(600)

study.train.Run = hang
if __name__ == "__main__":
    table.main(sys.argv[1:])
"""


@pytest.mark.slow
@pytest.mark.parametrize("jobs", [1, 2])
def test_ctrl_c_ends_a_study_with_one_line(jobs, tmp_path):
    marks, scratch = tmp_path / "marks", tmp_path / "scratch"
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    marks.mkdir()
    scratch.mkdir()
    process = subprocess.Popen(
        [sys.executable, program, "--jobs", str(jobs), "--output", tmp_path],
        cwd=ROOT,
        env={
            **os.environ,
            "JAX_PLATFORMS": "cpu",
            "MARKS": str(marks),
            "PYTHONPATH": str(ROOT),
            "TMPDIR": str(scratch),
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        end = time.monotonic() + 120
        while len(list(marks.iterdir())) < jobs:
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.05)
        os.killpg(process.pid, signal.SIGINT)  # As a terminal does.
        output, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "Traceback" not in error + output
        said = [line for line in error.splitlines() if "stopped by Ctrl-C" in line]
        assert len(said) == 1 and "to go on, start the same again" in said[0]
        assert "0 runs are kept in" in said[0] and ".jsonl" in said[0]
        with pytest.raises(ProcessLookupError):
            while time.monotonic() < end:
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        assert not list(scratch.iterdir())
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
