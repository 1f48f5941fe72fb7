import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from synthetic_sweep import SyntheticSweep, Truth, write_sweep

from atdiff_core.laws import LawRefused, PowerLaw
from pipeline.noise import study_noise
from pipeline.report.comparisons import pooled
from pipeline.report.page import write_figures, write_report
from pipeline.report.response_figure import response_figure
from pipeline.report.summary import law_json, law_metrics, print_summary
from pipeline.report.wording import certainties, lessons_sentence, noise_sentence
from pipeline.results import Comparison, SweepResult, load_result
from pipeline.workspace import Workspace
from search_spaces.demo import space as demo
from search_spaces.demo_norms import space as demo_norms
from search_spaces.domains import choice

TRUTH = Truth()
COMMAND = "atdiff sweep search_spaces/demo.py"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return write_sweep(tmp_path_factory.mktemp("finished"), TRUTH)


@pytest.fixture(scope="module")
def result(finished: Workspace) -> SweepResult:
    return load_result(finished)


@pytest.fixture(scope="module")
def page(finished: Workspace, result: SweepResult) -> str:
    return write_report(result, finished, command=COMMAND).read_text()


@pytest.fixture(scope="module")
def flat(tmp_path_factory: pytest.TempPathFactory) -> Workspace:
    return write_sweep(tmp_path_factory.mktemp("flat"), Truth(depth=0.0, noise=0.02))


def test_the_known_optimum_lies_in_every_interval(result: SweepResult) -> None:
    for study in result.studies:
        assert study.response is not None
        best = study.response.optimum
        assert best.found
        assert best.low <= TRUTH.best_eta(study.dimension) <= best.high


def test_the_known_exponent_and_prediction_lie_in_their_intervals(result: SweepResult) -> None:
    law = result.law
    assert isinstance(law, PowerLaw)
    assert law.exponent == pytest.approx(TRUTH.exponent, abs=0.1)
    assert law.exponent_low <= TRUTH.exponent <= law.exponent_high
    at = law.predict(result.space.dimension(result.space.predict_at))
    assert at.low <= TRUTH.best_eta(round(at.scale)) <= at.high


def test_the_page_shows_headline_resolutions_and_every_trial(page: str, result: SweepResult) -> None:
    assert "The best strength in l∞, the leading one of 3 norms, follows η* ∝ D^b" in page
    assert COMMAND in page
    for study in result.studies:
        assert f'id="px{study.resolution}"' in page
    for trial in result.trials:
        assert trial.key[:12] in page


def test_every_norm_has_its_own_law(page: str, result: SweepResult) -> None:
    assert list(result.in_other_norms) == ["l2", "l1"]
    assert "There is no law in l2, one of 3 norms, and so no prediction" in page
    told = law_json(result)
    assert told["norm"] == "linf"
    assert [each["law"] for each in told["other_norms"].values()] == [None, None]
    assert "0 judged trials" in told["other_norms"]["l1"]["studies"][0]["reason"]
    with pytest.raises(ValueError, match="searches l2, got norm 'l1'"):
        SweepResult(demo.but(domains=demo.domains.but(norm=choice("l2"))), ()).in_norm("l1")


def test_the_page_needs_nothing_from_outside(page: str) -> None:
    assert "<script" not in page
    assert "@import" not in page
    references = re.findall(r"""(?:\bsrc|\bhref|\bdata|\bsrcset)\s*=\s*["']([^"']*)|url\(([^)]*)\)""", page)
    assert references
    for quoted, in_url in references:
        assert (quoted or in_url).strip("\"'").startswith(("#", "data:image/png;base64,"))


def test_every_id_on_the_page_is_given_once(page: str) -> None:
    ids = re.findall(r'\bid="([^"]+)"', page)
    assert len(ids) == len(set(ids))


def test_figures_keep_their_text_as_text(page: str) -> None:
    assert re.search(r"<text[^>]*>strength η", page)


def test_foreign_text_is_escaped(tmp_path: Path) -> None:
    nasty = "<img src=x onerror=alert(1)>&"
    workspace = write_sweep(tmp_path, shards=nasty)
    result = load_result(workspace)
    first = result.studies[0]
    assert first.response is not None
    reason = replace(first.response, optimum=replace(first.response.optimum, verdict="flat", reason=nasty))
    first.__dict__["response"] = reason
    page = write_report(result, workspace, command=f"atdiff sweep {nasty}").read_text()
    assert "<img src=x" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;&amp;") >= 3


def test_a_flat_sweep_has_no_law_and_says_so_first(flat: Workspace) -> None:
    result = load_result(flat)
    assert isinstance(result.law, LawRefused)
    page = write_report(result, flat, command=COMMAND).read_text()
    headline = page[page.index('<header id="headline">') : page.index("</header>")]
    assert "There is no law" in headline
    assert "No optimum could be told apart from the replay control at any resolution" in headline
    assert 'class="headline found"' not in page
    assert "predicted, not searched" not in page
    assert law_metrics(result) == {}


def test_an_unfinished_sweep_is_shown_as_such(tmp_path: Path) -> None:
    sweep = SyntheticSweep(tmp_path, TRUTH, demo.but(name="unfinished"))
    sweep.write_running(8, count=3)
    result = load_result(sweep.workspace)
    page = write_report(result, sweep.workspace, command=COMMAND).read_text()
    assert "This sweep is not finished: 3 trials have not ended; no study yet at 12 px, 16 px" in page
    assert all(trial.key[:12] in page for trial in result.trials)


def test_a_claimed_sweep_without_trials_has_a_page(tmp_path: Path) -> None:
    sweep = SyntheticSweep(tmp_path, TRUTH, demo.but(name="claimed"))
    page = write_report(load_result(sweep.workspace), sweep.workspace, command=COMMAND).read_text()
    assert "No resolution has been searched yet." in page


def test_a_single_seed_is_called_a_single_seed(tmp_path: Path) -> None:
    replication = demo.replication.but(seeds=1)
    workspace = write_sweep(tmp_path, ladder=(8,), replication=replication)
    page = write_report(load_result(workspace), workspace, command=COMMAND).read_text()
    assert "a single seed, no interval" in page
    assert "nan" not in re.sub(r"base64,[^\"]*", "", page).lower()


def test_blow_ups_leave_the_interesting_part_in_view(tmp_path: Path) -> None:
    workspace = write_sweep(tmp_path, Truth(depth=0.1, width=0.6), ladder=(8,))
    (study,) = load_result(workspace).studies
    effects = [one.effect for one in study.observations]
    assert max(effects) > 1
    (axes,) = response_figure(study).axes
    bottom, top = axes.get_ylim()
    assert bottom < 100 * min(effects)
    assert top < 100


def test_figures_are_pictures(finished: Workspace, result: SweepResult) -> None:
    files = write_figures(result, finished)
    kinds = [f"{kind}_{size}px.png" for size in result.space.ladder for kind in ("response", "nfe", "attack")]
    assert [file.name for file in files] == ["law.png", *kinds]
    for file in files:
        with Image.open(file) as picture:
            shades = picture.convert("L").getextrema()
        assert shades[0] < 64 < 250 < shades[1]


def test_a_norm_with_enough_trials_has_figures_of_its_own(tmp_path: Path) -> None:
    sweep = SyntheticSweep(tmp_path, TRUTH, demo.but(name="norms", trials=24, ladder=(8,), domains=demo_norms.domains))
    sweep.write_study(8)
    result = load_result(sweep.workspace)
    (other,) = (norm for norm, told in result.in_other_norms.items() if told.studies[0].response)
    names = [file.stem for file in write_figures(result, sweep.workspace)]
    own = [f"law_{other}", f"response_8px_{other}"]
    assert names == ["law", *(f"{kind}_8px" for kind in ("response", "nfe", "attack")), *own]
    assert f'id="law-{other}"' in write_report(result, sweep.workspace, command=COMMAND).read_text()


def test_law_json_is_json_and_agrees_with_the_metrics(result: SweepResult) -> None:
    content = json.loads(json.dumps(law_json(result), allow_nan=False))
    metrics = law_metrics(result)
    assert metrics["exponent_low"] < metrics["exponent"] < metrics["exponent_high"]
    assert content["law"]["exponent"] == metrics["exponent"]
    for study in content["studies"]:
        assert study["verdict"] == "optimum"
        assert metrics[f"eta_star_{study['resolution']}px"] == study["eta"]


@pytest.mark.parametrize("name", ["finished", "flat"])
def test_the_summary_names_every_resolution_and_the_law(name: str, request: pytest.FixtureRequest) -> None:
    result = load_result(request.getfixturevalue(name))
    console = Console(record=True, width=200)
    print_summary(result, console)
    text = console.export_text()
    assert all(f"{size} px" in text for size in result.space.ladder)
    assert ("it predicts η* =" in text) == isinstance(result.law, PowerLaw)
    assert ("Why there is no law" in text) == isinstance(result.law, LawRefused)


def test_the_headline_leaves_out_the_seed_that_chose_the_leaders(result: SweepResult) -> None:
    fresh, chosen = pooled(result, "replay"), pooled(result, "replay", fresh_seeds=False)
    assert fresh is not None
    assert chosen is not None
    assert fresh.seeds == len(result.studies) * (result.space.replication.seeds - 1)
    assert chosen.seeds == len(result.studies)
    assert chosen.effect != fresh.effect


def test_verdicts_that_are_read_together_are_adjusted_for_each_other() -> None:
    doubtful = Comparison(-0.1, 0.1 / 2.6, 10)  # p = 0.029 on its own
    (alone,) = certainties([doubtful])
    together = certainties([doubtful, replace(doubtful, effect=0.0), replace(doubtful, effect=0.01)])
    assert alone.endswith(": better")
    assert all(words.endswith(": not told apart") for words in together)


def test_the_noise_of_repeated_trials_is_told_by_its_sources(result: SweepResult) -> None:
    for study in result.studies:
        noise = study_noise(study)
        assert noise is not None
        assert noise.seeds == result.space.replication.seeds
        assert noise.residual_low <= TRUTH.noise <= noise.residual_high
        assert "seeds to be seen (power 80 %)" in noise_sentence(study)


def test_a_single_seed_says_nothing_about_noise(tmp_path: Path) -> None:
    workspace = write_sweep(tmp_path, ladder=(8,), replication=demo.replication.but(seeds=1))
    (study,) = load_result(workspace).studies
    assert study_noise(study) is None
    assert noise_sentence(study) == ""


def test_what_smaller_resolutions_taught_is_told_with_the_truth_in_it(result: SweepResult) -> None:
    assert "With the valley's shape learned from the smaller resolutions" in lessons_sentence(result)
    taught = law_json(result)["taught"]
    assert set(taught) == {f"{study.resolution}px" for study in result.studies[1:]}
    for study in result.studies[1:]:
        assert taught[f"{study.resolution}px"]["expected_low"] < TRUTH.best_eta(study.dimension)
