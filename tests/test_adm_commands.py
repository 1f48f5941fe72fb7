"""``atdiff import adm`` and ``export adm``: there and back, and what people are told of their mistakes."""

import sys
from pathlib import Path

import pytest
import torch
from adm_reference import inputs, reference
from diffusers import DDPMPipeline, UNet2DModel

from atdiff_core.adm import read_adm, write_adm
from atdiff_core.karras import KarrasNoise
from atdiff_core.networks import PRESETS
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.consistency import ConsistencyDistillation
from atdiff_core.snapshots import load_snapshot
from pipeline import cli


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

    def test_a_teacher_of_consistency_models_is_known_as_an_edm_denoiser(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        unet = PRESETS["adm_small"].but(learned_variance=False)
        write_adm(reference(unet).state_dict(), tmp_path / "edm.pt")
        network = ("--preset", "adm_small", "--no-learned-variance", "--noise", "edm")
        assert not atdiff(monkeypatch, "import", "adm", tmp_path / "edm.pt", *network, "--out", tmp_path / "teacher")
        teacher = load_snapshot(tmp_path / "teacher").teacher
        assert teacher.noise == KarrasNoise(kind="edm")
        assert ConsistencyDistillation().check_teacher(teacher.noise) is None

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
