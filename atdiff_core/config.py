"""The base of every configuration: frozen, complete, with one canonical form and one hash."""

import hashlib
import json
from typing import Any, Self

from pydantic import BaseModel, ConfigDict


class Config(BaseModel):
    """A frozen record that can be written as JSON and read back without loss.

    Unknown fields, NaN and infinity are errors. Two configs are the same run
    exactly if their ``key`` is the same.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def __eq__(self, other: object) -> bool:
        """Same class and fields; what a cached property has computed meanwhile does not count."""
        names = type(self).model_fields
        return type(self) is type(other) and all(getattr(self, name) == getattr(other, name) for name in names)

    def canonical_json(self) -> str:
        """Sorted keys, no spaces: the text whose sha256 is the key."""
        return json.dumps(self.model_dump(mode="json"), sort_keys=True, separators=(",", ":"))

    @property
    def key(self) -> str:
        """sha256 of the canonical JSON, 64 hexadecimal digits."""
        return hashlib.sha256(self.canonical_json().encode()).hexdigest()

    def but(self, **changes: Any) -> Self:
        """A copy with some fields changed, validated like a new one."""
        fields = {name: getattr(self, name) for name in type(self).model_fields}
        return type(self).model_validate(fields | changes)
