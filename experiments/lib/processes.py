"""Where the runs of tables are computed: in this process or in several, compiled once.

Several processes of one thread each finish a table sooner than one process of many
threads, since small models leave most threads without work.
"""

import concurrent.futures
import contextlib
import functools
import multiprocessing
import os
import signal
import tempfile
import threading
from collections.abc import Iterator

import jax


@contextlib.contextmanager
def compiled_once() -> Iterator[None]:
    """Keeps compiled programs in a folder that lasts as long as this process."""
    options = {
        "jax_compilation_cache_dir": _keep_folder().name,
        "jax_persistent_cache_min_compile_time_secs": 0.0,
        "jax_persistent_cache_min_entry_size_bytes": -1,
    }
    before = {name: getattr(jax.config, name) for name in options}
    for name, value in options.items():
        jax.config.update(name, value)
    try:
        yield
    finally:
        for name, value in before.items():
            jax.config.update(name, value)


@functools.cache
def _keep_folder() -> tempfile.TemporaryDirectory:
    return tempfile.TemporaryDirectory(ignore_cleanup_errors=True)


def discard_compiled() -> None:
    """Removes that folder before the end, for a process that ends without clean-up."""
    _keep_folder().cleanup()


@contextlib.contextmanager
def pool(jobs: int) -> Iterator[concurrent.futures.Executor]:
    """Processes of one thread each, so that runs do not wait for each other.

    For one job at a time there is none besides this one. After Ctrl-C runs that have
    begun are not waited for.
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
    """Lets processes start that never hear of Ctrl-C, which they inherit.

    A terminal tells all of them, and each would show a traceback. This process still
    hears of it afterwards.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Leaves no process behind when a study is killed."""

    def end():
        parent = multiprocessing.parent_process()
        assert parent is not None
        parent.join()
        os._exit(1)

    threading.Thread(target=end, daemon=True).start()
