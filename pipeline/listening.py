"""Addresses: whether anything listens there, in seconds where libraries take minutes; and how to print them."""

import socket
from urllib.parse import urlsplit

PROBE_SEC = 5.0
PORTS = {"http": 80, "https": 443}


def require_listener(address: str, *, what: str, remedy: str) -> None:
    """Refuse an address where nothing answers.

    Args:
        address: ``host:port`` or a URL.
        what: Who should listen there, for the message.
        remedy: What to do about it.

    Raises:
        ValueError: The address has no port, its name is unknown, or nothing listens.
    """
    parts = urlsplit(address if "//" in address else f"//{address}")
    try:
        port = parts.port or PORTS.get(parts.scheme)
    except ValueError:
        port = None
    if not parts.hostname or not port:
        raise ValueError(f"the address of {what} is host:port or a URL, got {address!r}")
    try:
        socket.create_connection((parts.hostname, port), timeout=PROBE_SEC).close()
    except OSError as error:
        said = error.strerror or str(error)
        raise ValueError(f"no {what} answers at {parts.hostname}:{port} ({said}); {remedy}") from None


def without_password(uri: str) -> str:
    """The address as it may be printed."""
    parts = urlsplit(uri)
    if parts.password is None:
        return uri
    return uri.replace(f":{parts.password}@", ":***@", 1)
