"""The solver's error as measured: known on Gaussian data, and told on the command line."""

import json
from pathlib import Path

import pytest
import torch
from diffusers import DDPMPipeline, DDPMScheduler
from torch import Tensor, nn
from typer.testing import CliRunner

from atdiff_core.data.stream import ShardSet
from atdiff_core.karras import KarrasNoise
from atdiff_core.metrics.solver_error import solver_error
from atdiff_core.networks import UNet
from atdiff_core.objectives.objective import Teacher
from atdiff_core.solvers import Solver
from pipeline.cli import app

SPREAD = 0.5
EDM = KarrasNoise(kind="edm")


class Exact(nn.Module):
    """F of the exact denoiser of Gaussian data of standard deviation SPREAD."""

    def forward(self, shown: Tensor, times: Tensor) -> Tensor:
        sigma = (times / 250).exp().view(-1, 1, 1, 1)
        wanted = SPREAD**2 / (SPREAD**2 + sigma.square())
        return (wanted - EDM.c_skip(sigma)) / (EDM.c_out(sigma) * EDM.c_in(sigma)) * shown


def images() -> Tensor:
    return SPREAD * torch.randn(40, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def test_on_gaussian_data_the_error_is_the_closed_form() -> None:
    noise = KarrasNoise(num_levels=8)
    found = list(solver_error(Teacher(Exact(), EDM), noise, "euler", images(), fine_steps=64))
    assert [each.sigma for each in found] == noise.levels().flip(0)[:-1].tolist()
    for each in found:
        one_step = 1 + (each.reached - each.sigma) * each.sigma / (SPREAD**2 + each.sigma**2)
        exact = ((SPREAD**2 + each.reached**2) / (SPREAD**2 + each.sigma**2)) ** 0.5
        size = (SPREAD**2 + each.sigma**2) ** 0.5  # Of the noised images.
        assert each.amplitude == pytest.approx(abs(one_step - exact) * size, rel=0.05, abs=1e-6)
        assert each.in_noise == each.amplitude / each.reached
        assert each.largest >= each.amplitude


@pytest.mark.parametrize(("solver", "order"), [("euler", 2), ("heun", 3)])
def test_twice_the_levels_leave_a_fraction_of_the_error(solver: Solver, order: int) -> None:
    def largest(levels: int) -> float:
        noise = KarrasNoise(num_levels=levels, sigma_max=5.0)
        return max(each.amplitude for each in solver_error(Teacher(Exact(), EDM), noise, solver, images()))

    assert largest(33) / largest(65) == pytest.approx(2**order, rel=0.15)


def test_the_reference_must_be_finer() -> None:
    with pytest.raises(ValueError, match=r"fine_steps must be at least 2 .* got 1"):
        next(solver_error(Teacher(Exact(), EDM), KarrasNoise(), "heun", images(), fine_steps=1))


def test_the_command_tells_every_level(digits_8px: ShardSet, tmp_path: Path) -> None:
    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2")
    DDPMPipeline(UNet(resolution=8, channels=(8, 16)).build(0).unet, scheduler).save_pretrained(tmp_path / "teacher")
    options = {"--shards": digits_8px.path, "--levels": 4, "--images": 8, "--fine-steps": 2, "--device": "cpu"}
    options["--json"] = tmp_path / "errors.json"
    given = [str(part) for pair in options.items() for part in pair]
    command = ["solver-error", str(tmp_path / "teacher"), *given]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "between 4 levels" in done.stdout
    errors = json.loads((tmp_path / "errors.json").read_text())["errors"]
    assert len(errors) == 3
    assert all(each["amplitude"] > 0 for each in errors)
    assert "solver must be heun or euler, got 'rk4'" in str(
        CliRunner().invoke(app, [*command, "--solver", "rk4"]).exception
    )
