"""The command line as a person meets it: help, results, and one clear line for each mistake."""

import json
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from pathlib import Path

import pytest
from PIL import Image
from sweep_helpers import tiny_space, write_digits

from pipeline.cli import main
from pipeline.workspace import Workspace

ROOT = Path(__file__).parent.parent
SPACE = "from sweep_helpers import tiny_space\nspace = tiny_space({arguments})\n"
CONFIG = """
from atdiff_core.balls import L2Ball
from atdiff_core.metrics.evaluation import EvaluationConfig
from atdiff_core.networks import UNet
from atdiff_core.perturbations import FreeAT
from atdiff_core.samplers import Sampler

config = {{
    "train": {{
        "network": UNet(resolution={resolution}, channels=(8, 16)),
        "perturbation": {{"kind": "free_at", "ball": {{"norm": "{norm}", "radius": {radius}}},
                          "num_replays": 2, "step_size": 0.01}},
        "batch_size": 16,
        "budget_kpass": 0.064,
    }},
    "evaluation": EvaluationConfig(samples=8, samplers=(Sampler(nfe=2),), reference=32),
}}
"""


def atdiff(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    """The command line as the program runs it, in this process: a new one would import torch each time."""
    out, err, code = StringIO(), StringIO(), 0
    command = ["atdiff", *map(str, arguments)]
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", command)
        try:
            main()
        except SystemExit as end:
            code = int(end.code or 0)
    return subprocess.CompletedProcess(command, code, out.getvalue(), err.getvalue())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_digits(tmp_path_factory.mktemp("digits"), [8, 16])


def config_file(folder: Path, *, resolution: int = 8, norm: str = "l2", radius: float = 0.01) -> Path:
    file = folder / "config.py"
    file.write_text(CONFIG.format(resolution=resolution, norm=norm, radius=radius))
    return file


def mistake(*arguments: str | Path) -> str:
    """Runs a command that must fail; returns its one line."""
    done = atdiff(*arguments)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    lines = [line for line in done.stderr.splitlines() if line.startswith("atdiff:")]
    assert len(lines) == 1, done.stderr
    return lines[0]


def imported(statement: str, *packages: str) -> list[str]:
    """Which of some packages a statement imports, in a new process."""
    program = f"import sys; {statement}; print(*(each for each in {packages} if each in sys.modules))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, check=True)
    return done.stdout.split()


def test_help_imports_nothing_heavy() -> None:
    assert imported("import pipeline.cli", "torch", "ray", "mlflow", "optuna") == []


def test_what_drives_trials_does_not_import_what_only_they_need() -> None:
    drivers = "import pipeline.tuning, pipeline.distributed, search_spaces.demo"
    assert imported(drivers, "diffusers", "transformers", "torchmetrics") == []
    assert imported("import pipeline.driver", "diffusers", "transformers", "torchmetrics") == []


def test_a_mistake_ends_the_program_with_one_line_and_2() -> None:
    command = [sys.executable, "-m", "pipeline.cli", "law", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert (done.returncode, len(done.stderr.splitlines())) == (2, 1)


def test_train_sample_and_evaluate_one_network(shards: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    command = ("train", config_file(tmp_path), "--shards", shards / "8px", "--out", run)
    first = atdiff(*command)
    assert first.returncode == 0, first.stderr
    written = (run / "result.json").stat().st_mtime_ns
    assert atdiff(*command).returncode == 0
    assert (run / "result.json").stat().st_mtime_ns == written
    grid = tmp_path / "grid.png"
    sampled = atdiff("sample", run / "snapshot", "--out", grid, "--nfe", "2", "--count", "4")
    assert sampled.returncode == 0, sampled.stderr
    assert Image.open(grid).size[0] > 100
    figures = tmp_path / "figures.json"
    judged = atdiff(
        "evaluate", run / "snapshot", "--shards", shards / "8px", "--nfe", "1,2", "--samplers", "ddim,dpmpp_2m",
        "--samples", "8", "--json", figures, "--cache", tmp_path / "cache",
    )  # fmt: skip
    assert judged.returncode == 0, judged.stderr
    (judgement,) = json.loads(figures.read_text())["models"].values()
    assert set(judgement["figures"]) >= {"fd_efflite0_64/ddim_1", "kd_efflite0_64/dpmpp_2m_2"}
    assert "another configuration" in mistake(*command[:-1], run, "--seed", "3")


def test_a_folder_of_images_becomes_shards(tmp_path: Path) -> None:
    for label, colour in (("cat", "red"), ("dog", "blue")):
        (tmp_path / "pictures" / label).mkdir(parents=True)
        Image.new("RGB", (40, 30), colour).save(tmp_path / "pictures" / label / "one.png")
    out = tmp_path / "shards"
    done = atdiff("shards", "folder", tmp_path / "pictures", "--out", out, "--resolutions", "8,16")
    assert done.returncode == 0, done.stderr
    assert "2 images, 2 classes" in done.stdout
    assert (out / "16px" / "index.json").is_file()


def test_a_corrupt_image_is_named(tmp_path: Path) -> None:
    (tmp_path / "pictures" / "cat").mkdir(parents=True)
    (tmp_path / "pictures" / "cat" / "broken.png").write_bytes(b"not a picture")
    line = mistake("shards", "folder", tmp_path / "pictures", "--out", tmp_path / "out", "--resolutions", "8")
    assert "broken.png" in line


def test_missing_things_are_named_with_the_way_out(tmp_path: Path, shards: Path) -> None:
    nowhere = tmp_path / "nowhere"
    assert str(nowhere) in mistake("shards", "folder", nowhere, "--out", tmp_path / "out", "--resolutions", "8")
    assert str(nowhere) in mistake("train", config_file(tmp_path), "--shards", nowhere, "--out", tmp_path / "run")
    assert str(nowhere) in mistake("sample", nowhere)
    assert str(nowhere) in mistake("sweep", nowhere)
    assert "sweep.json" in mistake("report", nowhere)
    assert "sweep.json" in mistake("law", nowhere)
    assert "run a sweep first" in mistake("ui", "--root", nowhere)


def test_an_empty_shard_set_is_refused(tmp_path: Path, shards: Path) -> None:
    empty = tmp_path / "8px"
    empty.mkdir()
    index = json.loads((shards / "8px" / "index.json").read_text()) | {"shards": []}
    (empty / "index.json").write_text(json.dumps(index))
    assert str(empty) in mistake("train", config_file(tmp_path), "--shards", empty, "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"radius": -0.1}, "radius must be >= 0 (an amplitude per element), got -0.1"),
        ({"norm": "l7"}, "l7"),
        ({"resolution": 9}, "resolution must be divisible by 2 for 2 levels, got 9"),
        ({"resolution": 16}, "the network takes 1 channels at 16 px, the shards hold 1 at 8 px"),
    ],
)
def test_wrong_values_are_named(tmp_path: Path, shards: Path, changes: dict[str, object], expected: str) -> None:
    file = config_file(tmp_path, **changes)  # type: ignore[arg-type]
    assert expected in mistake("train", file, "--shards", shards / "8px", "--out", tmp_path / "run")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--sampler", "euler"), "euler"),
        (("--nfe", "2000"), "2000"),
    ],
)
def test_wrong_samplers_are_named(tmp_path: Path, shards: Path, arguments: tuple[str, str], expected: str) -> None:
    run = tmp_path / "run"
    assert atdiff("train", config_file(tmp_path), "--shards", shards / "8px", "--out", run).returncode == 0
    assert expected in mistake("sample", run / "snapshot", *arguments)


def test_a_space_with_no_domains_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "space.py"
    file.write_text("from search_spaces.domains import *\nReachDomains(eta=choice(0.1))\n")
    assert "at least one domain that varies" in mistake("sweep", file, "--root", tmp_path / "runs")


def test_a_full_disk_is_one_clear_line(tmp_path: Path, shards: Path) -> None:
    if not Path("/dev/full").exists():
        pytest.skip("needs /dev/full")
    run = tmp_path / "run"
    assert atdiff("train", config_file(tmp_path), "--shards", shards / "8px", "--out", run).returncode == 0
    line = mistake("sample", run / "snapshot", "--out", "/dev/full", "--nfe", "1")
    assert "No space left on device; make room" in line


def test_doctor_tells_what_is_missing_and_what_to_do() -> None:
    done = atdiff("doctor")
    assert done.returncode == 0, done.stdout
    assert "Inception" in done.stdout
    assert "mlflow" in done.stdout


def test_a_sweep_that_is_running_is_not_started_again(tmp_path: Path, shards: Path) -> None:
    space = tiny_space(shards)
    workspace = Workspace(tmp_path, space.name)
    file = tmp_path / "space.py"
    file.write_text(SPACE.format(arguments=f"{str(shards)!r}"))
    workspace.claim(space)
    with workspace.locked():
        assert f"process {os.getpid()}" in mistake("sweep", file, "--root", tmp_path)


def test_a_second_sweep_of_the_same_name_is_refused(tmp_path: Path, shards: Path) -> None:
    file = tmp_path / "space.py"
    file.write_text(SPACE.format(arguments=f"{str(shards)!r}, trials=9"))
    Workspace(tmp_path, "tiny").claim(tiny_space(shards))
    assert "another configuration (different: trials)" in mistake("sweep", file, "--root", tmp_path)
