"""The randomness of a minibatch, drawn once, and the network's answer to it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from atdiff_core.noise import NoiseSchedule
from atdiff_core.randomness import Randomness
from atdiff_core.timesteps import LossHistory, TimestepSampler

Denoiser = Callable[..., Tensor]
"""Network: noised images ``[batch, channels, height, width]``, timesteps ``[batch]`` and, by keyword,
what it is conditioned on, to noise (and variance channels, if it learns them)."""


@dataclass(frozen=True)
class Draw:
    """All randomness of one minibatch.

    Attributes:
        clean: Images in [-1, 1], ``[batch, channels, height, width]``.
        noise: Gaussian noise, same shape.
        timesteps: Noise levels as the network is told them, ``[batch]``: integers in [0, T), or
            250 ln(sigma) in EDM coordinates.
        weights: Importance of each sample in the mean, ``[batch]``.
        noisy: The noised input x_t.
        sigma: Its noise level sigma_t, ``[batch, 1, 1, 1]``.
        dropout_seed: Seed of the dropout masks, the same for every replay of this draw.
        condition: What the network is told besides, by the name of its argument (``labels``,
            ``[batch]``, for one with classes); each ``[batch, ...]``.
        reach: Amplitude, in units of the noise, that a perturbation of size 1 stands for,
            ``[batch, 1, 1, 1]``; used by the equivariant objective only.
    """

    clean: Tensor
    noise: Tensor
    timesteps: Tensor
    weights: Tensor
    noisy: Tensor
    sigma: Tensor
    dropout_seed: int
    condition: Mapping[str, Tensor] = field(default_factory=dict)
    reach: Tensor | None = None


def drawn(
    images: Tensor,
    randomness: Randomness,
    noise: NoiseSchedule,
    timesteps: TimestepSampler,
    *,
    condition: Mapping[str, Tensor] | None = None,
    history: LossHistory | None = None,
) -> Draw:
    """Timesteps, noise and noised input for images ``[batch, channels, height, width]``."""
    levels, weights = timesteps.draw(randomness.for_("timestep"), noise.num_timesteps, history)
    gaussian = randomness.for_("noise").normal(images.shape[1:]).to(images)
    timesteps_here = levels.to(images.device)
    return Draw(
        clean=images,
        noise=gaussian,
        timesteps=timesteps_here,
        weights=weights.to(images.device),
        noisy=noise.noised(images, gaussian, timesteps_here),
        sigma=noise.sigma(timesteps_here).to(images),
        dropout_seed=randomness.shared_seed,
        condition=condition or {},
    )


def answered(network: Denoiser, draw: Draw, noisy: Tensor) -> Tensor:
    """The network's output at ``noisy``, float32 or wider, with the dropout masks of the draw."""
    return answer(network, noisy, draw.timesteps, draw)


def answer(network: Denoiser, shown: Tensor, timesteps: Tensor, draw: Draw) -> Tensor:
    """The same for any input and level: condition and dropout masks are those of the draw."""
    dropping = _drops_out(network)
    with torch.random.fork_rng(devices=[shown.device] if shown.is_cuda else [], enabled=dropping):
        if dropping:
            torch.manual_seed(draw.dropout_seed)
        output = network(shown, timesteps, **draw.condition)
    return output.float() if output.dtype in (torch.bfloat16, torch.float16) else output


def _drops_out(network: Denoiser) -> bool:
    if not isinstance(network, nn.Module) or not network.training:
        return False
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())
