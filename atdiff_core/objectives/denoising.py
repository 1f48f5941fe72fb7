"""Noise prediction at a perturbed input: the adversarial objective of AT_Diff."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from atdiff_core.config import Config
from atdiff_core.noise import NoiseSchedule
from atdiff_core.randomness import Randomness

Denoiser = Callable[[Tensor, Tensor], Tensor]
"""Network: noised images ``[batch, channels, height, width]`` and timesteps ``[batch]`` to noise."""


@dataclass(frozen=True)
class Draw:
    """All randomness of one minibatch.

    Attributes:
        noise: Gaussian noise, ``[batch, channels, height, width]``.
        timesteps: Noise levels, ``[batch]``, integers in [0, T).
        noisy: The noised input x_t, in images of [-1, 1].
        sigma: Its noise level sigma_t, ``[batch, 1, 1, 1]``.
        dropout_seed: Seed of the dropout masks, the same for every replay of this draw.
    """

    noise: Tensor
    timesteps: Tensor
    noisy: Tensor
    sigma: Tensor
    dropout_seed: int


class Denoising(Config):
    """Mean squared error of the predicted noise, perturbation included in the target.

    At x_t + delta the noise that leads back to the same clean image is ``noise + delta / sigma_t``;
    the loss is the mean over elements of the squared difference to it (Wang et al.,
    arXiv:2502.17099, Eq. 14 and its released code). With delta = 0 it is the loss of DDPM.

    Attributes:
        noise: The noise schedule.
        attack_sees_target: Whether the gradient that moves delta takes into account that the
            target moves with delta. ``True`` is the true gradient of the loss. ``False`` is what
            the authors' code does (its mode ``delta_detach``); the loss is the same, yet such
            an "ascent" can lower it, which ``train/attack_gain`` shows.
    """

    kind: Literal["denoising"] = "denoising"
    noise: NoiseSchedule = NoiseSchedule()
    attack_sees_target: bool = True

    def draw(self, images: Tensor, randomness: Randomness) -> Draw:
        """Timesteps, noise and noised input for images ``[batch, channels, height, width]``."""
        timesteps = randomness.for_("timestep").integers(self.noise.num_timesteps).to(images.device)
        noise = randomness.for_("noise").normal(images.shape[1:]).to(images)
        return Draw(
            noise=noise,
            timesteps=timesteps,
            noisy=self.noise.noised(images, noise, timesteps),
            sigma=self.noise.sigma(timesteps),
            dropout_seed=randomness.shared_seed,
        )

    def loss(self, network: Denoiser, draw: Draw, delta: Tensor) -> Tensor:
        """One loss per sample, ``[batch]``; deterministic in ``delta`` (dropout is replayed)."""
        shift = delta if self.attack_sees_target else delta.detach()
        target = draw.noise + shift / draw.sigma
        with torch.random.fork_rng(devices=_cuda_devices(delta), enabled=_drops_out(network)):
            if _drops_out(network):
                torch.manual_seed(draw.dropout_seed)
            predicted = network(draw.noisy + delta, draw.timesteps)
        return (predicted - target).square().flatten(1).mean(dim=1)


def _drops_out(network: Denoiser) -> bool:
    if not isinstance(network, nn.Module) or not network.training:
        return False
    return any(isinstance(module, nn.Dropout) and module.p > 0 for module in network.modules())


def _cuda_devices(tensor: Tensor) -> list[torch.device]:
    return [tensor.device] if tensor.is_cuda else []
