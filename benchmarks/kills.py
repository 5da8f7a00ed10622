"""Whether jobs end when one of their processes is killed at any moment.

    python -m benchmarks.kills --runs 200

Starts small trainings of 2 to 4 processes, kills one of them (SIGKILL) at a random
moment of a phase, and waits for the end of the job. Over MPI the launcher ends all
processes. Over sockets (`--transport zmq` and `djax.guard`) the other processes finish
their training.

Aim: every job ends within `--bound` seconds, and no process outlives its job.

Linux only. About 40 minutes for 200 runs on two cores.
"""

import collections
import concurrent.futures
import dataclasses
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from typing import Any

import numpy as np
import tqdm
import tyro

from . import contest

PHASES = {
    "start": "of the first seconds",
    "compile": "the bar is at 0 %",
    "train": "the bar moves",
    "save": "a checkpoint is being written",
    "end": "the bar is at 100 %",
}
KINDS = {
    "zmq": ["--algorithm", "a2cid2", "--transport", "zmq", "--timeout", "5"],
    "mpi": ["--algorithm", "a2cid2", "--transport", "mpi", "--timeout", "5"],
    "synchronous": [],
}
TASK = "--task quadratics --epochs 4 --steps-per-epoch 250 --evaluations 2".split()
TOKEN = "DJAX_KILLS_JOB"  # Environment variable by which a job's processes are known.
STARTS = 4.0  # Seconds after the start within which the phase `start` kills.
GIVE_UP = 180.0  # Seconds after which a phase counts as not reached.
ORPHANS = 2.0  # Seconds for which processes may outlive their launcher.


@dataclasses.dataclass(frozen=True)
class Config(contest.Published):
    """The options of the command line."""

    runs: int = 200
    """Number of jobs."""
    seed: int = 0
    """Seed of the jobs' kinds, sizes, killed processes and moments."""
    jobs: int = 2
    """Number of jobs that run at once."""
    bound: float = 60.0
    """Seconds after the kill within which a job has to end."""


@dataclasses.dataclass(frozen=True)
class Plan:
    """One job, and how one of its processes is killed.

    Attributes:
      kind: how its processes communicate, a key of `KINDS`.
      phase: the phase in which a process is killed, a key of `PHASES`.
      ranks: number of processes.
      victim: rank of the process that is killed.
      moment: place of the kill within its phase, from 0 (its begin) to 1.
    """

    kind: str
    phase: str
    ranks: int
    victim: int
    moment: float


def draw(config: Config) -> list[Plan]:
    """Draws plans: phases and kinds alternate, everything else is random."""
    rng = np.random.default_rng(config.seed)
    plans = []
    for number in range(config.runs):
        ranks = int(rng.integers(2, 5))
        kind = list(KINDS)[number % len(KINDS)]
        phase = list(PHASES)[number // len(KINDS) % len(PHASES)]
        victim, moment = int(rng.integers(ranks)), float(rng.random())
        plans.append(Plan(kind, phase, ranks, victim, moment))
    return plans


class Job:
    """A training that runs.

    Args:
      plan: what is started, and what is killed.
      folder: folder of the training's files.
    """

    def __init__(self, plan: Plan, folder: pathlib.Path):
        """Starts the training."""
        self._plan, self._folder = plan, folder
        self._token, self.began = uuid.uuid4().hex, time.monotonic()
        guarded = plan.kind == "zmq"
        command = ["mpirun", *["-disable-auto-cleanup"] * guarded]
        command += ["-n", str(plan.ranks), sys.executable]
        command += ["-m", "djax.guard"] * guarded + ["-m", "experiments.train", *TASK]
        command += [*KINDS[plan.kind], "--runs", str(folder / "runs")]
        command += ["--checkpoints", str(folder / "saved"), "--checkpoint-every", "0.5"]
        environment = {
            "JAX_PLATFORMS": "cpu",
            "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
            "DJAX_EXIT_TIMEOUT": "15",
            "DJAX_START_TIMEOUT": "60",
            TOKEN: self._token,
        }
        self._log = folder / "log"
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                command,
                cwd=pathlib.Path(__file__).parent.parent,
                env={**os.environ, **environment},
                stdout=log,
                stderr=subprocess.STDOUT,
            )

    def processes(self) -> list[tuple[int, dict[str, str], str]]:
        """Ids, environments and command lines of its living processes."""
        found = []
        for entry in pathlib.Path("/proc").iterdir():
            try:
                pairs = (entry / "environ").read_bytes().decode(errors="replace")
                if self._token not in pairs:
                    continue
                command = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:  # No process, an ended one, or another user's.
                continue
            parts = (pair.partition("=") for pair in pairs.split("\0"))
            values = {name: value for name, _, value in parts}
            found.append((int(entry.name), values, command))
        return found

    def share(self) -> int | None:
        """The progress that the bar shows, in %; None before there is a bar."""
        shown = re.findall(rb"(\d+)%\|", self._log.read_bytes())
        return int(shown[-1]) if shown else None

    def tail(self) -> str:
        """The last lines of its output."""
        return self._log.read_text(errors="replace")[-2000:]

    def _has_come(self) -> bool:
        """Whether the phase has begun."""
        share = self.share()
        match self._plan.phase:
            case "start":
                return True
            case "compile":
                return share is not None
            case "train":
                return share is not None and share > 80 * self._plan.moment
            case "save":
                written = self._folder.glob("saved/*/*.part")
                return any(written) or share == 100
            case _:
                return share == 100

    def kill(self) -> bool:
        """Waits for the moment, and kills; returns whether the job still ran then."""
        while not self._has_come():
            late = time.monotonic() - self.began > GIVE_UP
            if late or self.process.poll() is not None:
                return False
            time.sleep(0.02)
        length = {"start": STARTS, "compile": 1.0, "end": 1.0}
        time.sleep(self._plan.moment * length.get(self._plan.phase, 0.0))
        while self.process.poll() is None:
            for number, values, command in self.processes():
                rank = values.get("PMI_RANK") == str(self._plan.victim)
                if rank and "experiments.train" in command and "guard" not in command:
                    os.kill(number, signal.SIGKILL)
                    return True
            time.sleep(0.02)
        return False


def run(plan: Plan, bound: float) -> dict[str, Any]:
    """Starts a job, kills one of its processes, and records how the job ends."""
    with tempfile.TemporaryDirectory() as name:
        job = Job(plan, pathlib.Path(name))
        struck = job.kill()
        killed = time.monotonic()
        in_time = True
        try:
            job.process.wait(bound)
        except subprocess.TimeoutExpired:
            in_time = False
        seconds = time.monotonic() - killed
        while in_time and job.processes():
            if time.monotonic() - killed - seconds > ORPHANS:
                break
            time.sleep(0.05)
        left = job.processes()
        for number, _, _ in left:
            os.kill(number, signal.SIGKILL)
        job.process.wait()
        good = not struck or (in_time and not left)
        return {
            **dataclasses.asdict(plan),
            "struck": struck,
            "in_time": in_time,
            "seconds": seconds,
            "code": job.process.returncode if in_time else None,
            "orphans": len(left) if in_time else 0,
            "table": "written to" in job.tail(),
            "said": "" if good else job.tail(),
        }


def leftovers() -> set[str]:
    """Files of MPICH's shared memory that exist now."""
    return {path.name for path in pathlib.Path("/dev/shm").glob("mpich_shm_*")}


def table(records: list[dict[str, Any]]) -> list[list[str]]:
    """A row for each kind and phase."""
    rows = []
    for kind in KINDS:
        for phase in PHASES:
            mine = [r for r in records if (r["kind"], r["phase"]) == (kind, phase)]
            struck = [r for r in mine if r["struck"]]
            if not struck:
                continue
            codes = collections.Counter(str(r["code"]) for r in struck)
            rows.append(
                [
                    kind,
                    phase,
                    f"{len(struck)} of {len(mine)}",
                    str(sum(r["in_time"] for r in struck)),
                    f"{max(r['seconds'] for r in struck):.1f}",
                    ", ".join(f"{k}: {n}" for k, n in sorted(codes.items())),
                    str(sum(r["orphans"] for r in struck)),
                    str(sum(r["table"] for r in struck)),
                ]
            )
    return rows


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    plans, before = draw(config), leftovers()
    with concurrent.futures.ThreadPoolExecutor(config.jobs) as pool:
        futures = [pool.submit(run, plan, config.bound) for plan in plans]
        done = concurrent.futures.as_completed(futures)
        for _ in tqdm.tqdm(done, total=len(plans), unit="job"):
            pass
    records = [future.result() for future in futures]
    for record in records:
        if record["said"]:
            print(f"not as it should be: {record}", file=sys.stderr)
    columns = ["", "phase", "killed", "ended in time", "longest, s"]
    columns += ["exit codes", "orphans", "tables"]
    # The other jobs ended before their kill.
    struck = [r for r in records if r["struck"]]
    bad = sum(not r["in_time"] or r["orphans"] > 0 for r in struck)
    title = f"{len(struck)} kills, {config.bound:g} s allowed, {bad} bad, "
    title += f"{len(leftovers() - before)} pieces of shared memory left"
    contest.publish("kills", [(title, columns, table(records))], records, config.output)


if __name__ == "__main__":
    main()
