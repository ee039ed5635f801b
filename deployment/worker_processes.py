"""What processes that run simulations side by side have in common: one thread each, and their environments."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from functools import partial
from multiprocessing import connection, get_context, parent_process
from typing import Any

from .environments.registry import make_environment

# On few cores two processes of one thread beat one process of two.
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")


@contextmanager
def worker_pool(num_workers: int, prepare: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """A pool of `num_workers` spawned processes, in each of which `prepare(*arguments)` runs once.

    What is still waiting when the block ends, by an error or Ctrl-C too, is dropped. Raises RuntimeError, with usual
    causes and remedies, when one of them was killed.
    """
    with (
        environment_variables(ONE_THREAD),
        ProcessPoolExecutor(num_workers, get_context("spawn"), _start, (prepare, arguments)) as pool,
    ):
        try:
            yield pool
        except BrokenProcessPool as error:
            raise RuntimeError(
                "a worker process was killed, most often by the system because memory ran short: each holds a "
                "simulator, and in an evaluation a policy. Use fewer, --workers N (num_workers=); an evaluation keeps "
                'the trials that it has finished. (A script needs `if __name__ == "__main__":` around its call.)'
            ) from error
        finally:
            pool.shutdown(cancel_futures=True)


def _start(prepare: Callable[..., None], arguments: tuple[Any, ...]) -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C ends a worker at once and silently; the parent cleans up
    threading.Thread(target=_end_with_parent, daemon=True).start()
    prepare(*arguments)


def _end_with_parent() -> None:
    """Ends this process when its parent is killed, which could not tell it: it would wait for work for ever."""
    parent = parent_process()
    assert parent is not None
    connection.wait([parent.sentinel])
    os._exit(1)


class LastEnvironment:
    """Makes environments and keeps the last one while the same task is asked for: building one takes 0.2 s."""

    def __init__(self) -> None:
        self._made: tuple[Any, Any] | None = None

    def get(self, source: str | Callable[..., Any], task: str, options: dict[str, Any]) -> Any:
        """What `make_environment(source, task, **options)` makes, or where it is a function, `source` itself."""
        wanted = (source, task, options)
        if self._made is None or self._made[0] != wanted:
            self.close()
            make = source if callable(source) else partial(make_environment, source)
            self._made = (wanted, make(task, **options))
        return self._made[1]

    def close(self) -> None:
        if self._made is not None:
            self._made[1].close()
            self._made = None


@contextmanager
def environment_variables(values: dict[str, str]) -> Iterator[None]:
    """Sets environment variables for the processes started meanwhile; what a user has set wins."""
    added = [name for name in values if name not in os.environ]
    os.environ.update({name: values[name] for name in added})
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)


__all__ = ["ONE_THREAD", "LastEnvironment", "environment_variables", "worker_pool"]
