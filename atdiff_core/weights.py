"""The identity of a network's weights, whatever file they came from."""

from typing import Any


def add_weights(digest: Any, network: Any) -> None:
    """Feed all weights of a network, in single precision and by name, into one of ``hashlib``'s digests."""
    for name, tensor in sorted(network.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
