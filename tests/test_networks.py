"""Networks: their configs, their presets, and what they refuse."""

import pytest
import torch
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from atdiff_core.networks import PRESETS, UNet, check_labels, predicted_noise, preset

TINY = UNet(resolution=8, channels=(8, 16))
CONDITIONAL = TINY.but(num_classes=10)


def inputs(batch: int = 2, channels: int = 1, side: int = 8) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(batch, channels, side, side, generator=generator), torch.arange(batch) * 100


def num_parameters(unet: UNet) -> int:
    with torch.device("meta"):
        return sum(parameter.numel() for parameter in unet.build_unet().parameters())


def signature(network: torch.nn.Module) -> float:
    """A number that any exchange of weights changes, and a processor's rounding of its normal numbers does not."""
    flat = torch.cat([value.flatten() for value in network.state_dict().values()]).double()
    return float(flat @ torch.cos(torch.arange(len(flat), dtype=torch.float64)))


class TestPresets:
    @pytest.mark.parametrize(
        ("name", "published"),
        [
            ("ddpm_cifar10", 35.7),
            ("iddpm_cifar10", 52.5),
            ("adm_cifar10", 57.1),
            ("adm_imagenet64", 295.9),
        ],
    )
    def test_a_published_network_has_the_published_number_of_parameters(self, name: str, published: float) -> None:
        assert num_parameters(PRESETS[name]) / 1e6 == pytest.approx(published, abs=0.05)

    def test_the_small_adm_has_adms_flags_and_less_than_a_million_parameters(self) -> None:
        small, full = PRESETS["adm_small"], PRESETS["adm_cifar10"]
        flags = ("residual_resampling", "scale_shift_norm", "learned_variance", "middle_attention", "zero_outputs")
        assert [getattr(small, flag) for flag in flags] == [getattr(full, flag) for flag in flags] == [True] * 5
        assert small.attention_at
        assert num_parameters(small) < 1e6

    @pytest.mark.parametrize(
        ("name", "resolution", "expected"),
        [
            ("digits", 16, -22.49707),
            ("small", 32, 9.74014),
            ("small", 64, 9.82283),
        ],
    )
    def test_a_seed_gives_the_weights_it_always_gave(self, name: str, resolution: int, expected: float) -> None:
        channels = 1 if name == "digits" else 3
        network = preset(name, resolution=resolution, image_channels=channels).build(7)
        assert signature(network) == pytest.approx(expected, abs=1e-3)

    def test_every_preset_moves_to_another_image_size_and_keeps_the_attention_it_can(self) -> None:
        moved = {name: preset(name, resolution=64, image_channels=1) for name in PRESETS}
        assert {unet.image_channels for unet in moved.values()} == {1}
        assert moved["adm_cifar10"].attention_at == (16, 8)
        assert moved["small"].attention_at == ()
        assert moved["small"].middle_attention
        assert preset("adm_cifar10") == PRESETS["adm_cifar10"]

    def test_an_unknown_preset_is_refused_with_the_known_ones(self) -> None:
        with pytest.raises(ValueError, match=r"must be one of digits, .*adm_imagenet64.* got 'adm'"):
            preset("adm")


class TestConfig:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"resolution": 9}, "resolution must be divisible by 2 for 2 levels, got 9"),
            ({"attention_at": (8, 5)}, r"attention_at must name resolutions of levels \(8, 4\), got 5"),
            ({"norm_groups": 3}, r"channels must be positive multiples of 3 \(norm_groups\), got 8"),
            ({"head_width": 12, "attention_at": (8,)}, r"with attention must be multiples of 12 \(head_width\), got 8"),
            ({"head_width": 12, "middle_attention": True}, r"must be multiples of 12 \(head_width\), got 16"),
        ],
    )
    def test_a_shape_that_cannot_be_built_is_refused(self, changes: dict[str, object], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            TINY.but(**changes)

    def test_the_width_of_heads_does_not_matter_where_nothing_attends(self) -> None:
        assert TINY.but(head_width=12).build(1).unet.config.attention_head_dim == 12

    def test_attention_is_where_it_is_asked_for_and_nowhere_else(self) -> None:
        def places(unet: UNet) -> set[str]:
            names = unet.build(0).state_dict()
            return {name.split(".attentions")[0].removeprefix("unet.") for name in names if ".attentions." in name}

        assert places(TINY) == set()
        assert places(TINY.but(middle_attention=True)) == {"mid_block"}
        assert places(TINY.but(attention_at=(4,))) == {"down_blocks.1", "up_blocks.0"}

    @pytest.mark.parametrize("attention_at", [(), (8,), (4,), (8, 4)])
    def test_every_level_resamples_in_residual_blocks_if_asked(self, attention_at: tuple[int, ...]) -> None:
        unet = TINY.but(residual_resampling=True, attention_at=attention_at).build(0).unet
        resamplers = [*unet.down_blocks[0].downsamplers, *unet.up_blocks[0].upsamplers]
        assert [type(resampler) for resampler in resamplers] == [ResnetBlock2D, ResnetBlock2D]

    def test_a_config_survives_json(self) -> None:
        for unet in PRESETS.values():
            assert UNet.model_validate_json(unet.model_dump_json()) == unet


class TestPrediction:
    def test_a_learned_variance_doubles_the_channels_behind_the_noise(self) -> None:
        noisy, timesteps = inputs(channels=3)
        output = TINY.but(image_channels=3, learned_variance=True).build(0).eval()(noisy, timesteps)
        assert output.shape == (2, 6, 8, 8)
        assert torch.equal(predicted_noise(output, 3), output[:, :3])
        assert torch.equal(predicted_noise(noisy, 3), noisy)

    @pytest.mark.parametrize("name", ["adm_small", "adm_cifar10"])
    def test_zero_outputs_predict_nothing_and_still_learn(self, name: str) -> None:
        unet = PRESETS[name].but(channels=(32, 32), attention_at=(8,), resolution=16, layers_per_block=1)
        network = unet.build(0).eval()
        output = network(*inputs(channels=unet.image_channels, side=16))
        assert not output.any()
        (output - 1).square().sum().backward()
        assert network.unet.conv_out.weight.grad.any()

    def test_classes_change_the_prediction_sample_by_sample(self) -> None:
        network = CONDITIONAL.build(0).eval()
        noisy, timesteps = inputs()
        one, other = (network(noisy, timesteps, torch.tensor(labels)) for labels in ([3, 3], [3, 9]))
        assert torch.allclose(one[0], other[0], atol=1e-6)
        assert not torch.allclose(one[1], other[1], atol=1e-3)


class TestRefusals:
    @pytest.mark.parametrize("label", [-1, 10])
    def test_a_class_label_out_of_range_is_one_line(self, label: int) -> None:
        with pytest.raises(ValueError, match=rf"^a class label must be in 0 to 9, got {label}$"):
            CONDITIONAL.build(0)(*inputs(), torch.tensor([0, label]))
        assert check_labels(torch.tensor([0, 9]), 10) is None

    def test_labels_are_given_exactly_if_there_are_classes(self) -> None:
        with pytest.raises(ValueError, match="conditioned on 10 classes: labels are needed"):
            CONDITIONAL.build(0)(*inputs())
        with pytest.raises(ValueError, match="unconditional: labels must not be given"):
            TINY.build(0)(*inputs(), torch.tensor([0, 0]))

    def test_a_wrong_channel_count_is_one_line(self) -> None:
        with pytest.raises(ValueError, match=r"^the network takes images of 1 channels, got \[2, 3, 8, 8\]$"):
            TINY.build(0)(*inputs(channels=3))

    def test_a_size_that_cannot_be_halved_is_one_line(self) -> None:
        with pytest.raises(ValueError, match=r"^height and width must be divisible by 2, got \[9, 9\]$"):
            TINY.build(0)(*inputs(side=9))
