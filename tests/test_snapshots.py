"""Snapshots: folders that stock diffusers opens, and foreign folders that we open."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet1DModel, UNet2DModel
from torch import Tensor

from atdiff_core.data.stream import ShardSet
from atdiff_core.files import sha256_of
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.snapshots import load_snapshot, save_imported, save_snapshot
from atdiff_core.train_config import TrainConfig
from atdiff_core.train_state import TrainState
from atdiff_core.trainer import train

WEIGHTS = Path("unet") / "diffusion_pytorch_model.safetensors"
NOISY = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(0))
TIMESTEPS = torch.tensor([0, 30, 70])
LEVELS = ("DownBlock2D", "DownBlock2D"), ("UpBlock2D", "UpBlock2D")


@torch.no_grad()
def predicted(network: torch.nn.Module) -> Tensor:
    output: Tensor = network(NOISY, TIMESTEPS)
    return output


@pytest.fixture
def state(tiny_config: TrainConfig, digits_8px: ShardSet) -> TrainState:
    """A state whose average differs from its network."""
    state = TrainState.fresh(tiny_config)
    for _ in train(tiny_config, state, digits_8px):
        pass
    return state


@pytest.fixture
def folder(state: TrainState, tiny_config: TrainConfig, tmp_path: Path) -> Path:
    save_snapshot(state, tiny_config, tmp_path / "ours")
    return tmp_path / "ours"


def foreign(folder: Path, *, out_channels: int = 1, **scheduling: object) -> Path:
    """A DDPM saved by hand, as somebody else would."""
    down, up = LEVELS
    unet = UNet2DModel(
        sample_size=8, in_channels=1, out_channels=out_channels, block_out_channels=(8, 16), layers_per_block=1,
        down_block_types=down, up_block_types=up, norm_num_groups=4,
    )  # fmt: skip
    DDPMPipeline(unet, DDPMScheduler(**scheduling)).save_pretrained(folder)
    return folder


class TestOurs:
    def test_a_snapshot_predicts_what_the_averaged_network_predicts(self, folder: Path, state: TrainState) -> None:
        snapshot = load_snapshot(folder)
        assert torch.equal(predicted(snapshot.network), predicted(state.average.module))
        assert not torch.equal(predicted(snapshot.network), predicted(state.network))
        assert not snapshot.network.training

    def test_a_snapshot_knows_its_trial_noise_and_shape(self, folder: Path, tiny_config: TrainConfig) -> None:
        snapshot = load_snapshot(folder)
        assert (snapshot.key, snapshot.image_shape) == (tiny_config.key, (1, 8, 8))
        assert snapshot.noise == tiny_config.objective.noise

    def test_stock_diffusers_opens_it_and_samples(self, folder: Path) -> None:
        pipeline = DDPMPipeline.from_pretrained(folder)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(batch_size=2, num_inference_steps=3, output_type="np").images
        assert images.shape == (2, 8, 8, 1)
        assert 0 <= images.min() <= images.max() <= 1

    @pytest.mark.parametrize("kind", ["linear", "cosine"])
    @pytest.mark.parametrize("num_timesteps", [1000, 100])
    def test_stock_diffusers_sees_the_same_noise_and_the_same_weights(
        self, tiny_config: TrainConfig, tmp_path: Path, kind: str, num_timesteps: int
    ) -> None:
        noise = NoiseSchedule(kind=kind, num_timesteps=num_timesteps)
        config = tiny_config.but(objective=Denoising(noise=noise))
        save_snapshot(TrainState.fresh(config), config, tmp_path)
        pipeline = DDPMPipeline.from_pretrained(tmp_path)
        assert torch.allclose(pipeline.scheduler.betas.double(), noise.betas, rtol=1e-4, atol=1e-7)
        theirs = pipeline.unet(NOISY, TIMESTEPS).sample
        assert torch.equal(theirs, predicted(load_snapshot(tmp_path).network))

    def test_attention_and_colour_survive(self, tiny_config: TrainConfig, tmp_path: Path) -> None:
        network = UNet(resolution=8, image_channels=3, channels=(8, 16), attention_at=(4,))
        config = tiny_config.but(network=network)
        save_snapshot(TrainState.fresh(config), config, tmp_path)
        snapshot = load_snapshot(tmp_path)
        noisy = NOISY.expand(-1, 3, -1, -1)
        with torch.no_grad():
            assert torch.equal(snapshot.network(noisy, TIMESTEPS), network.build(3)(noisy, TIMESTEPS))


CONDITIONAL = UNet(resolution=8, channels=(8, 16), num_classes=10, learned_variance=True, scale_shift_norm=True)


class TestImported:
    """Weights that no run of ours made; ``test_adm`` imports a file."""

    @pytest.fixture
    def imported(self, tmp_path: Path) -> Path:
        noise = NoiseSchedule(kind="linear", num_timesteps=50)
        save_imported(CONDITIONAL.build(1).eval(), CONDITIONAL, noise, tmp_path, origin={"format": "test"})
        return tmp_path

    def test_classes_variance_and_noise_come_back(self, imported: Path) -> None:
        snapshot = load_snapshot(imported)
        assert (snapshot.num_classes, snapshot.learned_variance, snapshot.image_shape) == (10, True, (1, 8, 8))
        assert snapshot.noise == NoiseSchedule(kind="linear", num_timesteps=50)
        labels = torch.tensor([0, 9, 5])
        with torch.no_grad():
            found, made = (network(NOISY, TIMESTEPS, labels) for network in (snapshot.network, CONDITIONAL.build(1)))
        assert torch.equal(found, made)

    def test_its_key_is_the_sha256_of_its_weights(self, imported: Path) -> None:
        record = json.loads((imported / "atdiff.json").read_text())
        assert load_snapshot(imported).key == record["key"] == sha256_of(imported / WEIGHTS)
        assert (UNet.model_validate(record["network"]), record["origin"]) == (CONDITIONAL, {"format": "test"})

    def test_a_run_of_the_same_network_fits_at_any_size_and_dropout(self, imported: Path) -> None:
        load_snapshot(imported).check_fits(CONDITIONAL.but(resolution=16, dropout=0.5))

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"num_classes": 1000}, "its num_class_embeds is 10, the run's is 1000"),
            ({"num_classes": 0}, "its num_class_embeds is 10, the run's is None"),
            ({"learned_variance": False}, "its out_channels is 2, the run's is 1"),
            ({"channels": (8, 24)}, r"its block_out_channels is \[8, 16\], the run's is \[8, 24\]"),
            ({"head_width": 4}, "its attention_head_dim is 8, the run's is 4"),
            ({"norm_groups": 4}, "its norm_num_groups is 8, the run's is 4"),
        ],
    )
    def test_a_run_of_another_network_is_refused_in_one_line(
        self, imported: Path, changes: dict[str, object], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message) as refused:
            load_snapshot(imported).check_fits(CONDITIONAL.but(**changes))
        assert "\n" not in str(refused.value)

    def test_a_fine_tune_of_it_opens_as_well(self, imported: Path, tiny_config: TrainConfig, tmp_path: Path) -> None:
        start = load_snapshot(imported)
        objective = Denoising(variance="learned", noise=start.noise)
        config = tiny_config.but(network=CONDITIONAL, objective=objective, start_from=start.key)
        start.check_fits(config.network)
        save_snapshot(TrainState.fresh(config, start.network), config, tmp_path / "tuned")
        tuned = load_snapshot(tmp_path / "tuned")
        assert (tuned.key, tuned.num_classes, tuned.learned_variance) == (config.key, 10, True)
        assert DDPMPipeline.from_pretrained(tmp_path / "tuned").scheduler.config.variance_type == "learned_range"


class TestDamage:
    def test_damaged_or_missing_weights_are_refused_with_their_file(self, folder: Path) -> None:
        content = bytearray((folder / WEIGHTS).read_bytes())
        content[-1] ^= 1
        (folder / WEIGHTS).write_bytes(content)
        with pytest.raises(ValueError, match=rf"{WEIGHTS} is missing or damaged"):
            load_snapshot(folder)
        (folder / WEIGHTS).unlink()
        with pytest.raises(ValueError, match=rf"{WEIGHTS} is missing or damaged"):
            load_snapshot(folder)

    def test_a_missing_folder_is_named(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=rf"no diffusers snapshot .* in {tmp_path}/nowhere"):
            load_snapshot(tmp_path / "nowhere")


class TestForeign:
    @pytest.mark.parametrize(("schedule", "kind"), [("linear", "linear"), ("squaredcos_cap_v2", "cosine")])
    def test_a_ddpm_without_our_record_opens(self, tmp_path: Path, schedule: str, kind: str) -> None:
        snapshot = load_snapshot(foreign(tmp_path, beta_schedule=schedule))
        assert snapshot.noise == NoiseSchedule(kind=kind)
        assert snapshot.image_shape == (1, 8, 8)
        assert len(snapshot.key) == 64
        theirs = DDPMPipeline.from_pretrained(tmp_path).unet(NOISY, TIMESTEPS).sample
        assert torch.equal(predicted(snapshot.network), theirs)

    @pytest.mark.parametrize(
        "scheduling",
        [
            {"beta_schedule": "sigmoid"},
            {"beta_schedule": "linear", "beta_end": 0.012},
            {"beta_schedule": "linear", "beta_start": 0.001},
        ],
        ids=["sigmoid", "another end", "another start"],
    )
    def test_another_noise_schedule_is_refused(self, tmp_path: Path, scheduling: dict[str, object]) -> None:
        with pytest.raises(ValueError, match=r"must be linear .*, cosine or scaled_linear .*, got"):
            load_snapshot(foreign(tmp_path, **scheduling))

    def test_a_network_that_predicts_something_else_is_refused(self, tmp_path: Path) -> None:
        with pytest.raises(ValueError, match=r"must predict the noise .* got v_prediction in 1"):
            load_snapshot(foreign(tmp_path / "velocity", prediction_type="v_prediction"))
        with pytest.raises(ValueError, match=r"must predict the noise .* got epsilon in 2 with learned$"):
            load_snapshot(foreign(tmp_path / "variance", out_channels=2, variance_type="learned"))
        with pytest.raises(ValueError, match=r"must predict the noise .* got epsilon in 3"):
            load_snapshot(foreign(tmp_path / "more", out_channels=3, variance_type="learned_range"))

    def test_a_learned_range_of_the_variance_opens(self, tmp_path: Path) -> None:
        snapshot = load_snapshot(foreign(tmp_path, out_channels=2, variance_type="learned_range"))
        assert (snapshot.learned_variance, snapshot.num_classes) == (True, 0)
        assert predicted(snapshot.network).shape == (3, 2, 8, 8)

    def test_a_folder_of_another_kind_is_one_clear_error(self, tmp_path: Path) -> None:
        other = UNet1DModel(block_out_channels=(8, 8, 16), layers_per_block=1)
        other.save_pretrained(tmp_path / "unet")
        DDPMScheduler().save_pretrained(tmp_path / "scheduler")
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": "SomethingElse"}))
        with pytest.raises(ValueError, match="not a diffusers DDPM pipeline: its network is a UNet1DModel"):
            load_snapshot(tmp_path)

    def test_an_index_without_a_network_is_one_clear_error(self, tmp_path: Path) -> None:
        (tmp_path / "model_index.json").write_text("{}")
        with pytest.raises(ValueError, match=rf"there is no config\.json in {tmp_path}/unet"):
            load_snapshot(tmp_path)
