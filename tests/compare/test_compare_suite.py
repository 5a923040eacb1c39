"""Suites: what a file says becomes scenarios, and a mistake in it costs one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tests.support.compare_fakes import TINY, suite
from trainenv.compare import load_suite
from trainenv.compare.results import is_static
from trainenv.compare.scenarios import Scenario
from trainenv.composition.methods import METHODS
from trainenv.types import UserError

CALM = {"group": "calm", "size": "tiny", "corpus": "bytes"}


def test_a_scenario_is_the_preset_with_what_is_said_on_top() -> None:
    high, bursts = suite().scenarios[2], suite(overrides={"validation": {"every": 7}}).scenarios[3]
    assert high.config(0).optimizer.lr == pytest.approx(10 * 0.192 / 8)
    assert high.config(0).model.width == 8
    assert high.config(0).threads == 1
    assert high.config(0).clip.policy == "zclip"
    assert bursts.config(0).stressors.rare_tokens == 0.5
    assert bursts.config(0).validation.every == 7
    assert bursts.config(3).model_copy(update={"seed": bursts.config(4).seed}) == bursts.config(4)


def test_seeds_differ_between_scenarios_and_runs_and_are_always_the_same() -> None:
    seeds = {
        (scenario.name, seed): scenario.config(seed).seed
        for scenario in suite().scenarios
        for seed in range(5)
    }
    assert len(set(seeds.values())) == 20
    assert load_suite("quick").scenarios[0].config(0).seed == 216733617647604496 >> 32
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert Scenario(name="calm", group="calm", size=TINY).config(0).seed == seeds["calm", 0]


def test_a_learning_rate_of_its_own_is_taken_as_it_is() -> None:
    scenario = Scenario(name="t", group="calm", size=TINY, overrides={"optimizer": {"lr": 0.5}})
    assert scenario.config(0).optimizer.lr == 0.5
    with_betas = Scenario(
        name="t", group="calm", size=TINY, overrides={"optimizer": {"betas": [0.9, 0.999]}}
    )
    assert with_betas.config(0).optimizer.lr == pytest.approx(0.024)


def test_the_suite_of_controllers_is_of_tuned_misset_and_faulty_runs() -> None:
    of = load_suite("headroom")
    assert len(of.scenarios) >= 10
    assert of.seeds == 5
    kinds = [scenario.kind for scenario in of.scenarios]
    assert {kind: kinds.count(kind) for kind in set(kinds)} == {
        "calm": 2, "short-warmup": 2, "mis-set": 3, "faults": 3,
    }  # fmt: skip
    controls = {"nothing", "blind", "ramp-up", "ramp-down", "hypergradient", "marthe", "pbt"}
    assert controls <= set(of.methods)
    assert all(name in METHODS for name in (*of.methods, *of.open_loop))
    assert len(of.open_loop) >= 12
    grid = json.loads(
        (Path(__file__).parents[2] / "benchmarks/results/calm.json").read_text(encoding="utf-8")
    )
    for name, row in (("tuned", "calm"), ("tuned-subwords", "calm-subwords")):
        config = next(one for one in of.scenarios if one.name == name).config(0)
        best = grid[row]["best"]
        assert config.optimizer.lr == pytest.approx(best["lr"], rel=1e-3)
        assert (config.schedule.warmup, config.schedule.final) == (best["warmup"], best["final"])
    for scenario in of.scenarios:
        config = scenario.config(0)
        assert scenario.measured_on == "test"
        assert config.validation.test_sequences * config.model.context >= 64_000


@pytest.mark.parametrize("name", ["full", "quick"])
def test_what_is_shipped(name: str) -> None:
    """Each kind of scenario that a comparison is to have; within the time that it is to take."""
    of = load_suite(name)
    assert {scenario.group for scenario in of.scenarios} == {"calm", "stressed"}
    configs = {scenario.name: scenario.config(0) for scenario in of.scenarios}
    assert {"nothing", "branching"} <= set(of.methods)
    assert all(name in METHODS and is_static(name) for name in of.hindsight)
    assert of.open_loop
    assert all(name in METHODS for name in of.open_loop)
    assert {"mis-set", "faults"} <= {scenario.kind for scenario in of.scenarios}
    factors = {scenario.lr_factor for scenario in of.scenarios}
    assert {3, 10} <= factors
    assert min(factors) < 0.4
    kinds = {plant.kind for config in configs.values() for plant in config.stressors.planted}
    assert {"lost_moments", "random_tokens", "lr_spike"} <= kinds
    assert any(
        config.clip.policy == "none" and config.stressors.rare_tokens for config in configs.values()
    )
    for rate in (
        "rare_tokens",
        "long_sequence",
        "artefacts",
        "block_shuffle",
        "harsh_warmup_steps",
    ):
        assert any(getattr(config.stressors, rate) for config in configs.values())
    assert len({config.model.width for config in configs.values()}) == 2
    assert len({config.corpus.tokenizer for config in configs.values()}) == 2
    for scenario in of.scenarios:
        config = configs[scenario.name]
        assert config.validation.sequences == 32
        assert scenario.measured_on == "test"
        assert config.validation.test_sequences * config.model.context >= 64_000
        assert scenario.kind
        assert config.model.context in (32, 64)
        assert 1 < scenario.seconds < 10
        assert all(plant.at + plant.steps < config.steps for plant in config.stressors.planted)
        if scenario.group == "calm":
            assert scenario.lr_factor == 1
            assert config.clip.policy == "zclip"
            assert config.stressors.model_dump() == type(config.stressors)().model_dump()
    seconds = len(of.played) * of.seeds * sum(scenario.seconds for scenario in of.scenarios) / 2
    if name == "quick":
        assert seconds < 20 * 60 / 2  # methods take more than doing nothing does
    else:
        assert of.seeds >= 5
    json.dumps(of.to_json())


def test_one_s_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seeds: 1\nmethods: [nothing]\nsizes: {s: {steps: 5}}\ncorpora: {c: {name: stdlib}}\n"
        "scenarios: {t: {group: calm, size: s, corpus: c}}\n"
    )
    of = load_suite(path)
    assert (of.name, of.played, of.scenarios[0].config(0).steps) == ("mine", ("nothing",), 5)


def test_a_part_of_a_suite() -> None:
    of = suite(hindsight=["static-3", "zclip"])
    part = of.select(methods=["zclip", "nothing"], scenarios=["high", "calm"], seeds=7)
    assert part.methods == ("zclip", "nothing")
    assert part.hindsight == ("static-3",)
    assert [scenario.name for scenario in part.scenarios] == ["high", "calm"]
    assert part.seeds == 7
    assert of.select() == of


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methds": []}, "fake: unknown key 'methds'; did you mean 'methods'"),
        ({"methods": "nothing"}, "fake: methods must be a list of names, found 'nothing'"),
        ({"methods": []}, "fake: a comparison needs methods, found none"),
        ({"methods": ["a", "b"], "hindsight": ["a"]}, "methods must differ, found 'a' twice"),
        ({"open_loop": ["a", "a"]}, "open_loop must differ, found 'a' twice"),
        ({"open_loop": "a"}, "fake: open_loop must be a list of names, found 'a'"),
        (
            {"scenarios": {"t": {**CALM, "kind": "misset"}}},
            "kind must be one of calm, short-warmup, mis-set, faults, or left out, found 'misset'",
        ),
        ({"seeds": 0}, "seeds must be a whole number, at least 1, found 0"),
        ({"seeds": True}, "seeds must be a whole number, at least 1, found True"),
        ({"scenarios": {}}, "a comparison needs scenarios"),
        ({"scenarios": {"t": 3}}, "fake: scenarios.t must be a mapping of keys to values, found 3"),
        (
            {"scenarios": {"t": {**CALM, "stresors": {}}}},
            "scenario t: unknown key 'stresors'; did you mean 'stressors'",
        ),
        (
            {"scenarios": {"t": {"group": "calm", "corpus": "bytes"}}},
            "scenario t: size is missing; name one of sizes: tiny",
        ),
        (
            {"scenarios": {"t": {**CALM, "size": "tine"}}},
            "scenario t: unknown size 'tine'; did you mean 'tiny'",
        ),
        ({"scenarios": {"t": {"size": "tiny", "corpus": "bytes"}}}, "scenario t: group is missing"),
        (
            {"scenarios": {"t": {**CALM, "group": "clam"}}},
            "group must be one of calm, stressed, found 'clam'",
        ),
        (
            {"scenarios": {"t": {**CALM, "fault": "x"}}},
            "expected no fault in a calm scenario, found 'x'",
        ),
        (
            {"scenarios": {"t": {**CALM, "group": "stressed"}}},
            "expected a fault, in a word or two, in a stressed scenario",
        ),
        ({"scenarios": {"a/b": CALM}}, "a scenario's name must be letters"),
        (
            {"scenarios": {"t": {**CALM, "stressors": {"rare_token": 1}}}},
            "scenario t: unknown key 'stressors.rare_token'; did you mean",
        ),
        (
            {"scenarios": {"t": {**CALM, "overrides": {"step": 1}}}},
            "scenario t: unknown key 'step'; did you mean 'steps'",
        ),
        (
            {"scenarios": {"t": {**CALM, "lr_factor": 0}}},
            "scenario t: lr_factor must be a number above 0, found 0",
        ),
        (
            {"scenarios": {"t": {**CALM, "lr_factor": "3x"}}},
            "scenario t: lr_factor must be a number above 0, found '3x'",
        ),
        (
            {
                "sizes": {"tiny": {"optimizer": {"lr": 0.5}}},
                "scenarios": {"t": {**CALM, "lr_factor": 3}},
            },
            "scenario t: expected lr_factor or optimizer.lr, found both, 3 and 0.5; leave one out",
        ),
        ({"scenarios": {"t": {**CALM, "stressors": 3}}}, "scenario t: stressors must be a mapping"),
        ({"sizes": {"tiny": 3}}, "scenario calm: size must be a mapping"),
        ({"sizes": 3}, "fake: sizes must be a mapping"),
    ],
)
def test_a_mistake_costs_one_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        suite(**values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_suites_and_scenarios_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown suite 'quik'; did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(UserError, match=r"expected a YAML file at .*none\.yaml, found none"):
        load_suite(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="unknown scenario 'cal'; did you mean 'calm'"):
        suite().select(scenarios=["cal"])


def test_scenarios_may_still_be_called_trunks_for_one_version(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    text = "seeds: 1\nmethods: [nothing]\nsizes: {s: {steps: 5}}\ncorpora: {c: {name: stdlib}}\nscenarios: {t: {group: calm, size: s, corpus: c}}\n"
    path.write_text(text)
    now = load_suite(path)
    path.write_text(text.replace("scenarios:", "trunks:"))
    with pytest.warns(FutureWarning, match="mine: the key trunks is now called scenarios"):
        assert load_suite(path) == now
    path.write_text(text + "trunks: {}\n")
    with pytest.raises(UserError, match="expected scenarios alone, found trunks too"):
        load_suite(path)
