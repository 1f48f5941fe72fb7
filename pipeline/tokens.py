"""Tokens of Ray clusters: found where Ray looks for them, and tried before Ray does, which waits for minutes."""

import os
from collections.abc import Callable
from pathlib import Path

import grpc

ANSWER_SEC = 10.0
NEEDS_NO_CONTENT = "/ray.rpc.NodeInfoGcsService/GetClusterId"
"""What a head is asked: a call that takes an empty message."""


def known_token() -> str | None:
    """Our token, from where Ray looks for it."""
    if token := os.environ.get("RAY_AUTH_TOKEN"):
        return token
    given = os.environ.get("RAY_AUTH_TOKEN_PATH")
    file = Path(given) if given else Path.home() / ".ray" / "auth_token"
    return (file.read_text().strip() or None) if file.is_file() else None


def accepted_token(cluster: str, admits: Callable[[str | None], bool]) -> str | None:
    """The token that a cluster takes, ``None`` where it lets in anybody; Ray will use it from then on.

    To be called before Ray is imported, which looks once whether there are tokens at all.

    Args:
        cluster: What messages call it.
        admits: Whether it lets us in with a token, or without.

    Raises:
        ValueError: Our token is missing or wrong.
    """
    if admits(None):
        return None
    token = known_token()
    if token is None:
        raise ValueError(
            f"{cluster} asks for a token and none is known here; set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, "
            "or write it to ~/.ray/auth_token"
        )
    os.environ["RAY_AUTH_MODE"] = "token"
    if not admits(token):
        raise ValueError(
            f"{cluster} refuses our token; RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH and ~/.ray/auth_token are looked at "
            "in this order"
        )
    return token


def head_admits(address: str, token: str | None) -> bool:
    """Whether the head of a cluster at ``host:port`` takes a token, or comes without one.

    Raises:
        ValueError: What listens there is no head.
    """
    metadata = () if token is None else (("authorization", f"Bearer {token}"),)
    direct = (("grpc.enable_http_proxy", 0),)  # As Ray itself: a cluster is not behind the web's proxy.
    with grpc.insecure_channel(address, options=direct) as channel:
        try:
            channel.unary_unary(NEEDS_NO_CONTENT)(b"", metadata=metadata, timeout=ANSWER_SEC)
        except grpc.RpcError as error:
            if error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED):
                raise ValueError(
                    f"what listens at {address} does not answer as the head of a Ray cluster does "
                    f"({error.code().name}, waited up to {ANSWER_SEC:g} s); give the address that `ray start --head` "
                    "printed, or try again if the head is busy"
                ) from None
            return error.code() is not grpc.StatusCode.UNAUTHENTICATED
    return True
