"""Weights of ADM: the same function under other names, there and back."""

import itertools
from pathlib import Path

import pytest
import torch
from adm_reference import ReferenceADM, inputs, reference, shape_of

from atdiff_core.adm import AttentionOrder, load_adm, read_adm, to_adm, write_adm
from atdiff_core.networks import PRESETS, UNet

PLAIN = UNet(
    resolution=8, image_channels=3, channels=(16, 32), layers_per_block=2, attention_at=(4,), middle_attention=True,
    norm_groups=4, dropout=0.3,
)  # fmt: skip
ORDERS: tuple[AttentionOrder, ...] = ("new", "legacy")


@torch.no_grad()
def assert_same_function(unet: UNet, order: AttentionOrder) -> None:
    theirs = reference(unet, order)
    ours = load_adm(theirs.state_dict(), unet, order).eval()
    noisy, *others = inputs(unet)
    single, expected = ours(noisy, *others), theirs(noisy, *others)
    assert torch.allclose(single, expected, rtol=0, atol=1e-5 * expected.std().item())
    double, expected = ours.double()(noisy.double(), *others), theirs.double()(noisy.double(), *others)
    assert torch.allclose(double, expected, rtol=0, atol=1e-11 * expected.std().item())


class TestTheFunction:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize(("scale_shift", "residual"), itertools.product([False, True], repeat=2))
    @pytest.mark.parametrize(("num_classes", "learned"), [(0, False), (5, True)])
    def test_outputs_equal_the_plain_torch_reference(
        self, order: AttentionOrder, scale_shift: bool, residual: bool, num_classes: int, learned: bool
    ) -> None:
        unet = PLAIN.but(
            scale_shift_norm=scale_shift,
            residual_resampling=residual,
            num_classes=num_classes,
            learned_variance=learned,
        )
        assert_same_function(unet, order)

    @pytest.mark.parametrize(
        ("name", "base"), [("adm_cifar10", 32), ("adm_imagenet64", 64), ("adm_small", 16), ("iddpm_cifar10", 64)]
    )
    def test_a_narrow_copy_of_every_preset_equals_the_reference(self, name: str, base: int) -> None:
        unet = PRESETS[name]
        factors = [width // unet.channels[0] for width in unet.channels]
        narrow = unet.but(channels=tuple(base * factor for factor in factors), num_classes=min(unet.num_classes, 5))
        if name == "adm_imagenet64":
            narrow = narrow.but(layers_per_block=1)
        assert_same_function(narrow.at(16).but(attention_at=(8, 4) if len(factors) > 2 else (8,)), "new")

    def test_the_other_attention_order_is_another_function(self) -> None:
        state, given = reference(PLAIN).state_dict(), inputs(PLAIN)
        new, legacy = (load_adm(state, PLAIN, order).eval()(*given) for order in ORDERS)
        assert not torch.allclose(new, legacy, atol=1e-2)

    def test_with_one_head_the_orders_are_the_same(self) -> None:
        one = PLAIN.but(head_width=32)
        state, given = reference(one).state_dict(), inputs(one)
        new, legacy = (load_adm(state, one, order).eval()(*given) for order in ORDERS)
        assert torch.equal(new, legacy)

    def test_weights_in_half_precision_are_read_as_what_they_are(self) -> None:
        state = {name: tensor.half() for name, tensor in reference(PLAIN).state_dict().items()}
        back = to_adm(load_adm(state, PLAIN, "new"), "new")
        assert all(torch.equal(back[name], tensor.float()) for name, tensor in state.items())


class TestThereAndBack:
    @pytest.mark.parametrize("order", ORDERS)
    @pytest.mark.parametrize("name", ["adm_small", "plain", "conditional"])
    def test_import_then_export_is_the_identity_bit_for_bit(self, order: AttentionOrder, name: str) -> None:
        unet = {"plain": PLAIN, "conditional": PLAIN.but(num_classes=3)}.get(name) or PRESETS[name]
        state = reference(unet).state_dict()
        back = to_adm(load_adm(state, unet, order), order)
        assert list(back) == list(state)
        assert all(torch.equal(back[key], tensor) for key, tensor in state.items())

    @pytest.mark.parametrize("order", ORDERS)
    def test_export_then_import_is_the_identity_bit_for_bit(self, order: AttentionOrder) -> None:
        network = PRESETS["adm_small"].build(3)
        back = load_adm(to_adm(network, order), PRESETS["adm_small"], order)
        weights = back.state_dict()
        assert list(weights) == list(network.state_dict())
        assert all(torch.equal(weights[name], weight) for name, weight in network.state_dict().items())
        assert all(parameter.requires_grad for parameter in back.parameters())

    @pytest.mark.parametrize("name", ["adm_cifar10", "adm_imagenet64", "iddpm_cifar10"])
    def test_a_full_preset_has_every_name_and_shape_of_the_reference(self, name: str) -> None:
        with torch.device("meta"):  # Shapes without memory: the largest has 296 M weights.
            state = ReferenceADM(shape_of(PRESETS[name], "new")).state_dict()
        assert len(load_adm(state, PRESETS[name], "new").state_dict()) > len(state)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [({"middle_attention": False}, "must have middle_attention"), ({"middle_attention": True}, "freq_shift = 1")],
    )
    def test_a_network_without_a_counterpart_is_not_exported(self, changes: dict[str, object], message: str) -> None:
        network = PLAIN.but(**changes).build(0)
        network.unet.register_to_config(freq_shift=1)
        with pytest.raises(ValueError, match=message):
            to_adm(network, "new")


class TestWhatDoesNotFit:
    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_classes": 3}, r"label_emb\.weight \[3, 64\] is missing; check the preset, .*classes"),
            ({"learned_variance": True}, r"out\.2\.weight is \[3, 16, 3, 3\], not \[6, 16, 3, 3\]; .*learned variance"),
            ({"image_channels": 1}, r"input_blocks\.0\.0\.weight is \[16, 3, 3, 3\], not \[16, 1, 3, 3\]"),
            ({"channels": (16, 16)}, r"input_blocks\.4\.0\.in_layers\.2\.weight is \[32, 16, 3, 3\], not \[16, 16, 3"),
            ({"layers_per_block": 1}, r"input_blocks\.2\.0\.op\.weight \[16, 16, 3, 3\] is missing"),
            ({"attention_at": ()}, r"output_blocks\.2\.1\.conv\.weight \[32, 32, 3, 3\] is missing"),
        ],
    )
    def test_the_first_key_that_does_not_fit_is_named_with_its_shape(
        self, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=rf"^the file does not fit: {message}"):
            load_adm(reference(PLAIN).state_dict(), PLAIN.but(**changes), "new")

    def test_an_unexpected_key_is_named_with_its_shape(self) -> None:
        with pytest.raises(ValueError, match=r"label_emb\.weight \[3, 64\] is unexpected; check the preset, .*classes"):
            load_adm(reference(PLAIN.but(num_classes=3)).state_dict(), PLAIN, "new")

    def test_an_unknown_attention_order_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must be new or legacy, got 'old'"):
            load_adm({}, PLAIN, "old")  # type: ignore[arg-type]

    def test_a_config_without_middle_attention_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must have middle_attention"):
            load_adm({}, PLAIN.but(middle_attention=False), "new")


class TestFiles:
    def test_a_file_is_read_back_bit_for_bit(self, tmp_path: Path) -> None:
        state = reference(PLAIN).state_dict()
        write_adm(state, tmp_path / "new" / "model.pt")
        back = read_adm(tmp_path / "new" / "model.pt")
        assert all(torch.equal(back[name], tensor) for name, tensor in state.items())
        assert [file.name for file in (tmp_path / "new").iterdir()] == ["model.pt"]

    @pytest.mark.parametrize("kept", [0, 10, 1000, -100])
    def test_a_truncated_file_is_one_line(self, tmp_path: Path, kept: int) -> None:
        file = tmp_path / "model.pt"
        write_adm(reference(PLAIN).state_dict(), file)
        file.write_bytes(file.read_bytes()[:kept])
        assert "\n" not in refusal(file, "is truncated, or not a file of weights")

    def test_a_file_of_something_else_is_one_line(self, tmp_path: Path) -> None:
        file = tmp_path / "model.pt"
        file.write_text("<html>404</html>\n" * 100)
        assert "\n" not in refusal(file, "is truncated, or not a file of weights")
        torch.save([torch.zeros(3)], file)
        refusal(file, "must hold a state dict .* got list")
        torch.save({"state": {0: torch.zeros(3)}, "param_groups": []}, file)
        refusal(file, "'state' is a dict, not a tensor; .* not the optimizer's")
        torch.save({"danger": Path}, file)
        assert "\n" not in refusal(file, "is truncated, or not a file of weights")
        refusal(tmp_path / "nowhere.pt", "there is no file .*nowhere")


def refusal(file: Path, message: str) -> str:
    with pytest.raises(ValueError, match=message) as refused:
        read_adm(file)
    return str(refused.value)
