"""The variational term that trains a learned variance (Nichol & Dhariwal, arXiv:2102.09672)."""

import math

import torch
from torch import Tensor

from atdiff_core.noise import NoiseSchedule

BIN = 1 / 255
"""Half the width of one of the 256 grey levels in [-1, 1]."""


def variational_term(
    clean: Tensor,
    noisy: Tensor,
    predicted_noise: Tensor,
    interpolation: Tensor,
    timesteps: Tensor,
    noise: NoiseSchedule,
) -> Tensor:
    """Rescaled variational bound of each sample, ``[batch]``, in bits per element times T / 1000.

    The reverse step's log variance lies between that of the posterior (v = -1) and beta_t
    (v = 1): Eq. 15 with v mapped from [-1, 1]. Its mean follows from the predicted noise, which
    gets no gradient from here. At t = 0 the term is the negative log likelihood of the 256 grey
    levels, elsewhere the divergence from the posterior q(x_{t-1} | x_t, x_0).

    Args:
        clean: x_0, ``[batch, channels, height, width]``.
        noisy: x_t, perturbation included; gets no gradient.
        predicted_noise: Same shape; detached.
        interpolation: v, same shape: what is trained.
        timesteps: ``[batch]``.
    """
    noisy, predicted_noise = noisy.detach(), predicted_noise.detach()
    here = _Posterior(noise, timesteps, noisy)
    denoised = (noisy - here.sigma * predicted_noise) / here.signal
    wanted, mean = here.mean(clean, noisy), here.mean(denoised, noisy)
    share = (interpolation + 1) / 2
    log_variance = share * here.log_beta + (1 - share) * here.log_variance
    divergence = 0.5 * (
        log_variance
        - here.log_variance
        + torch.exp(here.log_variance - log_variance)
        + (wanted - mean).square() * torch.exp(-log_variance)
        - 1
    )
    likelihood = -grey_level_log_likelihood(clean, mean, log_variance)
    nats = torch.where((timesteps == 0).view(-1, 1, 1, 1), likelihood, divergence)
    return nats.flatten(1).mean(dim=1) / math.log(2) * noise.num_timesteps / 1000


def grey_level_log_likelihood(clean: Tensor, mean: Tensor, log_variance: Tensor) -> Tensor:
    """Log probability of each element's grey level under a Gaussian cut into 256 bins.

    The outermost bins reach to infinity (Ho et al., arXiv:2006.11239, Eq. 13).
    """
    precision = torch.exp(-log_variance / 2)
    upper = torch.special.ndtr((clean - mean + BIN) * precision)
    lower = torch.special.ndtr((clean - mean - BIN) * precision)
    upper = torch.where(clean > 0.999, torch.ones_like(upper), upper)
    lower = torch.where(clean < -0.999, torch.zeros_like(lower), lower)
    return (upper - lower).clamp(min=1e-12).log()


class _Posterior:
    """Coefficients of q(x_{t-1} | x_t, x_0) at given timesteps, ``[batch, 1, 1, 1]`` each."""

    def __init__(self, noise: NoiseSchedule, timesteps: Tensor, like: Tensor) -> None:
        levels = timesteps.cpu()
        abar, betas = noise.abar, noise.betas
        before = torch.cat([abar.new_ones(1), abar[:-1]])
        variance = betas * (1 - before) / (1 - abar)
        # At t = 0 the posterior is a point; its neighbour's variance stands in, as in the papers' code.
        variance = torch.cat([variance[1:2], variance[1:]])

        def at(table: Tensor) -> Tensor:
            return table[levels].to(like).view(-1, 1, 1, 1)

        self.signal, self.sigma = at(abar.sqrt()), at((1 - abar).sqrt())
        self.log_beta, self.log_variance = at(betas.log()), at(variance.log())
        self._of_clean = at(betas * before.sqrt() / (1 - abar))
        self._of_noisy = at((1 - betas).sqrt() * (1 - before) / (1 - abar))

    def mean(self, clean: Tensor, noisy: Tensor) -> Tensor:
        return self._of_clean * clean + self._of_noisy * noisy
