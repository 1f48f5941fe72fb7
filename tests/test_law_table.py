"""Laws of tables of optima: exact series come back, uncertainty counts, mistakes are named with their line."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from synthetic_sweep import Truth, write_sweep
from typer.testing import CliRunner

from atdiff_core.laws import LawRefused, PowerLaw
from pipeline.cli import app
from pipeline.law_table import table_laws
from pipeline.quantities import known_quantity, known_scale, law_of
from pipeline.report.law_text import print_laws, write_laws
from pipeline.results import SweepResult, load_result


def table(folder: Path, text: str) -> Path:
    file = folder / "optima.csv"
    file.write_text(text)
    return file


def fitted(path: Path) -> dict[str, PowerLaw]:
    return {each.series: each.law for each in table_laws(path) if isinstance(each.law, PowerLaw)}


def test_every_series_of_an_exact_table_gives_its_exponent(tmp_path: Path) -> None:
    rows = [f"{scale},{2 * scale**p},{name}" for name, p in (("l2", 0.5), ("linf", 0.0)) for scale in (64, 256, 1024)]
    laws = fitted(table(tmp_path, "\n".join(["scale,optimum,series", *rows])))
    assert laws["l2"].exponent == pytest.approx(0.5)
    assert laws["linf"].exponent == pytest.approx(0.0, abs=1e-9)
    assert laws["l2"].predict(4096).value == pytest.approx(128)


def test_a_given_interval_and_its_log_std_are_the_same_law(tmp_path: Path) -> None:
    std = 0.3
    wide = [
        f"{s},{v},{v * math.exp(-1.959964 * std)},{v * math.exp(1.959964 * std)}" for s, v in ((1, 1), (4, 2), (16, 3))
    ]
    (by_interval,) = fitted(table(tmp_path, "\n".join(["scale,optimum,low,high", *wide]))).values()
    (by_std,) = fitted(table(tmp_path, f"scale,optimum,log_std\n1,1,{std}\n4,2,{std}\n16,3,{std}\n")).values()
    (exact,) = fitted(table(tmp_path, "scale,optimum\n1,1\n4,2\n16,3\n")).values()
    assert by_interval.exponent_low == pytest.approx(by_std.exponent_low, rel=1e-4)
    assert by_std.exponent_high - by_std.exponent_low > 1.2 * (exact.exponent_high - exact.exponent_low)


def test_the_p_value_and_the_interval_agree_about_a_null_exponent(tmp_path: Path) -> None:
    rows = "\n".join(f"{4**k},{4 ** (0.5 * k)},0.05" for k in range(5))
    (law,) = fitted(table(tmp_path, f"scale,optimum,log_std\n{rows}\n")).values()
    for exponent in np.linspace(0, 1, 41):
        assert law.rejects(float(exponent)) == (law.p_value(float(exponent)) < 0.05)
    assert law.p_value(0.5) > 0.5
    assert law.p_value(1.0, norm="l2") > 0.5


def test_two_optima_carry_no_law_and_the_others_still_do(tmp_path: Path) -> None:
    rows = ["1,1,a", "4,2,a", "1,1,b", "4,2,b", "16,4,b"]
    laws = {each.series: each.law for each in table_laws(table(tmp_path, "\n".join(["scale,optimum,series", *rows])))}
    assert isinstance(laws["a"], LawRefused)
    assert isinstance(laws["b"], PowerLaw)
    file = tmp_path / "laws.json"
    write_laws(laws, [64], file)
    written = json.loads(file.read_text())
    assert "needs an optimum at 3 rungs" in written["a"]["refusal"]
    assert written["b"]["predictions"][0]["value"] == pytest.approx(8)
    console = Console(record=True, width=160)
    print_laws(laws, [64], console)
    said = console.export_text()
    assert "a: no law." in said
    assert "b = 0.50" in said


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("size,optimum\n1,1\n", "lacks the column scale; columns: scale, optimum"),
        ("scale,optimum\n", "has no rows below its heading"),
        ("scale,optimum\n1,1\n2,-1\n", "line 3: optimum must be a number > 0, got -1"),
        ("scale,optimum\n1,one\n", "line 2: optimum must be a number > 0, got 'one'"),
        ("scale,optimum,low,high\n1,5,1,2\n", r"line 2: needs low <= optimum <= high, got 1\.0, 5\.0 and 2\.0"),
        ("scale,optimum,low,high\n1,5,,9\n", "line 2: low must be a number > 0, got ''"),
        ("scale,optimum\n1,1\n1,2\n4,4\n", "each scale may appear once, got 1, 1, 4"),
    ],
)
def test_a_mistake_in_a_table_is_named_with_its_place(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        table_laws(table(tmp_path, text))


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return load_result(write_sweep(tmp_path_factory.mktemp("sweep"), Truth(noise=0.001)))


def test_against_the_side_of_the_image_the_exponent_doubles(result: SweepResult) -> None:
    by_side, by_elements = law_of(result, "eta", "resolution"), law_of(result, "eta", "dimension")
    assert isinstance(by_side, PowerLaw)
    assert isinstance(by_elements, PowerLaw)
    assert by_side.exponent == pytest.approx(2 * by_elements.exponent, abs=0.02)


def test_a_quantity_of_three_values_or_an_unknown_one_is_refused(result: SweepResult) -> None:
    with pytest.raises(ValueError, match=r"no response to replays can be fitted; .* 4 different eta or more"):
        law_of(result, "replays", "dimension")
    with pytest.raises(ValueError, match="laws of eta, alpha, replays, reach, got 'beta'"):
        known_quantity("beta")
    with pytest.raises(ValueError, match="along dimension or resolution, got 'width'"):
        known_scale("width")


def test_the_command_prints_the_law_of_a_table_and_writes_it(tmp_path: Path) -> None:
    file = table(tmp_path, "scale,optimum\n1,1\n4,2\n16,4\n")
    done = CliRunner().invoke(app, ["law", str(file), "--predict", "64", "--json", str(tmp_path / "law.json")])
    assert done.exit_code == 0, done.output
    assert "optimum ∝ scale^b, b = 0.50" in done.output
    assert json.loads((tmp_path / "law.json").read_text())[""]["predictions"][0]["value"] == pytest.approx(8)


def test_a_folder_without_a_sweep_is_said_to_be_none(tmp_path: Path) -> None:
    for command in ("law", "analyse"):
        done = CliRunner().invoke(app, [command, str(tmp_path)])
        assert isinstance(done.exception, ValueError)
        assert "there is no sweep in" in str(done.exception)
