"""What a network is told of the samples it makes, and how its answer is guided by it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from atdiff_core.objectives.drawing import Denoiser


@dataclass(frozen=True)
class Conditioning:
    """What a network is told beside noised images and levels, by the name of its argument.

    Attributes:
        told: Of each sample, each ``[batch, ...]``: labels, prompts.
        untold: What stands for nothing, each ``[1, ...]``: the empty prompt. Needed for guidance.
    """

    told: Mapping[str, Tensor] = field(default_factory=dict)
    untold: Mapping[str, Tensor] = field(default_factory=dict)

    def to(self, device: torch.device | str) -> "Conditioning":
        return Conditioning(*({name: value.to(device) for name, value in part.items()} for part in self._parts))

    @property
    def _parts(self) -> tuple[Mapping[str, Tensor], Mapping[str, Tensor]]:
        return self.told, self.untold


def guided(
    network: Denoiser, conditioning: Conditioning, guidance: float, *, embedded: bool
) -> Callable[[Tensor, Tensor], Tensor]:
    """The network's answer at (shown, timesteps), guided (Ho & Salimans, arXiv:2207.12598).

    Args:
        guidance: diffusers' ``guidance_scale`` s: ``without + s (with - without)``; 1 for none.
        embedded: Whether the network is told s - 1 and asked once, or asked with and without.

    Raises:
        ValueError: There is nothing that the network could be guided away from.
    """
    told, untold = conditioning.told, conditioning.untold
    if embedded:
        return lambda shown, timesteps: network(
            shown, timesteps, **told, guidance=torch.full((len(shown),), guidance - 1.0, device=shown.device)
        )
    if guidance == 1:
        return lambda shown, timesteps: network(shown, timesteps, **told)
    if not untold:
        raise ValueError(f"guidance {guidance:g} leads away from the empty prompt, which this network has none of")

    def both(shown: Tensor, timesteps: Tensor) -> Tensor:
        nothing = {name: value.expand(len(shown), *value.shape[1:]) for name, value in untold.items()}
        without = network(shown, timesteps, **{**told, **nothing})
        return without + guidance * (network(shown, timesteps, **told) - without)

    return both
