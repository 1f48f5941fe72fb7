"""Which noise levels a sampler visits, noisiest first."""

from itertools import accumulate, repeat

import torch
from torch import Tensor

from atdiff_core.noise import NoiseSchedule

MIN_HALF_LOG_SNR = -5.1
"""Where DPM-Solver++ starts: at the noisy end of a cosine schedule x_0 cannot be told from x_t."""
LOG_SNR_START = 0.992
"""Start of the log-SNR spacing, as a fraction of the levels that DPM-Solver++ accepts."""


def strided_levels(num_timesteps: int, nfe: int) -> list[int]:
    """Levels 0, s, 2s, ... for the smallest whole stride s that gives ``nfe`` of them, noisiest first.

    As in guided-diffusion: 5 of 1000 are 0, 200, 400, 600, 800. Where no stride gives as many
    (1, 37, 41, 333, ... of 1000) guided-diffusion stops; here the stride is then T / nfe, each
    level rounded down, and a single level is T - 1.
    """
    stride = -(-num_timesteps // nfe)
    if nfe == 1:
        levels = [num_timesteps - 1]
    elif len(range(0, num_timesteps, stride)) == nfe:
        levels = list(range(0, num_timesteps, stride))
    else:
        levels = [step * num_timesteps // nfe for step in range(nfe)]
    return levels[::-1]


def chain_levels(num_timesteps: int, nfe: int) -> list[int]:
    """Levels spread evenly from 0 to T - 1, noisiest first; a single one is T - 1.

    As guided-diffusion respaces a chain, down to the rounding of its running sum: 5 of 1000 are
    0, 250, 500, 749, 999.
    """
    if nfe == 1:
        return [num_timesteps - 1]
    stride = (num_timesteps - 1) / (nfe - 1)
    return [round(level) for level in accumulate(repeat(stride, nfe - 1), initial=0.0)][::-1]


def log_snr_levels(noise: NoiseSchedule, nfe: int) -> list[int]:
    """Distinct levels spread evenly in log-SNR above t = 0, which is not one of them, noisiest first."""
    half_log_snr, start = _half_log_snr(noise), log_snr_start(noise)
    wanted = torch.linspace(float(half_log_snr[0]), float(half_log_snr[start]), nfe + 1, dtype=torch.float64)
    nearest = (half_log_snr[None, : start + 1] - wanted[:, None]).abs().argmin(dim=1)
    places = torch.arange(nfe + 1)
    upwards = (nearest - places).cummax(dim=0).values + places
    distinct = torch.minimum(upwards, start - nfe + places)
    levels: list[int] = distinct[1:].flip(0).tolist()
    return levels


def _half_log_snr(noise: NoiseSchedule) -> Tensor:
    """log(signal / sigma) of each level, ``[num_timesteps]``."""
    return (noise.abar / (1 - noise.abar)).log() / 2


def accepted_levels(noise: NoiseSchedule) -> int:
    """Levels from t = 0 up that DPM-Solver++ can tell from pure noise."""
    return int((_half_log_snr(noise) >= MIN_HALF_LOG_SNR).sum())


def log_snr_start(noise: NoiseSchedule) -> int:
    """The noisiest level of the log-SNR spacing."""
    return round(LOG_SNR_START * accepted_levels(noise)) - 1
