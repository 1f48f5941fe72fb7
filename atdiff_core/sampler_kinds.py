"""Samplers by name, and what each of them can step."""

from typing import Literal

SamplerKind = Literal["ddim", "ancestral", "iddpm", "dpmpp_2m", "edm_euler", "edm_dpmpp_2m", "cm", "lcm"]
Spacing = Literal["uniform", "log_snr"]
VARIANCE_PRESERVING = ("linear", "cosine", "scaled_linear")
STEPS: dict[SamplerKind, tuple[str, ...]] = {
    "ddim": VARIANCE_PRESERVING,
    "ancestral": VARIANCE_PRESERVING,
    "iddpm": VARIANCE_PRESERVING,
    "dpmpp_2m": VARIANCE_PRESERVING,
    "edm_euler": ("edm",),
    "edm_dpmpp_2m": ("edm",),
    "cm": ("consistency",),
    "lcm": ("latent_consistency",),
}
"""Kinds of noise whose networks each sampler can step."""
