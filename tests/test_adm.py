"""Weights of ADM: the same function under other names, there and back."""

import itertools
import sys
from pathlib import Path

import pytest
import torch
from adm_reference import ReferenceADM, Shape
from diffusers import DDPMPipeline, UNet2DModel
from torch import Tensor

from atdiff_core.adm import AttentionOrder, load_adm, read_adm, to_adm, write_adm
from atdiff_core.networks import PRESETS, UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.snapshots import load_snapshot
from pipeline import cli

PLAIN = UNet(
    resolution=8, image_channels=3, channels=(16, 32), layers_per_block=2, attention_at=(4,), middle_attention=True,
    norm_groups=4, dropout=0.3,
)  # fmt: skip
ORDERS: tuple[AttentionOrder, ...] = ("new", "legacy")


def shape_of(unet: UNet, order: AttentionOrder) -> Shape:
    """A config in the words of the public code."""
    return Shape(
        width=unet.channels[0],
        factors=tuple(width // unet.channels[0] for width in unet.channels),
        blocks=unet.layers_per_block,
        attention_factors=tuple(unet.resolution // at for at in unet.attention_at),
        head_width=unet.head_width,
        groups=unet.norm_groups,
        image_channels=unet.image_channels,
        learned_variance=unet.learned_variance,
        num_classes=unet.num_classes,
        scale_shift=unet.scale_shift_norm,
        residual_resampling=unet.residual_resampling,
        legacy_order=order == "legacy",
    )


def reference(unet: UNet, order: AttentionOrder = "new") -> ReferenceADM:
    """The plain-torch network of a config, every weight random: none is zero or one."""
    network = ReferenceADM(shape_of(unet, order)).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in network.parameters():
            spread = 0.5 if parameter.dim() == 1 else parameter[0].numel() ** -0.5
            parameter.copy_(spread * torch.randn(parameter.shape, generator=generator))
    return network


def inputs(unet: UNet) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    noisy = torch.randn(4, unet.image_channels, unet.resolution, unet.resolution, generator=generator)
    given = [noisy, torch.tensor([0, 1, 357, 999])]
    return [*given, torch.tensor([0, 4, 2, 4])] if unet.num_classes else given


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


def atdiff(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int | str | None:
    """The exit code of a command line."""
    monkeypatch.setattr(sys, "argv", ["atdiff", *map(str, arguments)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return ended.value.code


@pytest.fixture
def imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The small ADM, in colour, as the command imports it."""
    write_adm(reference(PRESETS["adm_small"].but(image_channels=3), "legacy").state_dict(), tmp_path / "ema.pt")
    out, order = tmp_path / "snapshot", ("--attention-order", "legacy")
    network = ("--preset", "adm_small", "--image-channels", "3", "--noise", "linear", "--timesteps", "100")
    assert not atdiff(monkeypatch, "import", "adm", tmp_path / "ema.pt", *network, *order, "--out", out)
    return out


class TestCommands:
    def test_an_imported_snapshot_is_the_reference_and_opens_in_stock_diffusers(self, imported: Path) -> None:
        unet = PRESETS["adm_small"].but(image_channels=3)
        given = inputs(unet)
        with torch.no_grad():
            expected = reference(unet, "legacy")(*given)
            ours = load_snapshot(imported).network(*given)
            stock = UNet2DModel.from_pretrained(imported / "unet")(*given).sample
        assert torch.allclose(ours, expected, rtol=0, atol=1e-5 * expected.std().item())
        assert torch.equal(ours, stock)
        pipeline = DDPMPipeline.from_pretrained(imported)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
        assert (images.shape, pipeline.scheduler.config.variance_type) == ((2, 16, 16, 3), "learned_range")

    def test_an_imported_snapshot_knows_its_noise_shape_and_origin(self, imported: Path) -> None:
        snapshot = load_snapshot(imported)
        assert snapshot.noise == NoiseSchedule(kind="linear", num_timesteps=100)
        assert (snapshot.image_shape, snapshot.num_classes, snapshot.learned_variance) == ((3, 16, 16), 0, True)
        assert len(snapshot.key) == 64
        assert '"file": "ema.pt"' in (imported / "atdiff.json").read_text()

    def test_export_gives_back_the_file_that_was_imported(
        self, imported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        out = tmp_path / "back.pt"
        assert not atdiff(monkeypatch, "export", "adm", imported, out, "--attention-order", "legacy")
        theirs, back = read_adm(tmp_path / "ema.pt"), read_adm(out)
        assert list(theirs) == list(back)
        assert all(torch.equal(back[name], tensor) for name, tensor in theirs.items())

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            (("--num-classes", "10"), "label_emb.weight [10, 128] is missing"),
            (("--preset", "adm_cifar10"), "time_embed.0.weight is [128, 32], not [512, 128]"),
            (("--no-learned-variance",), "out.2.weight is [6, 32, 3, 3], not [3, 32, 3, 3]"),
            (("--preset", "adm"), "network preset must be one of"),
            (("--attention-order", "old"), "attention-order must be new or legacy, got 'old'"),
            (("--resolution", "17"), "resolution must be divisible by 2 for 2 levels, got 17"),
            (("--out", "."), "is not an empty folder"),
        ],
    )
    def test_mistakes_are_one_line(
        self,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        changes: tuple[str, ...],
        message: str,
    ) -> None:
        write_adm(reference(PRESETS["adm_small"].but(image_channels=3)).state_dict(), tmp_path / "ema.pt")
        network = ("--preset", "adm_small", "--image-channels", "3", "--out", tmp_path / "out")
        assert atdiff(monkeypatch, "import", "adm", tmp_path / "ema.pt", *network, *changes) == cli.BAD_INPUT
        said = capsys.readouterr().err.strip()
        assert message in said
        assert "\n" not in said
