"""Text-conditional networks: what they are told, what they refuse, and what a student has beside its teacher."""

from copy import deepcopy
from typing import Any

import pytest
import torch
from diffusers import LatentConsistencyModelPipeline, UNet2DConditionModel
from pydantic import ValidationError

from atdiff_core.lora import ADAPTER, adapt, merged
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.objectives.latent_consistency import LatentConsistencyDistillation
from atdiff_core.perturbations import Unperturbed
from atdiff_core.text_networks import TextNoisePredictor, TextUNet, guidance_embedding, text_preset
from atdiff_core.train_config import TrainConfig

TINY = TextUNet(
    resolution=4,
    channels=(8, 16),
    attention_at=(4,),
    attention_heads=2,
    prompt_width=6,
    norm_groups=4,
    guidance_width=8,
)
PLAIN = TINY.fitting(embeds_guidance=False, adapts=False)


def inputs(seed: int = 0, batch: int = 3) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "noisy": torch.randn(batch, 4, 4, 4, generator=generator),
        "timesteps": torch.tensor([0, 499, 999])[:batch],
        "prompt": torch.randn(batch, 5, 6, generator=generator),
    }


def train_config(**changes: Any) -> TrainConfig:
    fields = {
        "network": PLAIN, "objective": Denoising(noise=NoiseSchedule(kind="scaled_linear")),
        "perturbation": Unperturbed(), "dataset": "set", "prompts": "texts", "budget_kpass": 1,
    }  # fmt: skip
    return TrainConfig.model_validate(fields | changes)


def _listed(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class TestNetwork:
    def test_it_is_the_stock_network_asked_about_a_prompt_and_an_embedded_scale(self) -> None:
        network = TINY.build(seed=1)
        torch.nn.init.normal_(network.unet.time_embedding.cond_proj.weight)
        given, w = inputs(), torch.tensor([0.0, 4.0, 7.5])
        embedded = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=8)
        with torch.no_grad():
            theirs = network.unet(given["noisy"], given["timesteps"], given["prompt"], timestep_cond=embedded).sample
            assert torch.allclose(network(**given, guidance=w), theirs, atol=1e-5)

    @pytest.mark.parametrize("width", [4, 64, 256])
    def test_the_scale_is_embedded_as_the_stock_pipeline_does(self, width: int) -> None:
        w = torch.linspace(0, 14, 9)
        theirs = LatentConsistencyModelPipeline.get_guidance_scale_embedding(None, w, embedding_dim=width)
        assert torch.allclose(guidance_embedding(w, width), theirs, atol=2e-3)  # Of 14,000 radians in float32.

    def test_a_fresh_student_does_not_look_at_the_scale_yet(self) -> None:
        network, given = TINY.build(seed=1), inputs()
        one, other = (network(**given, guidance=torch.full((3,), w)) for w in (0.0, 9.0))
        assert torch.equal(one, other)

    def test_what_does_not_fit_is_refused_in_a_line(self) -> None:
        given = inputs()
        with pytest.raises(ValueError, match=r"prompts \[3, tokens, 6\], got \[3, 5, 7\]"):
            PLAIN.build()(given["noisy"], given["timesteps"], prompt=torch.zeros(3, 5, 7))
        with pytest.raises(ValueError, match="embeds a guidance scale in 8 numbers, got none"):
            TINY.build()(**given)
        with pytest.raises(ValueError, match="embeds a guidance scale in 0 numbers, got one"):
            PLAIN.build()(**given, guidance=torch.zeros(3))

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"resolution": 5}, "divisible by 2"),
            ({"channels": (8, 15)}, "multiples of 4"),
            ({"attention_at": (3,)}, "attention_at must name resolutions of levels"),
            ({"attention_heads": 3}, "multiples of attention_heads, got 8 and 3"),
            ({"attention_heads": (2, 2, 2)}, "one a level"),
            ({"guidance_width": 7}, "guidance_width must be even"),
        ],
    )
    def test_shapes_that_cannot_be_built_are_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            TINY.but(**changes)

    def test_the_large_preset_is_stable_diffusions_network(self) -> None:
        with torch.device("meta"):
            ours = text_preset("sd15").but(guidance_width=0).build_unet()
            theirs = UNet2DConditionModel(sample_size=64, cross_attention_dim=768)
        one, other = ({name: w.shape for name, w in unet.state_dict().items()} for unet in (ours, theirs))
        assert one == other
        named = [name for name in theirs.config if not name.startswith("_")]
        assert all(_listed(ours.config[name]) == _listed(theirs.config[name]) for name in named)

    def test_another_size_keeps_the_attention_of_its_levels(self) -> None:
        assert text_preset("sd15", resolution=32).attention_at == (32, 16, 8)


class TestConfig:
    def test_either_kind_of_network_reads_back_and_none_of_the_old_keys_changes(self) -> None:
        for config in (train_config(prompt_dropout=0.1), train_config(network=UNet(resolution=8), prompts="none")):
            assert TrainConfig.model_validate_json(config.canonical_json()) == config
        old = train_config(network=UNet(resolution=8), prompts="none", objective=Denoising())
        assert not {"prompts", "prompt_dropout", "guidance", "predicts"} & set(old.canonical_json().split('"'))
        assert old.key == "71869a3456fdb0ee7f43ca3ed059f89980004467dde8546efd3eafd12f93e973"

    @pytest.mark.parametrize(
        ("changes", "words"),
        [
            ({"prompts": "none"}, "is told embeddings of prompts, got 'none'"),
            ({"network": UNet(resolution=8)}, "is told no prompts, got 'texts'"),
            ({"network": UNet(resolution=8), "prompts": "none", "prompt_dropout": 0.1}, "attends to prompts, got 0.1"),
            ({"network": TINY}, "guidance_width must be 0 for objective denoising, got 8"),
            (
                {"objective": LatentConsistencyDistillation(), "teacher": "t"},
                "guidance_width must be more than 0 for objective latent_consistency, got 0",
            ),
            ({"network": PLAIN.but(lora_rank=2)}, "lora_rank=2 needs a start"),
            ({"network": {"kind": "text", "resolution": 4, "middle_attention": True}}, "Extra inputs"),
        ],
    )
    def test_networks_and_objectives_that_do_not_fit_are_refused(self, changes: dict[str, Any], words: str) -> None:
        with pytest.raises(ValidationError, match=words):
            train_config(**changes)


class TestLoRA:
    def adapted(self) -> TextNoisePredictor:
        network = TINY.build(seed=1)
        adapt(network, 2, seed=3)
        return network

    def test_updates_start_at_nothing_and_only_they_and_the_scales_embedding_learn(self) -> None:
        network, given = self.adapted(), {**inputs(), "guidance": torch.zeros(3)}
        assert torch.equal(network(**given), TINY.build(seed=1)(**given))
        learning = [name for name, weight in network.named_parameters() if weight.requires_grad]
        assert all("lora_" in name or "cond_proj" in name for name in learning)
        assert any("cond_proj" in name for name in learning)
        assert any("to_k" in name for name in learning)
        assert all(f".{ADAPTER}." in name for name in learning if "lora_" in name)

    def test_merged_weights_compute_the_same(self) -> None:
        network, given = self.adapted(), {**inputs(), "guidance": torch.ones(3)}
        for weight in network.parameters():
            if weight.requires_grad:
                torch.nn.init.normal_(weight, std=0.1)
        plain = TINY.build(seed=5)
        plain.load_state_dict(merged(network))
        with torch.no_grad():
            assert torch.allclose(network(**given), plain(**given), atol=1e-5)

    def test_a_copy_shares_the_base_and_nothing_else(self) -> None:
        network = self.adapted()
        copied = deepcopy(network)
        for (name, one), other in zip(network.named_parameters(), copied.parameters(), strict=True):
            assert (one is other) != one.requires_grad, name
        whole = TINY.build()
        assert not set(map(id, whole.parameters())) & set(map(id, deepcopy(whole).parameters()))
