"""Configs: frozen, complete, one canonical form, one key."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from atdiff_core.balls import L1Ball, L2Ball, LInfBall
from atdiff_core.config import Config
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.objectives.denoising import Denoising
from atdiff_core.perturbations import PGD, FreeAT, Perturbation, RandomPerturbation, Unperturbed
from atdiff_core.train_config import TrainConfig

amplitudes = st.floats(0, 1).map(abs)
counts = st.integers(1, 5)
balls = st.one_of(*(st.builds(ball, radius=amplitudes) for ball in (L1Ball, L2Ball, LInfBall)))
perturbations: st.SearchStrategy[Perturbation] = st.one_of(
    st.builds(Unperturbed, num_replays=counts),
    st.builds(FreeAT, ball=balls, step_size=amplitudes, num_replays=counts),
    st.builds(RandomPerturbation, ball=balls, step_size=amplitudes, num_replays=counts),
    st.builds(PGD, ball=balls, step_size=amplitudes, num_steps=counts),
)
objectives = st.builds(
    Denoising,
    noise=st.builds(NoiseSchedule, kind=st.sampled_from(["linear", "cosine"]), num_timesteps=st.integers(2, 50)),
    attack_sees_target=st.booleans(),
)
runs = st.builds(
    TrainConfig,
    network=st.just(UNet(resolution=8, channels=(8, 16))),
    objective=objectives,
    perturbation=perturbations,
    dataset=st.sampled_from(["a", "b"]),
    budget_kpass=st.floats(0.001, 1000),
    seed=st.integers(0, 3),
)


class TestKey:
    @given(runs)
    def test_a_config_written_as_json_reads_back_equal_and_under_the_same_key(self, config: TrainConfig) -> None:
        again = TrainConfig.model_validate_json(config.canonical_json())
        assert again == config
        assert again.key == config.key
        assert hash(again) == hash(config)

    @given(runs)
    def test_the_canonical_form_has_sorted_keys_and_no_spaces(self, config: TrainConfig) -> None:
        text = config.canonical_json()
        assert text == json.dumps(json.loads(text), sort_keys=True, separators=(",", ":"))

    @given(perturbations, perturbations)
    def test_keys_are_equal_exactly_where_configs_are(self, one: Config, other: Config) -> None:
        assert (one.key == other.key) == (one == other)

    def test_a_whole_number_and_its_float_are_the_same_run(self) -> None:
        assert L2Ball(radius=1).key == L2Ball(radius=1.0).key

    def test_equality_ignores_what_cached_properties_have_computed(self) -> None:
        one, other, fresh = NoiseSchedule(), NoiseSchedule(), NoiseSchedule()
        key = one.key
        assert len(one.abar) == len(other.abar)
        assert one == other == fresh
        assert hash(one) == hash(fresh)
        assert one.key == key
        assert one != one.but(num_timesteps=500)

    def test_equal_numbers_in_different_balls_are_different_configs(self) -> None:
        assert L1Ball(radius=0.1) != L2Ball(radius=0.1)
        assert L2Ball(radius=0.1) != "not a config"


class TestRefusal:
    def test_an_unknown_field_is_refused_by_name(self) -> None:
        with pytest.raises(ValidationError, match="epsilon"):
            L2Ball(radius=0.1, epsilon=1)  # type: ignore[call-arg]

    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_numbers_that_are_not_finite_are_refused(self, value: float) -> None:
        with pytest.raises(ValidationError, match="finite"):
            L2Ball(radius=value)

    def test_a_config_cannot_be_changed(self) -> None:
        with pytest.raises(ValidationError, match="frozen"):
            L2Ball(radius=0.1).radius = 0.2  # type: ignore[misc]


class TestBut:
    @given(runs, st.integers(0, 9))
    def test_only_what_is_named_changes(self, config: TrainConfig, seed: int) -> None:
        changed = config.but(seed=seed)
        assert changed.seed == seed
        assert changed.but(seed=config.seed) == config

    def test_changes_are_validated(self) -> None:
        schedule = NoiseSchedule()
        with pytest.raises(ValidationError, match="num_timesteps"):
            schedule.but(num_timesteps=1)
        with pytest.raises(ValidationError, match="steps"):
            schedule.but(steps=10)
        with pytest.raises(ValidationError, match="radius must be >= 0"):
            L2Ball(radius=0.1).but(radius=-1)

    def test_a_copy_computes_its_own_cached_properties(self) -> None:
        schedule = NoiseSchedule(num_timesteps=10)
        assert len(schedule.betas) == 10
        assert len(schedule.but(num_timesteps=20).betas) == 20
