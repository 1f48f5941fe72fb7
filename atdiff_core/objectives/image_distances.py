"""How far two images are apart, as a training loss: one value per pair, differentiable in both."""

import os
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor, nn

from atdiff_core.config import Config

LPIPS_WEIGHTS = "ATDIFF_LPIPS_WEIGHTS"
_BACKBONES = {"vgg": "vgg16-397923af.pth", "alex": "alexnet-owt-7be5be79.pth"}
_TENSORS = {"vgg": 26, "alex": 10}
"""Weights and biases of their convolutions."""


class L1(Config):
    """Mean absolute difference."""

    name: Literal["l1"] = "l1"

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """``[batch]`` for images ``[batch, channels, height, width]``."""
        return (one - other).abs().flatten(1).mean(dim=1)


class L2(Config):
    """Mean squared difference."""

    name: Literal["l2"] = "l2"

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """``[batch]`` for images ``[batch, channels, height, width]``."""
        return (one - other).square().flatten(1).mean(dim=1)


class PseudoHuber(Config):
    """sqrt(mean squared difference + c²) - c: squared where images agree, absolute where they do not.

    The metric of improved consistency training with its c = 0.00054 sqrt(D), divided by sqrt(D)
    (Song & Dhariwal, arXiv:2310.14189, Section 3.3).

    Attributes:
        c: Width of the squared part, an amplitude per element.
    """

    name: Literal["pseudo_huber"] = "pseudo_huber"
    c: Annotated[float, Field(gt=0)] = 0.00054

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """``[batch]`` for images ``[batch, channels, height, width]``."""
        return ((one - other).square().flatten(1).mean(dim=1) + self.c**2).sqrt() - self.c


class Huber(Config):
    """Mean of sqrt(difference² + c²) - c: the same element by element, the distance of latent consistency models.

    Source:
        The training code of Luo et al. (arXiv:2310.04378), with c = 0.001.

    Attributes:
        c: Width of the squared part, an amplitude.
    """

    name: Literal["huber"] = "huber"
    c: Annotated[float, Field(gt=0)] = 0.001

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """``[batch]`` for images ``[batch, channels, height, width]``."""
        return (((one - other).square() + self.c**2).sqrt() - self.c).flatten(1).mean(dim=1)


class LPIPS(Config):
    """Learned perceptual distance (Zhang et al., arXiv:1801.03924), by torchmetrics.

    The linear heads come with torchmetrics; the backbone's ImageNet weights are torchvision's
    file, at the path in ``ATDIFF_LPIPS_WEIGHTS``. Grey images are shown as colour ones.

    Attributes:
        backbone: ``vgg`` (the consistency models' choice) or ``alex``, which is cheaper.
        side: Pixels to which smaller images are enlarged first (bilinear), as in the consistency
            models' code.
    """

    name: Literal["lpips"] = "lpips"
    backbone: Literal["vgg", "alex"] = "vgg"
    side: Annotated[int, Field(ge=32)] = 224

    def between(self, one: Tensor, other: Tensor) -> Tensor:
        """``[batch]`` for images ``[batch, 1 or 3, height, width]``."""
        shown = self._shown(one), self._shown(other)
        distances: Tensor = _lpips(self.backbone, str(one.device))(*shown)
        return distances.flatten()

    def _shown(self, images: Tensor) -> Tensor:
        if images.shape[1] not in (1, 3):
            raise ValueError(f"LPIPS sees images of 1 or 3 channels, got {images.shape[1]}; choose another metric")
        if images.shape[-1] < self.side:
            images = F.interpolate(images, size=(self.side, self.side), mode="bilinear")
        return images.float().expand(-1, 3, -1, -1)


@lru_cache(maxsize=4)
def _lpips(backbone: Literal["vgg", "alex"], device: str) -> nn.Module:
    """The network of LPIPS, loaded once a process."""
    from torchmetrics.functional.image.lpips import _NoTrainLpips

    features = _backbone_features(backbone)
    network = _NoTrainLpips(net=backbone, pnet_rand=True)
    for name, part in network.net.named_children():
        if name.startswith("slice"):
            part.load_state_dict({place: features[place] for place in part.state_dict()})
    return network.to(device)


def _backbone_features(backbone: Literal["vgg", "alex"]) -> dict[str, Tensor]:
    """The convolutions' weights, by their place in torchvision's ``features``."""
    file = _backbone_file(backbone)
    try:
        weights = torch.load(file, map_location="cpu", weights_only=True)
        features = {name.removeprefix("features."): value for name, value in weights.items() if "features." in name}
    except Exception as error:  # A damaged file leads the unpickler to raise whatever comes.
        features, reason = {}, str(error).strip().split("\n")[0]
    else:
        reason = "it has other tensors"
    if len(features) != _TENSORS[backbone]:
        raise ValueError(f"{file} does not hold torchvision's weights of {backbone} ({_BACKBONES[backbone]}): {reason}")
    return features


def _backbone_file(backbone: Literal["vgg", "alex"]) -> Path:
    given = os.environ.get(LPIPS_WEIGHTS)
    name = _BACKBONES[backbone]
    if not given or not Path(given).is_file():
        raise ValueError(
            f"LPIPS needs torchvision's weights of {backbone}: set {LPIPS_WEIGHTS} to the path of {name}, got "
            f"{given!r}; or choose the metric l2 or pseudo_huber"
        )
    return Path(given)


ImageDistance = Annotated[L1 | L2 | PseudoHuber | Huber | LPIPS, Field(discriminator="name")]
