"""Importance, surfaces, Pareto sets and fits: known answers, and the pages of a whole sweep."""

import json
import math
import threading
import urllib.request
from pathlib import Path
from wsgiref.simple_server import WSGIRequestHandler, make_server

import numpy as np
import optuna
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from synthetic_sweep import Truth, write_sweep

from atdiff_core.response import Observation
from atdiff_core.surface import fit_surface
from pipeline.importance import importances, searched_params
from pipeline.report.analysis_page import analysed, print_analysis, write_analysis
from pipeline.results import SweepResult, load_result
from pipeline.trade_offs import fit_passes, outcomes, pareto
from search_spaces.demo import space as demo


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> SweepResult:
    return load_result(write_sweep(tmp_path_factory.mktemp("sweep"), Truth(noise=0.004), ladder=(8,)))


def test_the_name_that_makes_the_effect_is_the_important_one() -> None:
    rng = np.random.default_rng(0)
    rows = [
        ({"eta": float(eta), "reach": float(1 + number % 5), "norm": "l2"}, float(np.log(eta / 0.03) ** 2))
        for number, eta in enumerate(np.exp(rng.uniform(math.log(0.003), math.log(0.3), 40)))
    ]
    first, second = importances(rows)
    assert (first.name, second.name) == ("eta", "reach")
    assert first.share + second.share == pytest.approx(1)
    assert first.share > 0.8
    assert first.low <= first.share <= first.high
    assert importances(rows) == [first, second]


def test_a_few_trials_or_one_name_have_no_importance() -> None:
    rows = [({"eta": 0.01 * (n + 1), "reach": 1.0}, 0.1 * n) for n in range(20)]
    assert importances(rows) == []
    assert importances(rows[:4]) == []
    assert importances([]) == []


def test_a_surface_without_noise_goes_through_its_trials_and_is_known_where_they_are() -> None:
    places = [(eta, replays) for eta in np.geomspace(0.01, 0.4, 7) for replays in (2.0, 3.0, 5.0)]
    effects = [0.05 * math.log(eta / 0.06) ** 2 - 0.05 * math.log(k) for eta, k in places]
    seen = [Observation(float(eta), e, 0) for (eta, _), e in zip(places, effects, strict=True)]
    surface = fit_surface(seen, [k for _, k in places], columns=7, rows=3)
    assert surface.mean[[0, 2]].ravel() == pytest.approx([*effects[0::3], *effects[2::3]], abs=0.03)
    assert surface.known.min() > 0.3
    lowest = surface.etas[surface.mean.argmin(axis=1)]
    assert lowest == pytest.approx(np.full(3, 0.06), rel=0.7)


def test_a_surface_needs_trials_that_differ_in_both() -> None:
    seen = [Observation(0.01 * (n + 1), 0.0, 0) for n in range(9)]
    with pytest.raises(ValueError, match="got 9 with 9 and 1 values"):
        fit_surface(seen, [3.0] * 9)
    with pytest.raises(ValueError, match="8 trials or more that differ in both quantities, got 3"):
        fit_surface(seen[:3], [1.0, 2.0, 3.0])


@given(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5), st.integers(0, 5)), max_size=12))
def test_the_pareto_set_is_what_nothing_dominates(costs: list[tuple[int, int, int]]) -> None:
    kept = pareto(costs)
    assert len(kept) == len(costs)
    assert any(kept) or not costs
    for place, cost in enumerate(costs):
        dominated = any(all(a <= b for a, b in zip(other, cost, strict=True)) and other != cost for other in costs)
        assert kept[place] == (not dominated)


def test_every_network_is_judged_under_every_sampler_and_the_base_costs_no_passes(result: SweepResult) -> None:
    (study,) = result.studies
    found = outcomes(study)
    complete = [trial for trial in (study.base, *study.trials) if trial.status == "complete"]
    assert len(found) == len(complete) * len(study.base.assignment.config.evaluation.samplers)
    assert {each.kpass for each in found if each.role == "base"} == {0.0}
    assert min(found, key=lambda each: each.distance).best


def test_the_fit_against_passes_has_the_slope_between_rung_and_end(result: SweepResult) -> None:
    (study,) = result.studies
    controls = study.of_role("plain")
    fit = fit_passes("plain", controls)
    assert fit is not None
    rung, end = (np.mean([math.log(list(c.metric_at().values())[place]) for c in controls]) for place in (0, -1))
    passes = list(controls[0].metric_at())
    assert fit.slope == pytest.approx((end - rung) / math.log(passes[-1] / passes[0]), rel=1e-6)
    assert fit.slope_low < fit.slope < fit.slope_high
    middle, low, high = fit.band(passes[0])
    assert low < middle < high
    assert fit_passes("none", []) is None


def test_a_sweep_is_analysed_into_figures_a_page_and_json(result: SweepResult, tmp_path: Path) -> None:
    analyses = analysed(result)
    written = write_analysis(result, analyses, tmp_path)
    names = {file.name for file in written}
    assert {"importance_8px.png", "parallel_8px.png", "pareto_8px.png", "passes_8px.png"} <= names
    assert any(name.startswith("contour_reach_linf") for name in names)
    assert all(file.stat().st_size > 0 for file in written)
    content = json.loads((tmp_path / "analysis.json").read_text())
    assert content["8px"]["importance"][0]["name"] in {"eta", "alpha"}
    page = (tmp_path / "analysis.html").read_text()
    assert 'src="http' not in page
    assert page.count("8 px: contours") == 1
    console = Console(record=True, width=200)
    print_analysis(analyses, console)
    assert "Pareto set of distance, NFE and passes" in console.export_text()


def test_a_sweep_without_judged_trials_is_not_analysed() -> None:
    with pytest.raises(ValueError, match="no search trial of this sweep has been judged"):
        analysed(SweepResult(demo, ()))


class Silent(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:
        pass


def test_optunas_dashboard_shows_the_trials_as_they_are(result: SweepResult, tmp_path: Path) -> None:
    dashboard = pytest.importorskip("optuna_dashboard")
    url = f"sqlite:///{tmp_path / 'study.db'}"
    (study,) = result.studies
    kept = optuna.create_study(storage=url, study_name="demo/8px", direction="minimize")
    rows = searched_params(study)
    for params, effect in rows:
        trial = kept.ask({"eta": optuna.distributions.FloatDistribution(1e-4, 1.0, log=True)})
        trial.set_user_attr("role", f"search {params['norm']}")
        kept.tell(trial, effect)
    server = make_server("127.0.0.1", 0, dashboard.wsgi(url), handler_class=Silent)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        root = f"http://127.0.0.1:{server.server_port}"
        with urllib.request.urlopen(f"{root}/api/studies", timeout=60) as answer:
            (summary,) = json.load(answer)["study_summaries"]
        with urllib.request.urlopen(f"{root}/api/studies/{summary['study_id']}", timeout=60) as answer:
            shown = json.load(answer)
    finally:
        server.shutdown()
    assert summary["study_name"] == "demo/8px"
    assert [trial["values"][0] for trial in shown["trials"]] == [effect for _, effect in rows]
