"""``atdiff mismatch`` and ``robustness``: what people see, and what they are told of their mistakes."""

import json
from pathlib import Path

import pytest
from diffusers import DDPMPipeline, DDPMScheduler
from PIL import Image
from typer.testing import CliRunner

from atdiff_core.data.stream import ShardSet
from atdiff_core.metrics.mismatch import MismatchAt
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.samplers import FINISHED, Sampler
from pipeline.cli import app
from pipeline.report.mismatch_figure import mismatch_figure


def snapshot(folder: Path, seed: int) -> Path:
    """An untrained network as a folder of diffusers."""
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(UNet(resolution=8, channels=(8, 16)).build(seed).unet, scheduler).save_pretrained(folder)
    return folder


class TestMismatch:
    def test_it_compares_models_level_by_level(self, digits_8px: ShardSet, tmp_path: Path) -> None:
        one, other = snapshot(tmp_path / "one", 0), snapshot(tmp_path / "other", 1)
        figures, figure = tmp_path / "figures.json", tmp_path / "figure.png"
        done = CliRunner().invoke(
            app,
            ["mismatch", f"plain={one}", str(other), "--shards", str(digits_8px.path), "--nfe", "2", "--samples", "100",
             "--figure", str(figure), "--json", str(figures), "--device", "cpu"],
        )  # fmt: skip
        assert done.exit_code == 0, done.output
        assert all(word in done.stdout for word in ("plain", "floor", "image"))
        models = json.loads(figures.read_text())["models"]
        assert [model["name"] for model in models] == ["plain", str(other)]
        assert [level["timestep"] for level in models[0]["levels"]] == [500, 0, FINISHED]
        assert models[0]["levels"][0] == models[1]["levels"][0] != models[1]["levels"][1]
        assert Image.open(figure).size[0] > 1000

    def test_names_must_differ_and_images_must_fit(self, digits_8px: ShardSet, tmp_path: Path) -> None:
        one = snapshot(tmp_path / "one", 0)
        command = ["mismatch", f"a={one}", f"a={one}", "--shards", str(digits_8px.path)]
        assert "got 'a' twice" in str(CliRunner().invoke(app, command).exception)
        command = ["mismatch", str(one), "--shards", str(digits_8px.path), "--samples", "300"]
        assert "more than 32 images besides the 300 compared, got 0" in str(CliRunner().invoke(app, command).exception)


@pytest.mark.parametrize("nfe", [1, 4, 50])
def test_the_figure_has_a_curve_a_model_from_latents_to_images(nfe: int) -> None:
    timesteps = [*Sampler(kind="ancestral", nfe=nfe).scheduler(NoiseSchedule()).timesteps.tolist(), FINISHED]
    curve = [MismatchAt(timestep, 0.5, 0.1 * place, 0.01, 0.02) for place, timestep in enumerate(timesteps)]
    axes = mismatch_figure({"plain": curve, "AT": curve}, Sampler(kind="ancestral", nfe=nfe)).axes[0]
    assert [line.get_label() for line in axes.lines] == ["plain", "AT"]
    assert axes.lines[0].get_ydata().tolist() == pytest.approx([level.distance for level in curve])
    ticks = [tick.get_text() for tick in axes.get_xticklabels()]
    assert ticks[0] == "0\nt=999"
    assert ticks[-1] == f"{nfe}\nimage"
    assert len(ticks) <= 11


def test_robustness_has_a_gain_for_every_model_radius_and_range(digits_8px: ShardSet, tmp_path: Path) -> None:
    command = [
        "robustness",
        f"plain={snapshot(tmp_path / 'model', 0)}",
        "--shards",
        str(digits_8px.path),
        "--radius",
        "0,0.1",
    ]
    command += ["--images", "32", "--bins", "2", "--steps", "1", "--device", "cpu", "--json", str(tmp_path / "r.json")]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "0 to 499" in done.stdout
    none, some = json.loads((tmp_path / "r.json").read_text())["figures"]
    assert (none["radius"], some["radius"]) == (0, 0.1)
    assert [level["gain"] for level in none["levels"]] == [1, 1, 1]
    assert min(level["gain"] for level in some["levels"]) > 1
    assert some["levels"][2]["timesteps"] == [500, 999]


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--radius", "0.1,x"], "radius must be numbers separated by commas, got '0.1,x'"),
        (["--images", "9999"], "images must be at most 256"),
    ],
)
def test_wrong_options_of_robustness_are_named(digits_8px: ShardSet, options: list[str], line: str) -> None:
    done = CliRunner().invoke(app, ["robustness", "model", "--shards", str(digits_8px.path), *options])
    assert line in str(done.exception)
