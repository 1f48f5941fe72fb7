"""Minibatches made ahead of time by other processes."""

import os
import signal
from collections.abc import Generator, Iterator
from itertools import count
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import TYPE_CHECKING, Any

from torch.utils.data import DataLoader, Dataset

from atdiff_core.data.batch import Batch, Request

if TYPE_CHECKING:
    from atdiff_core.data.stream import ShardSet

BATCHES_AHEAD = 3
"""Of each worker."""


class _Minibatches(Dataset[Batch | ValueError]):
    """Minibatches by number; a mistake is a result, for it must arrive as it was raised."""

    def __init__(self, shards: "ShardSet", request: Request) -> None:
        self._open, self._arguments = shards.__reduce__()
        self._request = request
        self._environment = dict(os.environ)  # The fork server has that of the time when it started.
        self._shards: ShardSet | None = None

    def __getitem__(self, number: int) -> Batch | ValueError:
        try:
            if self._shards is None:
                os.environ.update(self._environment)
                self._shards = self._open(*self._arguments)
            return self._shards.batch(self._request, number)
        except (ValueError, OSError) as error:
            return ValueError(str(error))


def prefetched(shards: "ShardSet", request: Request, *, first: int, workers: int) -> Generator[Batch]:
    """The minibatches from number ``first`` on, in their order, by worker processes.

    The processes come from a fork server, never from a fork of this one, whose threads and locks
    (CUDA, Ray, file systems) would not survive it; they end when the iterator is closed.

    Raises:
        ValueError: While iterating, what reading a minibatch raised; or if a worker has died.
    """
    loader = DataLoader(
        _Minibatches(shards, request),
        batch_size=None,
        sampler=count(first),
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD,
        worker_init_fn=_without_interrupts,
        multiprocessing_context=_fork_server(),
    )
    batches: Iterator[Any] = iter(loader)
    try:
        for number in count(first):
            try:
                batch = next(batches)
            except (RuntimeError, OSError, EOFError) as error:
                raise ValueError(
                    f"minibatch {number}: a process that reads data has died ({error}); if it was killed for its "
                    "memory, use fewer of them or smaller minibatches"
                ) from error
            if isinstance(batch, ValueError):
                raise batch
            yield batch
    finally:
        del batches  # Ends the workers.


def _fork_server() -> ForkServerContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["atdiff_core.data.stream"])  # Torch is imported once, not by every worker.
    return context


def _without_interrupts(worker: int) -> None:
    """Ctrl-C is the parent's to answer: it ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
