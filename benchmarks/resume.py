"""Whether runs that are killed while they save can be resumed bit for bit.

    python -m benchmarks.resume

A run of D-PSGD on handwritten digits saves as often as it can. Its two workers are
simulated in one process or, in every second run, are two MPI ranks. At a random moment
after the first save all processes of the run are killed by SIGKILL, some of them while
they write, commit or remove a checkpoint. The same command line with `--resume` then
continues to the end.

Aim: every resumed run ends with the same parameters, bit for bit, as an undisturbed
run. It starts from the beginning only if no step had been saved by all processes.
"""

import dataclasses
import os
import pathlib
import signal
import subprocess
import sys
import tempfile
import time
from typing import Any

import numpy as np
import tyro

from . import contest

ROOT = pathlib.Path(__file__).parent.parent
PROGRAM = """
import sys
import jax, numpy as np
from djax import communicators
from experiments import train

folder, *arguments = sys.argv[1:]
run = train.Run(train.parse(arguments))
latest = run.job.saver.latest or 0
job = run.train()
leaves = [np.asarray(x) for x in jax.tree.leaves(job.workers.params)]
rank = communicators.launcher_rank()
np.savez(f"{folder}/{rank}.npz", *leaves, latest=latest)
"""
FINISH = 300.0
"""Seconds after which a run counts as hanging."""


@dataclasses.dataclass(frozen=True)
class Config(contest.Published):
    """The options of the command line."""

    runs: int = 50
    """Number of runs that are killed."""
    seed: int = 0
    """Seed of the moments at which runs are killed."""
    epochs: int = 60
    """Epochs of each run; a run saves after every epoch."""
    keep: int = 1
    """Number of checkpoints that are kept."""


def command(config: Config, kind: str, folder: pathlib.Path) -> list[str]:
    """The command line of a run, which both starts and resumes it.

    Args:
      config: the options of the command line.
      kind: `"simulated"` or `"mpi"`.
      folder: the run's folder.
    """
    launch = ["mpirun", "-n", "2"] if kind == "mpi" else []
    line = (
        f"--epochs {config.epochs} --evaluations 1 --batch-size 64 --runs {folder} "
        f"--checkpoints {folder}/saved --checkpoint-every 0.0001 --resume "
        f"--keep-checkpoints {config.keep} --drop-probability 0.1 "
        "--optimizer-options momentum 0.9"
    )
    if kind == "simulated":
        line += " --workers 2"
    return [*launch, sys.executable, "-c", PROGRAM, str(folder), *line.split()]


def start(config: Config, kind: str, folder: pathlib.Path) -> subprocess.Popen:
    """Starts or resumes a run, in a session of its own.

    All runs use the same programs, which a cache keeps, so that they compile once.
    """
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder.parent / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPIR_CVAR_ENABLE_HEAVY_YIELD": "1",
    }
    return subprocess.Popen(
        command(config, kind, folder),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=(folder / "stderr.txt").open("a"),
        start_new_session=True,
    )


def processes(folder: pathlib.Path) -> list[int]:
    """The processes whose command line names the folder of a run."""
    found = []
    for path in pathlib.Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if str(folder).encode() in line:
            found.append(int(path.parent.name))
    return found


def kill(folder: pathlib.Path) -> None:
    """Kills all processes of a run and its launcher."""
    for number in processes(folder):
        try:
            os.kill(number, signal.SIGKILL)
        except ProcessLookupError:
            continue


def steps_of(folder: pathlib.Path) -> list[set[int]]:
    """The steps that each process has saved completely."""
    return [
        {int(path.name) for path in own.iterdir() if path.name.isdigit()}
        for own in sorted((folder / "saved").glob("workers_*"))
    ]


def common(folder: pathlib.Path, kind: str) -> int:
    """The last step that all processes have saved, or 0."""
    try:
        everyones = steps_of(folder)
    except OSError:  # The run has removed a checkpoint in the meantime.
        return 0
    if len(everyones) < (2 if kind == "mpi" else 1):
        return 0
    return max(set.intersection(*everyones), default=0)


def finish(config: Config, kind: str, folder: pathlib.Path) -> list[Any] | None:
    """Starts or resumes a run, and waits until it ends.

    Returns:
      The parameters of each process and the step at which it began; None if it failed.
    """
    process = start(config, kind, folder)
    try:
        code = process.wait(FINISH)
    except subprocess.TimeoutExpired:
        kill(folder)
        return None
    if code != 0:
        return None
    return [dict(np.load(path)) for path in sorted(folder.glob("[0-9].npz"))]


def equal(ours: list[Any], theirs: list[Any]) -> bool:
    """Whether all processes have the same parameters, bit for bit."""
    return all(
        a.keys() == b.keys()
        and all(a[k].tobytes() == b[k].tobytes() for k in a.keys() - {"latest"})
        for a, b in zip(ours, theirs, strict=True)
    )


def attempt(
    config: Config,
    kind: str,
    folder: pathlib.Path,
    whole: list[Any],
    last: int,
    seconds: float,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Kills a run while it saves, resumes it, and compares it with an undisturbed run.

    Args:
      config: the options of the command line.
      kind: `"simulated"` or `"mpi"`.
      folder: the run's folder.
      whole: the results of the undisturbed run.
      last: the step that the undisturbed run saved last.
      seconds: time between two saves of the undisturbed run.
      rng: draws the moment of the kill.
    """
    process, began = start(config, kind, folder), time.monotonic()
    least = rng.uniform(0, 0.9) * last
    while common(folder, kind) <= least:
        if process.poll() is not None or time.monotonic() - began > FINISH:
            break
        time.sleep(1e-3)
    time.sleep(rng.uniform(0, seconds))
    over = process.poll() is not None
    kill(folder)
    process.wait()
    while processes(folder):
        time.sleep(0.01)
    saved = common(folder, kind)
    for path in folder.glob("[0-9].npz"):
        path.unlink()
    parts = len(list((folder / "saved").rglob("*.part")))
    resumed = finish(config, kind, folder)
    return {
        "kind": kind,
        "over": over,
        "saved": saved,
        "parts": parts,
        "from": int(resumed[0]["latest"]) if resumed else None,
        "ended": resumed is not None,
        "equal": resumed is not None and equal(resumed, whole),
        "from zero": bool(resumed and saved and not resumed[0]["latest"]),
        "stderr": (folder / "stderr.txt").read_text()[-500:] if not resumed else "",
    }


def undisturbed(
    config: Config, kind: str, folder: pathlib.Path
) -> tuple[list[Any], int, float]:
    """Results of an undisturbed run, its last saved step, and seconds between saves.

    The run is made twice: the second one, like the later runs, finds its programs
    compiled.
    """
    for name in ("first", "second"):
        own = folder / name
        own.mkdir(parents=True)
        process, times = start(config, kind, own), {}
        while process.poll() is None:
            times.setdefault(common(own, kind), time.monotonic())
            time.sleep(1e-3)
        found = [dict(np.load(path)) for path in sorted(own.glob("[0-9].npz"))]
        if process.returncode or not found:
            raise SystemExit((own / "stderr.txt").read_text())
    times.pop(0, None)
    moments = list(times.values())
    between = (moments[-1] - moments[0]) / max(1, len(moments) - 1)
    return found, max(times), between


def measure(config: Config) -> list[dict[str, Any]]:
    """Kills runs of both kinds in turns; returns their records."""
    rng, records = np.random.default_rng(config.seed), []
    kinds = "simulated", "mpi"
    with tempfile.TemporaryDirectory() as name:
        folder = pathlib.Path(name)
        wholes = {kind: undisturbed(config, kind, folder / kind) for kind in kinds}
        for number in range(config.runs):
            kind = kinds[number % 2]
            own = folder / kind / str(number)
            own.mkdir()
            record = attempt(config, kind, own, *wholes[kind], rng)
            records.append(record)
            print(f"{number + 1} of {config.runs}: {record}", file=sys.stderr)
    return records


def main() -> None:
    """The command line."""
    config = tyro.cli(Config, description=__doc__)
    records = measure(config)
    rows = []
    for kind in ("simulated", "mpi"):
        own = [record for record in records if record["kind"] == kind]
        count = len(own)
        rows.append(
            [
                kind,
                count,
                sum(record["over"] for record in own),
                sum(record["parts"] > 0 for record in own),
                sum(record["ended"] for record in own),
                sum(record["from zero"] for record in own),
                sum(record["equal"] for record in own),
                "met"
                if all(r["equal"] and not r["from zero"] for r in own)
                else "not met",
            ]
        )
    columns = (
        "two workers",
        "killed",
        "over by then",
        "within a write or removal",
        "ended",
        "from zero",
        "bit for bit",
        "aim: all, none from zero",
    )
    title = f"runs killed while saving, keeping {config.keep}"
    contest.publish("resume", [(title, columns, rows)], records, config.output)


if __name__ == "__main__":
    main()
