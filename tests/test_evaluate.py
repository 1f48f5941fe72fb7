"""Models judged by samplers and NFE: cells kept, tables written, curves found again."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from atdiff_core.data.stream import ShardSet
from atdiff_core.metrics.evaluation import EvaluationConfig, Evaluator
from atdiff_core.networks import UNet
from atdiff_core.noise import NoiseSchedule
from atdiff_core.samplers import Sampler
from atdiff_core.snapshots import save_imported
from pipeline.commands.evaluation import evaluate, sample
from pipeline.evaluations import Cell, Model, Sampled, cell_key, check_samplers, judged, opened_models
from pipeline.report.nfe_figure import nfe_figure

SAMPLERS = (Sampler(nfe=1), Sampler.named("ancestral_es1.017", nfe=2))
CONFIG = EvaluationConfig(samples=6, reference=48, samplers=SAMPLERS, full=True)
FIGURES = [
    "fd_efflite0_64", "fd_efflite0_64_se", "kd_efflite0_64", "kd_efflite0_64_se", "kd_efflite0_64_std",
    "precision_efflite0_64", "recall_efflite0_64",
]  # fmt: skip


def snapshot(folder: Path, *, seed: int = 0, **shape: object) -> Path:
    unet = UNet.model_validate({"resolution": 8, "channels": (8, 16), **shape})
    save_imported(unet.build(seed=seed), unet, NoiseSchedule(), folder, origin={"made": "for a test"})
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("snapshots")
    return [snapshot(root / name, seed=seed) for seed, name in enumerate(("one", "other"))]


@pytest.fixture(scope="module")
def evaluator(digits_8px: ShardSet, tmp_path_factory: pytest.TempPathFactory) -> Evaluator:
    return Evaluator(CONFIG, digits_8px, tmp_path_factory.mktemp("features"), batch_size=4)


@pytest.fixture(scope="module")
def models(folders: list[Path], digits_8px: ShardSet) -> list[Model]:
    return opened_models([f"first={folders[0]}", str(folders[1])], digits_8px, "cpu")


def finished(events: Iterator[Cell | Sampled]) -> tuple[list[Cell], int]:
    """Cells, and the images that were made for them."""
    cells, images = [], 0
    for event in events:
        if isinstance(event, Cell):
            cells.append(event)
        else:
            images += event.images
    return cells, images


class TestCells:
    @pytest.fixture(scope="class")
    def whole(
        self,
        models: list[Model],
        evaluator: Evaluator,
        digits_8px: ShardSet,
        tmp_path_factory: pytest.TempPathFactory,
    ) -> tuple[list[Cell], int]:
        return finished(judged(models, evaluator, digits_8px.fingerprint, tmp_path_factory.mktemp("cells")))

    def test_every_model_is_judged_by_every_sampler_with_every_figure(
        self, whole: tuple[list[Cell], int], models: list[Model], folders: list[Path]
    ) -> None:
        cells, images = whole
        assert [model.name for model in models] == ["first", str(folders[1])]
        assert [(cell.model, cell.sampler) for cell in cells] == [(m.name, s) for m in models for s in SAMPLERS]
        assert all(list(cell.figures) == FIGURES for cell in cells)
        assert images == 2 * 2 * 6

    def test_an_interrupted_evaluation_goes_on_where_it_was(
        self,
        whole: tuple[list[Cell], int],
        models: list[Model],
        evaluator: Evaluator,
        digits_8px: ShardSet,
        tmp_path: Path,
    ) -> None:
        broken = judged(models[:1], evaluator, digits_8px.fingerprint, tmp_path)
        while not isinstance(next(broken), Cell):
            pass
        next(broken)  # In the middle of the second cell.
        broken.close()
        resumed, images = finished(judged(models[:1], evaluator, digits_8px.fingerprint, tmp_path))
        assert images == 6
        assert [cell.figures for cell in resumed] == [cell.figures for cell in whole[0][:2]]
        assert finished(judged(models[:1], evaluator, digits_8px.fingerprint, tmp_path)) == (resumed, 0)

    def test_a_cell_is_known_by_weights_data_settings_and_sampler_but_not_by_its_name(
        self, models: list[Model]
    ) -> None:
        first, other = models
        known = cell_key(first, SAMPLERS[0], CONFIG, "dataset")
        assert cell_key(Model("renamed", first.snapshot, first.sha256), SAMPLERS[0], CONFIG, "dataset") == known
        assert cell_key(first, SAMPLERS[0], CONFIG.but(samplers=SAMPLERS[:1]), "dataset") == known
        changed = {
            cell_key(other, SAMPLERS[0], CONFIG, "dataset"),
            cell_key(first, SAMPLERS[1], CONFIG, "dataset"),
            cell_key(first, SAMPLERS[0], CONFIG.but(seed=1), "dataset"),
            cell_key(first, SAMPLERS[0], CONFIG, "another"),
        }
        assert len(changed | {known}) == 5

    def test_the_batch_size_changes_nothing_but_rounding(
        self,
        whole: tuple[list[Cell], int],
        models: list[Model],
        digits_8px: ShardSet,
        tmp_path: Path,
    ) -> None:
        large = Evaluator(CONFIG.but(samplers=SAMPLERS[1:]), digits_8px, tmp_path / "features", batch_size=64)
        (cell,), _ = finished(judged(models[:1], large, digits_8px.fingerprint, tmp_path / "cells"))
        assert cell.figures == pytest.approx(whole[0][1].figures, rel=0.02, abs=1e-3)


class TestMistakes:
    def test_one_name_for_two_models_is_refused(self, folders: list[Path], digits_8px: ShardSet) -> None:
        with pytest.raises(ValueError, match=r"a name of its own \(NAME=FOLDER\), got 'same' twice"):
            opened_models([f"same={folder}" for folder in folders], digits_8px, "cpu")

    def test_a_model_of_other_images_is_refused(self, tmp_path: Path, digits_8px: ShardSet) -> None:
        with pytest.raises(ValueError, match=r"makes images of shape \(3, 8, 8\), .* holds 1 channels at 8 px"):
            opened_models([str(snapshot(tmp_path / "colour", image_channels=3))], digits_8px, "cpu")

    @pytest.mark.parametrize(
        ("samplers", "expected"),
        [
            ((Sampler(kind="iddpm"),), "iddpm needs a network with a learned variance, first has none"),
            ((Sampler(nfe=2000),), "nfe of ddim must be at most 1000, the timesteps of the noise, got 2000"),
            ((Sampler(), Sampler()), "every sampler may be named once, got ddim_10 2 times"),
        ],
    )
    def test_samplers_that_do_not_fit_are_refused_before_any_work(
        self, models: list[Model], samplers: tuple[Sampler, ...], expected: str
    ) -> None:
        with pytest.raises(ValueError, match=expected):
            check_samplers(models, samplers)

    def test_scaling_in_a_name_and_as_an_option_is_refused(self, folders: list[Path], digits_8px: ShardSet) -> None:
        with pytest.raises(ValueError, match="epsilon scaling must be given once"):
            evaluate([str(folders[0])], digits_8px.path, samplers="ddim_es1.1", epsilon_scaling="1.017")


class TestCommand:
    @pytest.fixture(scope="class")
    def written(
        self, folders: list[Path], digits_8px: ShardSet, tmp_path_factory: pytest.TempPathFactory
    ) -> tuple[Path, dict[str, object]]:
        out = tmp_path_factory.mktemp("written")
        arguments = {
            "snapshots": [f"plain={folders[0]}", f"at={folders[1]}"], "shards": digits_8px.path,
            "samplers": "ddim_es1_0.01", "nfe": "1,2", "samples": 5,
            "csv": out / "table.csv", "json": out / "record.json", "figure": out / "nfe.png", "track": True,
            "root": out / "runs", "cache": out / "cache", "device": "cpu",
        }  # fmt: skip
        evaluate(**arguments)
        return out, arguments

    def test_csv_and_json_hold_the_whole_table(self, written: tuple[Path, dict[str, object]]) -> None:
        out, _ = written
        with (out / "table.csv").open() as file:
            rows = list(csv.DictReader(file))
        record = json.loads((out / "record.json").read_text())
        assert [(row["model"], row["sampler"], row["nfe"]) for row in rows] == [
            (model, "ddim_es1_0.01", nfe) for model in ("plain", "at") for nfe in ("1", "2")
        ]
        for row in rows:
            known = record["models"][row["model"]]["figures"]
            for name in FIGURES:
                assert float(row[name]) == known[f"{name}/{row['sampler']}_{row['nfe']}"]

    def test_mlflow_has_one_run_a_model_whose_curves_are_the_table_over_nfe_however_often_it_is_run(
        self, written: tuple[Path, dict[str, object]]
    ) -> None:
        out, arguments = written
        evaluate(**arguments)
        client = MlflowClient(tracking_uri=f"sqlite:///{out / 'runs' / 'mlflow.db'}")
        experiment = client.get_experiment_by_name("evaluations")
        runs = {run.info.run_name: run.info.run_id for run in client.search_runs([experiment.experiment_id])}
        assert set(runs) == {"plain", "at"}
        record = json.loads((out / "record.json").read_text())
        for model, run in runs.items():
            points = client.get_metric_history(run, "nfe/fd_efflite0_64/ddim_es1_0.01")
            known = record["models"][model]["figures"]
            assert [(point.step, point.value) for point in points] == [
                (nfe, known[f"fd_efflite0_64/ddim_es1_0.01_{nfe}"]) for nfe in (1, 2)
            ]

    def test_the_figure_is_a_picture(self, written: tuple[Path, dict[str, object]]) -> None:
        assert (written[0] / "nfe.png").read_bytes().startswith(b"\x89PNG")

    def test_a_conditional_network_with_learned_variance_is_judged_and_sampled(
        self, tmp_path: Path, digits_8px: ShardSet
    ) -> None:
        folder = snapshot(tmp_path / "conditional", num_classes=10, learned_variance=True)
        evaluate(
            [str(folder)], digits_8px.path, samplers="iddpm", nfe="2", epsilon_scaling="1.017", samples=5,
            json=tmp_path / "record.json", cache=tmp_path / "cache", device="cpu",
        )  # fmt: skip
        (judgement,) = json.loads((tmp_path / "record.json").read_text())["models"].values()
        assert {"fd_efflite0_64/iddpm_2", "fd_efflite0_64/iddpm_es1.017_2"} <= set(judgement["figures"])
        sample(folder, tmp_path / "grid.png", sampler="iddpm_es1.017", nfe=2, count=4, device="cpu")
        assert (tmp_path / "grid.png").is_file()


class TestFigure:
    def cells(self, *values: float) -> list[Cell]:
        return [Cell("model", Sampler(nfe=nfe), {"kid": value}, 0) for nfe, value in enumerate(values, start=1)]

    def test_a_panel_a_sampler_and_a_line_a_model(self) -> None:
        cells = [
            Cell(model, Sampler.named(label, nfe=nfe), {"fid": nfe}, 0)
            for model in ("plain", "at", "random")
            for label in ("ddim", "iddpm", "iddpm_es1.017", "dpmpp_2m", "ancestral")
            for nfe in (5, 10)
        ]
        panels = nfe_figure(cells, "fid", label="FID", title="").axes
        assert [panel.get_title() for panel in panels] == ["ddim", "iddpm", "iddpm_es1.017", "dpmpp_2m", "ancestral"]
        assert all(len(panel.get_lines()) == 3 for panel in panels)
        assert panels[0].get_lines()[0].get_xydata().tolist() == [[5, 5], [10, 10]]
        assert {panel.get_xscale() for panel in panels} == {panel.get_yscale() for panel in panels} == {"log"}

    def test_values_below_zero_are_left_out_and_counted(self) -> None:
        figure = nfe_figure(self.cells(1.0, -0.1, 0.5), "kid", label="KID", title="KID")
        assert figure.axes[0].get_lines()[0].get_xdata().tolist() == [1, 3]
        assert figure.get_suptitle() == "KID (1 of 3 values are not above zero and left out)"

    def test_nothing_above_zero_is_refused(self) -> None:
        with pytest.raises(ValueError, match="no kid is above zero"):
            nfe_figure(self.cells(-0.1), "kid", label="KID", title="KID")
