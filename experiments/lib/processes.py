"""Computes the runs of a table in this process or in several, and keeps programs.

Small models leave most threads of a process without work. Therefore several processes
with one thread each finish a table sooner than one process with many threads.

Short runs spend most of their time on compiling their programs. Compiled programs are
therefore kept in files, from which later runs read them.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import pathlib
import signal
import tempfile
import threading
import time
import warnings
from collections.abc import Iterator

import jax

ALL_PROGRAMS = {
    "jax_persistent_cache_min_compile_time_secs": 0.0,
    "jax_persistent_cache_min_entry_size_bytes": -1,
}
"""JAX's options for keeping small programs, too, which take most of a short run."""
KEPT_SECONDS = 30 * 24 * 3600
"""A month after it was compiled, a program is compiled anew. Programs of old versions
would otherwise fill the disk."""


def keep_compiled() -> None:
    """Keeps the programs of a command in a folder of the user, for later commands.

    Nothing is kept if the user has switched JAX's cache off, or if no folder can be
    written. If the user has chosen a folder for JAX's cache, that folder and all of
    JAX's other options stay as they are.

    Several processes may use the folder at once. A file that is read while it is
    written, or whose writer was killed, cannot be decompressed. JAX then compiles the
    program and warns; the warning is silenced, since nobody has to act on it.
    """
    chosen = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    enabled = getattr(jax.config, "jax_enable_compilation_cache")  # noqa: B009
    if chosen or not enabled:
        return
    try:
        home = os.environ.get("XDG_CACHE_HOME") or pathlib.Path.home() / ".cache"
        folder = pathlib.Path(home) / "djax" / "compiled"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # It can be written.
            pass
    except (OSError, RuntimeError):  # RuntimeError: the user has no home.
        return
    for file in folder.iterdir():
        with contextlib.suppress(OSError):  # Another process may remove it first.
            if file.stat().st_mtime < time.time() - KEPT_SECONDS:
                file.unlink()
    for name, value in ALL_PROGRAMS.items():
        jax.config.update(name, value)
    jax.config.update("jax_compilation_cache_dir", str(folder))
    message = "Error (reading|writing) persistent compilation cache"
    warnings.filterwarnings("ignore", message)


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Keeps compiled programs in a folder, so that later runs need not compile them.

    The folder is JAX's own, if the user has chosen one.
    """
    chosen = getattr(jax.config, "jax_compilation_cache_dir")  # noqa: B009
    folder = chosen or compiled_folder().name
    options = {"jax_compilation_cache_dir": folder, **ALL_PROGRAMS}
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@functools.cache
def compiled_folder() -> tempfile.TemporaryDirectory:
    """Makes the folder once; a process that exits abruptly has to remove it."""
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


@contextlib.contextmanager
def pool(jobs: int) -> Iterator[concurrent.futures.Executor]:
    """Starts processes with one thread each, which compute several runs at once.

    With `jobs=1` a thread of this process computes the runs instead. After Ctrl-C the
    context is left without waiting for runs that have begun.
    """
    if jobs == 1:
        with compiled_once():
            pool = concurrent.futures.ThreadPoolExecutor(1)
            try:
                yield pool
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
        return
    flags = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"
    before = os.environ.get("XLA_FLAGS")
    os.environ["XLA_FLAGS"] = f"{before or ''} {flags}".strip()
    context = multiprocessing.get_context("spawn")
    try:
        with concurrent.futures.ProcessPoolExecutor(
            jobs, context, _end_with_parent
        ) as pool:
            try:
                yield pool
            except KeyboardInterrupt:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in multiprocessing.active_children():
                    process.kill()
                raise
    finally:
        os.environ.pop("XLA_FLAGS")
        if before is not None:
            os.environ["XLA_FLAGS"] = before


@contextlib.contextmanager
def interrupts_withheld() -> Iterator[None]:
    """Ignores Ctrl-C while child processes are started, which inherit this.

    A terminal sends Ctrl-C to all processes, and each child would print a traceback.
    After the context, this process reacts to Ctrl-C again.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Makes a child process end when its parent is killed."""

    def end():
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
