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
from weakref import finalize

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from atdiff_core.data.batch import Batch, Request

if TYPE_CHECKING:
    from atdiff_core.data.stream import ShardSet

BATCHES_AHEAD = 3
"""Of each worker."""
BATCHES_OUT = 3
"""Slots beside those that are worked on: the minibatch handed out, the one before it, and the next to be asked for."""

Item = TypeVar("Item")


class Slots:
    """Memory of all processes that the workers decode into: what is large is neither pickled, sent nor copied.

    A minibatch is lent a slot when it is asked for. The slot is free again when nothing refers to its content.
    """

    def __init__(self, length: int, shape: tuple[int, ...], dtype: torch.dtype) -> None:
        """``shape`` and ``dtype`` are those of the content of a rank's part of a minibatch."""
        self._shape, self._dtype = shape, dtype
        self._slot_bytes = prod(shape) * dtype.itemsize
        self._memory: Array[c_ubyte] = fork_server().RawArray(c_ubyte, length * self._slot_bytes)
        self._free = list(range(length))

    def __getitem__(self, slot: int) -> Tensor:
        """Where the content of a minibatch is written."""
        return self._content(self._part(slot))

    def lend(self) -> int:
        """A free slot."""
        return self._free.pop()

    def taken(self, slot: int) -> Tensor:
        """The content of a minibatch that is handed out; a copy if somebody holds so many that no slot is free."""
        if not self._free:
            self._free.append(slot)
            return self[slot].clone()
        part = self._part(slot)
        finalize(part, self._free.append, slot).atexit = False
        return self._content(part)

    def _part(self, slot: int) -> NDArray[np.uint8]:
        return np.frombuffer(memoryview(self._memory), np.uint8, self._slot_bytes, slot * self._slot_bytes)

    def _content(self, part: NDArray[np.uint8]) -> Tensor:
        """Its memory refers to ``part`` for as long as any tensor refers to it."""
        return torch.frombuffer(part, dtype=self._dtype).view(self._shape)


@dataclass(frozen=True)
class Made:
    """A minibatch whose content lies in its slot."""

    slot: int
    labels: list[int]
    captions: list[str]
    numbers: list[int]
    keys: list[str]

    def batch(self, slots: Slots, positions: range) -> Batch:
        """Take it out of its slot."""
        labels = torch.tensor(self.labels, dtype=torch.int64)
        return Batch(slots.taken(self.slot), labels, self.captions, list(positions), self.numbers, self.keys)


class Minibatches(Dataset[Made | ValueError]):
    """Minibatches by number and slot; a mistake is a result, for it must arrive as it was raised."""

    def __init__(self, shards: "ShardSet", request: Request, slots: Slots) -> None:
        self._open, self._arguments = shards.__reduce__()
        self._request, self._slots = request, slots
        self._environment = dict(os.environ)  # The fork server has that of the time when it started.
        self._shards: ShardSet | None = None

    def __getitem__(self, asked: tuple[int, int]) -> Made | ValueError:
        number, slot = asked
        try:
            if self._shards is None:
                os.environ.update(self._environment)
                self._shards = self._open(*self._arguments)
            batch = self._shards.batch(self._request, number, self._slots[slot])
        except (ValueError, OSError) as error:
            return ValueError(str(error))
        return Made(slot, batch.labels.tolist(), batch.captions, batch.numbers, batch.keys)


def prefetched(shards: "ShardSet", request: Request, *, first: int, workers: int) -> Generator[Batch]:
    """The minibatches from number ``first`` on, in their order, by worker processes.

    The processes come from a fork server, never from a fork of this one, whose threads and locks
    (CUDA, Ray, file systems) would not survive it; they end when the iterator is closed.

    Raises:
        ValueError: While iterating, what reading a minibatch raised; or if a worker has died.
    """
    slots = Slots(workers * BATCHES_AHEAD + BATCHES_OUT, *shards.content_of(len(request.positions(0))))
    loader = DataLoader(
        Minibatches(shards, request, slots),
        batch_size=None,
        sampler=((number, slots.lend()) for number in count(first)),
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
            yield made.batch(slots, request.positions(number))
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
