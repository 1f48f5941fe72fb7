"""Which device to compute on."""

import torch


def chosen_device(name: str) -> str:
    """A device by name; ``auto`` is the GPU where there is one, else the CPU.

    Raises:
        ValueError: torch knows no such device, or this machine has none.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError):
        raise ValueError(f"device must be auto, cpu or one of torch's devices on this machine, got {name!r}") from None
    return str(device)
