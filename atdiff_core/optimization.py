"""Optimizer, learning-rate schedule and weight averaging, all functions of passes."""

from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from atdiff_core.config import Config


class Optimization(Config):
    """AdamW with a schedule over the run's own passes.

    Attributes:
        learning_rate: Peak step size.
        decay: What the learning rate does after the warm-up: stays, or falls linearly to zero.
        warmup_kpass: Thousand passes over which it rises from zero.
        weight_decay: Decoupled weight decay.
        ema_half_life_kpass: Half-life of the weight average, in thousand passes.
    """

    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    decay: Literal["constant", "linear"] = "constant"
    warmup_kpass: Annotated[float, Field(ge=0)] = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    ema_half_life_kpass: Annotated[float, Field(gt=0)] = 10.0

    def optimizer(self, network: nn.Module) -> torch.optim.AdamW:
        learning = [parameter for parameter in network.parameters() if parameter.requires_grad]
        return torch.optim.AdamW(learning, self.learning_rate, weight_decay=self.weight_decay, fused=True)

    def learning_rate_at(self, kpass: float, *, budget_kpass: float) -> float:
        """Learning rate once ``kpass`` of ``budget_kpass`` thousand passes are done."""
        warm = min(1.0, kpass / self.warmup_kpass) if self.warmup_kpass else 1.0
        left = max(0.0, 1 - kpass / budget_kpass) if self.decay == "linear" else 1.0
        return self.learning_rate * warm * left

    def averaged(self, network: nn.Module, *, kpass_per_step: float) -> AveragedModel:
        """Exponential moving average of the weights, updated once per optimizer step."""
        decay = 0.5 ** (kpass_per_step / self.ema_half_life_kpass)
        return AveragedModel(network, multi_avg_fn=get_ema_multi_avg_fn(decay))
