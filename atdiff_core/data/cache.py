"""Decoded shards in memory, up to a limit."""

from collections import OrderedDict
from collections.abc import Callable

from atdiff_core.data.decoding import DecodedShard


class ShardCache:
    """Decodes a shard when it is asked for and forgets the one unused for longest.

    The newest shard is kept even if it alone is over the limit, so memory stays below
    ``limit_bytes`` plus one decoded shard.

    Args:
        decode: Shard number to its samples.
        limit_bytes: Pixels to keep, one byte each.
    """

    def __init__(self, decode: Callable[[int], DecodedShard], limit_bytes: int) -> None:
        if limit_bytes < 0:
            raise ValueError(f"cache_bytes must be >= 0, got {limit_bytes}")
        self._decode = decode
        self._limit_bytes = limit_bytes
        self._kept: OrderedDict[int, DecodedShard] = OrderedDict()
        self._kept_bytes = 0

    def __getitem__(self, number: int) -> DecodedShard:
        if number in self._kept:
            self._kept.move_to_end(number)
            return self._kept[number]
        decoded = self._decode(number)
        self._kept_bytes += decoded.images.nbytes
        while self._kept and self._kept_bytes > self._limit_bytes:
            _, oldest = self._kept.popitem(last=False)
            self._kept_bytes -= oldest.images.nbytes
        self._kept[number] = decoded
        return decoded
