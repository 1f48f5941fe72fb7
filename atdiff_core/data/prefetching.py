"""Minibatches made ahead of time by other processes."""

import os
import signal
from collections.abc import Generator, Iterator
from ctypes import Array, c_ubyte
from dataclasses import dataclass
from itertools import count
from math import prod
from multiprocessing import get_context
from multiprocessing.context import ForkServerContext
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atdiff_core.data.batch import Batch, Request

if TYPE_CHECKING:
    from atdiff_core.data.stream import ShardSet

BATCHES_AHEAD = 3
"""Of each worker."""

Item = TypeVar("Item")


class Slots:
    """Memory of all processes that the workers decode into: what is large is neither pickled nor sent.

    The minibatches take turns. One that has been asked for keeps its slot until ``len`` further ones
    have been.
    """

    def __init__(self, length: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """``shape`` and ``dtype`` are those of the content of a rank's part of a minibatch."""
        self._shape, self._dtype = (length, *shape), dtype
        num_bytes = prod(self._shape) * dtype.itemsize
        self._memory: Array[c_ubyte] = fork_server().RawArray(c_ubyte, num_bytes)

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, number: int) -> Tensor:
        """The slot of a minibatch."""
        return torch.frombuffer(self._memory, dtype=self._dtype).view(self._shape)[number % len(self)]


@dataclass(frozen=True)
class Made:
    """A minibatch whose content lies in its slot."""

    labels: list[int]
    captions: list[str]
    numbers: list[int]
    keys: list[str]

    def batch(self, slot: Tensor, positions: range) -> Batch:
        """Take it out of the slot, which is then free."""
        labels = torch.tensor(self.labels, dtype=torch.int64)
        return Batch(slot.clone(), labels, self.captions, list(positions), self.numbers, self.keys)


class Minibatches(Dataset[Made | ValueError]):
    """Minibatches by number; a mistake is a result, for it must arrive as it was raised."""

    def __init__(self, shards: "ShardSet", request: Request, slots: Slots) -> None:
        self._open, self._arguments = shards.__reduce__()
        self._request, self._slots = request, slots
        self._environment = dict(os.environ)  # The fork server has that of the time when it started.
        self._shards: ShardSet | None = None

    def __getitem__(self, number: int) -> Made | ValueError:
        try:
            if self._shards is None:
                os.environ.update(self._environment)
                self._shards = self._open(*self._arguments)
            batch = self._shards.batch(self._request, number, self._slots[number])
        except (ValueError, OSError) as error:
            return ValueError(str(error))
        return Made(batch.labels.tolist(), batch.captions, batch.numbers, batch.keys)


def prefetched(shards: "ShardSet", request: Request, *, first: int, workers: int) -> Generator[Batch]:
    """The minibatches from number ``first`` on, in their order, by worker processes.

    The processes come from a fork server, never from a fork of this one, whose threads and locks
    (CUDA, Ray, file systems) would not survive it; they end when the iterator is closed.

    Raises:
        ValueError: While iterating, what reading a minibatch raised; or if a worker has died.
    """
    # As many as are asked for ahead, and the one that is handed out.
    slots = Slots(workers * BATCHES_AHEAD + 1, *shards.content_of(len(request.positions(0))))
    loader = DataLoader(
        Minibatches(shards, request, slots),
        batch_size=None,
        sampler=count(first),
        num_workers=workers,
        prefetch_factor=BATCHES_AHEAD,
        collate_fn=_as_it_is,
        worker_init_fn=_without_interrupts,
        multiprocessing_context=fork_server(),
    )
    arrivals: Iterator[Any] = iter(loader)
    try:
        for number in count(first):
            try:
                made = next(arrivals)
            except (RuntimeError, OSError, EOFError) as error:
                raise ValueError(
                    f"minibatch {number}: a process that reads data has died ({error}); if it was killed for its "
                    "memory, use fewer of them or smaller minibatches"
                ) from error
            if isinstance(made, ValueError):
                raise made
            yield made.batch(slots[number], request.positions(number))
    finally:
        del arrivals  # Ends the workers.


def fork_server() -> ForkServerContext:
    """Where the workers come from."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["atdiff_core.data.stream"])  # Torch is imported once, not by every worker.
    return context


def _as_it_is(item: Item) -> Item:
    return item


def _without_interrupts(worker: int) -> None:
    """Ctrl-C is the parent's to answer: it ends the workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
