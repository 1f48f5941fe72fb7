"""Bytes of the shards brought near before they are needed: fetched from a server, or read by the kernel."""

import threading
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from atdiff_core.data.batch import Request
from atdiff_core.data.members import MemberTable
from atdiff_core.data.order import SampleOrder
from atdiff_core.data.shard_files import PIECE_BYTES, ShardFiles

GAP_BYTES = 2**20
"""Ranges nearer than this are fetched as one."""


class ReadAhead:
    """Fetches what a rank will need of the current block and of the next one, in threads.

    A minibatch is drawn from all of a block, so that at its start every part of it is wanted at
    once: the next block must be near before it begins. An error is left to the reader, who meets
    it at the sample it belongs to.
    """

    def __init__(self, files: ShardFiles, order: SampleOrder, request: Request, *, threads: int) -> None:
        self._files, self._order, self._request = files, order, request
        self._wanted: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self._planned_to = 0
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._work, daemon=True) for _ in range(threads)]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()

    def to(self, position: int) -> None:
        """Tell where in the infinite stream the reader is."""
        self._planned_to = max(self._planned_to, position)
        _, end = self._order.block_around(position)
        _, end_of_next = self._order.block_around(end)
        while self._planned_to < end_of_next:
            _, stop = self._order.block_around(self._planned_to)
            self._plan(self._planned_to, stop)
            self._planned_to = stop

    def _plan(self, start: int, stop: int) -> None:
        """Ask for the rank's part of a stretch of the stream."""
        request = self._request
        first = start + (request.rank - start) % request.world_size
        places = self._order.places(request.seed, first, stop, request.world_size)
        for shard in places.shards.unique().tolist():
            rows = places.rows[places.shards == shard].numpy()
            self._wanted.put(partial(self._split, shard, rows))

    def _split(self, shard: int, rows: NDArray[np.int64]) -> None:
        for start, stop in ranges_of(self._files.table(shard), rows):
            for first in range(start, stop, PIECE_BYTES):
                last = min(first + PIECE_BYTES, stop)
                self._wanted.put(partial(self._files.fetch, shard, first, last))

    def _work(self) -> None:
        while not self._ended.is_set():
            with suppress(Empty, ValueError, OSError):
                self._wanted.get(timeout=1)()


def ranges_of(table: MemberTable, rows: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Where the members of some rows lie in their tar; neighbours are one range."""
    offsets = np.stack([table.offsets[each][rows] for each in table.extensions])
    sizes = np.stack([table.sizes[each][rows] for each in table.extensions])
    starts = np.where(offsets < 0, np.iinfo(np.int64).max, offsets).min(axis=0)
    ends = np.where(offsets < 0, 0, offsets + sizes).max(axis=0)
    order = np.argsort(starts)
    starts, ends = starts[order], np.maximum.accumulate(ends[order])
    apart = starts[1:] > ends[:-1] + GAP_BYTES
    firsts, lasts = starts[np.r_[True, apart]], ends[np.r_[apart, True]]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
