#!/usr/bin/env python
"""Runs the job scripts of this folder under Slurm, and interrupts them in three ways.

    export SLURM_CONF=$(tests/cluster/toy_slurm up)
    python tests/cluster/check.py mpich openmpi mesh
    tests/cluster/toy_slurm down

is run by hand in the root of the repository, and takes several minutes a script, since
Slurm does not start a requeued job again at once. The second script needs
the environment `.venv-openmpi`, in which mpi4py and mpi4jax are built for the system's
Open MPI. Each script trains twice. The first job is not disturbed. The second one gets
SIGTERM, is then pre-empted by a job of the partition `urgent`, and is then put into the
queue again by `scontrol requeue`. Each time it has to go on from its checkpoint. All
metrics of both jobs have to be equal, except for times.
"""

import contextlib
import json
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator

FOLDER = pathlib.Path(__file__).parent
EPOCHS = "400"
OPTIONS = ["--epochs", EPOCHS, "--evaluations", "8", "--checkpoint-every", "0.5"]
PATIENCE = 300.0
"""Seconds after which a job that does not go on counts as hanging."""


def run(*command: str) -> str:
    """Runs a command, and returns what it prints; an error of it is an error."""
    done = subprocess.run(command, text=True, stdout=subprocess.PIPE, check=True)
    return done.stdout.strip()


class Job:
    """A job of Slurm, with a folder for all that it writes."""

    def __init__(self, script: str, folder: pathlib.Path):
        """Submits the job."""
        folder.mkdir(parents=True)
        self.folder, self.output = folder, folder / "output.txt"
        where = "--checkpoints", f"{folder}/saved", "--runs", f"{folder}/runs"
        submit = "sbatch", "--parsable", f"--output={self.output}"
        self.number = run(*submit, f"{FOLDER}/{script}.sbatch", *where, *OPTIONS)

    def facts(self) -> dict[str, str]:
        """Returns what Slurm knows of the job."""
        shown = run("scontrol", "--oneliner", "show", "job", self.number)
        return dict(pair.split("=", 1) for pair in shown.split() if "=" in pair)

    def saved(self) -> int:
        """Returns the number of the newest checkpoint, or 0."""
        files = self.folder.glob("saved/workers_*/*/checkpoint.zip")
        names = [file.parent.name for file in files]
        # A checkpoint that is still being written has another name.
        return max((int(name) for name in names if name.isdigit()), default=0)

    def wait(self, what: str, reached: Callable[[], object]) -> None:
        """Waits until something is reached."""
        end = time.monotonic() + PATIENCE
        while not reached():
            assert time.monotonic() < end, f"not {what}, in {self.folder}"
            time.sleep(0.2)

    def restarted(self, times: int) -> None:
        """Waits until the job runs again."""

        def runs() -> bool:
            now = self.facts()
            assert now["JobState"] not in ("COMPLETED", "FAILED", "CANCELLED"), now
            return (now["JobState"], now["Restarts"]) == ("RUNNING", str(times))

        self.wait(f"restarted {times} times", runs)

    def finish(self) -> list[dict[str, object]]:
        """Waits for the end of the job, and returns its metrics without times."""
        self.wait("ended", lambda: self.facts()["JobState"] not in _UNFINISHED)
        end = self.facts()
        assert (end["JobState"], end["ExitCode"]) == ("COMPLETED", "0:0"), end
        newest = max(self.folder.glob("runs/*/metrics.jsonl"))
        records = [json.loads(line) for line in newest.read_text().splitlines()]
        for record in records:
            del record["seconds"]
        return records


_UNFINISHED = "PENDING", "RUNNING", "COMPLETING", "REQUEUED"


def interruptions(job: Job) -> Iterator[tuple[str, list[str]]]:
    """Yields the commands that interrupt a job."""
    yield "SIGTERM", ["scancel", "--signal=TERM", job.number]
    # An urgent job of the same size needs all processors of both nodes.
    urgent = ["srun", "--partition=urgent", "--nodes=2", "--ntasks-per-node=2"]
    yield "pre-emption", [*urgent, "true"]
    yield "scontrol requeue", ["scontrol", "requeue", job.number]


def check(script: str, folder: pathlib.Path) -> None:
    """Compares an interrupted job with one that is not disturbed."""
    whole = Job(script, folder / "whole").finish()
    assert len(whole) == 8 and whole[-1]["epoch"] == int(EPOCHS), whole
    print(f"{script}: undisturbed, last loss {whole[-1]['loss']}", flush=True)
    job, before = Job(script, folder / "interrupted"), 0
    for times, (name, command) in enumerate(interruptions(job), 1):
        job.wait("saved", lambda before=before: job.saved() > before)
        run(*command)
        job.restarted(times)
        before = job.saved()
        print(f"{script}: goes on from step {before} after {name}", flush=True)
    parts = job.finish()
    said = job.output.read_text()
    assert said.count("; to go on: srun ") >= 2, said
    assert parts == whole, f"{folder}: the metrics differ"
    print(f"{script}: {len(parts)} evaluations are equal in every digit", flush=True)


def main(scripts: list[str]) -> None:
    """Checks some job scripts, which are named without their ending."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="djax-check-"))
    print(f"all files are in {folder}", flush=True)
    for script in scripts:
        check(script, folder / script)


if __name__ == "__main__":
    with contextlib.suppress(KeyboardInterrupt):
        main(sys.argv[1:] or ["mpich", "openmpi", "mesh"])
