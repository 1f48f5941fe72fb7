"""Grids: every pixel where it belongs."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from atdiff_core.pictures import save_grid

FRAME = 64


def grid(images: torch.Tensor, path: Path, columns: int) -> np.ndarray:
    save_grid(images, path, columns=columns)
    return np.asarray(Image.open(path))


def levels(count: int, side: int = 8) -> torch.Tensor:
    """Grey images whose bytes count up from zero, exactly."""
    values = torch.arange(count * side * side).remainder(256).view(count, 1, side, side)
    return (values + 0.25) / 127.5 - 1


def test_pixels_are_enlarged_by_a_whole_factor_and_framed(tmp_path: Path) -> None:
    pixels = grid(levels(5), tmp_path / "new" / "grid.png", columns=3)
    tile = 8 * 6 + 2
    assert pixels.shape == (2 * tile, 3 * tile, 3)
    for number in range(5):
        top, left = tile * (number // 3), tile * (number % 3)
        shown = pixels[top + 1 : top + 49, left + 1 : left + 49]
        expected = np.arange(number * 64, (number + 1) * 64).reshape(8, 8) % 256
        assert np.array_equal(shown, np.kron(expected, np.ones((6, 6)))[..., None].repeat(3, axis=2))
        assert (pixels[top, left : left + tile] == FRAME).all()
        assert (pixels[top : top + tile, left] == FRAME).all()
    assert (pixels[tile:, 2 * tile :] == FRAME).all()


@pytest.mark.parametrize(("count", "columns", "shape"), [(1, 8, (50, 400)), (8, 8, (50, 400)), (9, 8, (100, 400))])
def test_a_grid_has_full_rows(tmp_path: Path, count: int, columns: int, shape: tuple[int, int]) -> None:
    assert grid(levels(count), tmp_path / "grid.png", columns).shape[:2] == shape


def test_large_images_keep_their_size_and_colours_their_channels(tmp_path: Path) -> None:
    image = torch.stack([torch.full((64, 64), value) for value in (-1.0, 0.0, 1.0)])[None]
    pixels = grid(image, tmp_path / "grid.png", columns=1)
    assert pixels.shape == (66, 66, 3)
    assert (pixels[1:-1, 1:-1] == [0, 127, 255]).all()


def test_values_beyond_the_range_are_clamped(tmp_path: Path) -> None:
    pixels = grid(torch.tensor([-7.0, 7.0]).view(2, 1, 1, 1).expand(-1, 1, 48, 48), tmp_path / "grid.png", columns=2)
    assert (pixels[1:-1, 1:49] == 0).all()
    assert (pixels[1:-1, 51:99] == 255).all()


def test_an_empty_grid_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="at least one image, got 0"):
        save_grid(torch.zeros(0, 1, 8, 8), tmp_path / "grid.png")
