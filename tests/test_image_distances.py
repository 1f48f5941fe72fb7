"""Distances as losses: formulas, and LPIPS as torchmetrics computes it with weights from a file."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from atdiff_core.objectives.image_distances import L1, L2, LPIPS, LPIPS_WEIGHTS, PseudoHuber, _lpips


def pair(channels: int = 1, side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    one, other = (torch.rand(3, channels, side, side, generator=generator) * 2 - 1 for _ in range(2))
    return one, other


def test_each_distance_is_its_formula() -> None:
    one, other = pair()
    difference = (one - other).flatten(1)
    assert torch.allclose(L1().between(one, other), difference.abs().mean(dim=1))
    assert torch.allclose(L2().between(one, other), difference.square().mean(dim=1))
    dimension, c = difference.shape[1], 0.00054 * 8  # The paper's c for D = 64.
    papers = (difference.square().sum(dim=1) + c**2).sqrt() - c
    assert torch.allclose(PseudoHuber().between(one, other) * dimension**0.5, papers)


def test_pseudo_huber_is_smooth_where_images_agree() -> None:
    one = pair()[0].requires_grad_()
    PseudoHuber().between(one, one.detach()).sum().backward()
    assert not one.grad.any()


@pytest.fixture
def alexnet_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Weights as torchvision publishes them, drawn at random."""
    from torchvision.models import alexnet

    import atdiff_core.torchvision_guard  # noqa: F401

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = {name: value for name, value in alexnet(weights=None).state_dict().items() if "features" in name}
    file = tmp_path / "alexnet-owt-7be5be79.pth"
    torch.save(weights, file)
    monkeypatch.setenv(LPIPS_WEIGHTS, str(file))
    _lpips.cache_clear()
    return file


@pytest.mark.usefixtures("alexnet_file")
def test_lpips_is_that_of_torchmetrics_on_enlarged_colour_images_and_has_a_gradient() -> None:
    distance = LPIPS(backbone="alex", side=64)
    one, other = pair(side=16)
    moving = one.clone().requires_grad_()
    found = distance.between(moving, other)
    network = _lpips("alex", "cpu")
    larger = [torch.nn.functional.interpolate(each, (64, 64), mode="bilinear") for each in pair(side=16)]
    shown = [each.repeat(1, 3, 1, 1) for each in larger]
    assert torch.allclose(found, network(*shown).flatten())
    assert (found > 0).all()
    assert not distance.between(one, one).any()
    found.sum().backward()
    assert moving.grad.abs().sum() > 0
    assert all(parameter.grad is None for parameter in network.parameters())


def test_lpips_without_weights_says_which_file_it_wants(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv(LPIPS_WEIGHTS, raising=False)
    with pytest.raises(ValueError, match=r"set ATDIFF_LPIPS_WEIGHTS to the path of vgg16-397923af.pth, got None"):
        LPIPS().between(*pair())
    damaged = tmp_path / "weights.pth"
    damaged.write_bytes(b"nothing")
    monkeypatch.setenv(LPIPS_WEIGHTS, str(damaged))
    with pytest.raises(ValueError, match="does not hold torchvision's weights of vgg"):
        LPIPS().between(*pair())
    with pytest.raises(ValueError, match="LPIPS sees images of 1 or 3 channels, got 4"):
        LPIPS().between(*pair(channels=4))
