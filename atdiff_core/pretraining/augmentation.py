"""Other views of the same pictures, so that a small set lasts longer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from atdiff_core.randomness import Randomness


def mirrored(images: Tensor, randomness: Randomness) -> Tensor:
    """About half of the images ``[batch, channels, height, width]`` left to right."""
    chosen = randomness.for_("mirror").integers(2).bool().view(-1, 1, 1, 1).to(images.device)
    return torch.where(chosen, images.flip(-1), images)


def shifted(images: Tensor, randomness: Randomness, *, pixels: int) -> Tensor:
    """Each image moved by up to ``pixels`` in either direction, its border repeated."""
    if pixels == 0:
        return images
    side = images.shape[-1]
    padded = F.pad(images, (pixels,) * 4, mode="replicate")
    rows = randomness.for_("rows").integers(2 * pixels + 1).tolist()
    columns = randomness.for_("columns").integers(2 * pixels + 1).tolist()
    views = [
        image[:, top : top + side, left : left + side] for image, top, left in zip(padded, rows, columns, strict=True)
    ]
    return torch.stack(views)
