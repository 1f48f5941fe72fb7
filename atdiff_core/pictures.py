"""Grids of samples as PNG files."""

from pathlib import Path

import numpy as np
from PIL import Image
from torch import Tensor

from atdiff_core.metrics.features import as_uint8

MIN_TILE_PIXELS = 48


def save_grid(images: Tensor, path: Path, columns: int = 8) -> None:
    """Write images in [-1, 1], ``[n, 1 or 3, height, width]``, as one picture.

    Small images are enlarged by a whole factor without smoothing, so that every pixel is seen.
    """
    if len(images) == 0:
        raise ValueError("a grid needs at least one image, got 0")
    pixels = as_uint8(images.cpu()).expand(-1, 3, -1, -1).permute(0, 2, 3, 1).numpy()
    factor = max(1, MIN_TILE_PIXELS // pixels.shape[1])
    tiles = pixels.repeat(factor, axis=1).repeat(factor, axis=2)
    framed = np.pad(tiles, ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=64)
    missing = -len(framed) % columns
    framed = np.pad(framed, ((0, missing), (0, 0), (0, 0), (0, 0)), constant_values=64)
    rows = [np.concatenate(list(framed[start : start + columns]), axis=1) for start in range(0, len(framed), columns)]
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.concatenate(rows, axis=0)).save(path, format="PNG", optimize=True)
