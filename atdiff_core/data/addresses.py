"""Where a set of shards lives: a folder, or a prefix in an object store or on a web server."""

from pathlib import Path
from typing import Literal, get_args

Scheme = Literal["http", "https", "s3", "gs"]
Address = str | Path
"""A local folder, or ``http(s)://``, ``s3://`` or ``gs://``; nothing that runs a program or chains file systems."""


def scheme_of(address: Address) -> Scheme | None:
    """The scheme of a remote address, ``None`` for a local folder.

    Raises:
        ValueError: Another scheme, or several chained.
    """
    text = str(address)
    before, separator, _ = text.partition("://")
    if not separator and "::" not in text and not text.startswith("pipe:"):
        return None
    for scheme in get_args(Scheme):
        if before == scheme and "::" not in text:
            return scheme  # type: ignore[no-any-return]
    raise ValueError(
        f"shards must be a local folder or an address of {', '.join(f'{each}://' for each in get_args(Scheme))}, "
        f"got {text!r:.200}"
    )


def joined(address: Address, name: str) -> Address:
    """The address of a file or a folder inside a set's folder."""
    if scheme_of(address) is None:
        return Path(address) / name
    return f"{str(address).rstrip('/')}/{name}"


def anywhere(address: Address) -> Address:
    """The address as any working directory understands it."""
    return Path(address).resolve() if scheme_of(address) is None else address
