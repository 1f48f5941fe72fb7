"""What was computed for a shard, kept while it is in use."""

from collections import OrderedDict
from collections.abc import Callable, Sized
from threading import Lock
from typing import Generic, TypeVar

MAX_ROWS = 1_000_000
"""More than two blocks of the smallest samples have, so that none is computed twice while a block lasts."""

Value = TypeVar("Value", bound=Sized)


class RecentlyUsed(Generic[Value]):
    """Values by the number of their shard: those used last, up to ``MAX_ROWS`` rows of all together.

    Threads may share it.
    """

    def __init__(self, compute: Callable[[int], Value]) -> None:
        """Prepare; the length of what ``compute`` gives is its rows."""
        self._compute = compute
        self._values: OrderedDict[int, Value] = OrderedDict()
        self._rows = 0
        self._lock = Lock()

    def __call__(self, number: int) -> Value:
        """The value of a shard."""
        with self._lock:
            if number in self._values:
                self._values.move_to_end(number)
                return self._values[number]
        value = self._compute(number)
        with self._lock:
            if number not in self._values:
                self._values[number] = value
                self._rows += len(value)
            while self._rows > MAX_ROWS and len(self._values) > 1:
                self._rows -= len(self._values.popitem(last=False)[1])
        return value
