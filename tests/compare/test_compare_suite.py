"""Suites: what a file says becomes trunks, and a mistake in it costs one sentence."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from compare_fakes import TINY, suite

from trainenv.compare import load_suite
from trainenv.compare.results import is_static
from trainenv.compare.suite import suites
from trainenv.compare.trunks import Trunk
from trainenv.composition.methods import METHODS
from trainenv.types import UserError

CALM = {"group": "calm", "size": "tiny", "corpus": "bytes"}


def test_a_trunk_is_the_preset_with_what_is_said_on_top() -> None:
    high, bursts = suite().trunks[2], suite(overrides={"validation": {"every": 7}}).trunks[3]
    assert high.config(0).optimizer.lr == pytest.approx(10 * 0.192 / 8)
    assert high.config(0).model.width == 8
    assert high.config(0).threads == 1
    assert high.config(0).clip.policy == "zclip"
    assert bursts.config(0).stressors.rare_tokens == 0.5
    assert bursts.config(0).validation.every == 7
    assert bursts.config(3).model_copy(update={"seed": bursts.config(4).seed}) == bursts.config(4)


def test_seeds_differ_between_trunks_and_runs_and_are_always_the_same() -> None:
    seeds = {(trunk.name, seed): trunk.config(seed).seed for trunk in suite().trunks for seed in range(5)}
    assert len(set(seeds.values())) == 20
    assert load_suite("quick").trunks[0].config(0).seed == 216733617647604496 >> 32
    assert all(0 <= seed < 2**31 for seed in seeds.values())
    assert Trunk(name="calm", group="calm", size=TINY).config(0).seed == seeds["calm", 0]


def test_a_learning_rate_of_its_own_is_taken_as_it_is() -> None:
    trunk = Trunk(name="t", group="calm", size=TINY, overrides={"optimizer": {"lr": 0.5}}, lr_factor=3)
    assert trunk.config(0).optimizer.lr == 0.5
    with_betas = Trunk(name="t", group="calm", size=TINY, overrides={"optimizer": {"betas": [0.9, 0.999]}})
    assert with_betas.config(0).optimizer.lr == pytest.approx(0.024)


@pytest.mark.parametrize("name", suites())
def test_what_is_shipped(name: str) -> None:
    """Each kind of trunk that a comparison is to have; within the time that it is to take."""
    of = load_suite(name)
    assert {trunk.group for trunk in of.trunks} == {"calm", "stressed"}
    configs = {trunk.name: trunk.config(0) for trunk in of.trunks}
    assert {"nothing", "branching"} <= set(of.methods)
    assert all(name in METHODS and is_static(name) for name in of.hindsight)
    factors = {trunk.lr_factor for trunk in of.trunks}
    assert {3, 10} <= factors
    assert min(factors) < 0.4
    kinds = {plant.kind for config in configs.values() for plant in config.stressors.planted}
    assert {"lost_moments", "random_tokens", "lr_spike"} <= kinds
    assert any(config.clip.policy == "none" and config.stressors.rare_tokens for config in configs.values())
    for rate in ("rare_tokens", "long_sequence", "artefacts", "block_shuffle", "harsh_warmup_steps"):
        assert any(getattr(config.stressors, rate) for config in configs.values())
    assert len({config.model.width for config in configs.values()}) == 2
    assert len({config.corpus.tokenizer for config in configs.values()}) == 2
    for trunk in of.trunks:
        config = configs[trunk.name]
        assert config.validation.sequences == 32
        assert config.model.context in (32, 64)
        assert 1 < trunk.seconds < 10
        assert all(plant.at + plant.steps < config.steps for plant in config.stressors.planted)
        if trunk.group == "calm":
            assert trunk.lr_factor == 1
            assert config.clip.policy == "zclip"
            assert config.stressors.model_dump() == type(config.stressors)().model_dump()
    seconds = len(of.played) * of.seeds * sum(trunk.seconds for trunk in of.trunks) / 2
    if name == "quick":
        assert seconds < 20 * 60 / 2  # methods take more than doing nothing does
    else:
        assert of.seeds >= 5
    json.dumps(of.to_json())


def test_one_s_own_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(
        "seeds: 1\nmethods: [nothing]\nsizes: {s: {steps: 5}}\ncorpora: {c: {name: stdlib}}\n"
        "trunks: {t: {group: calm, size: s, corpus: c}}\n"
    )
    of = load_suite(path)
    assert (of.name, of.played, of.trunks[0].config(0).steps) == ("mine", ("nothing",), 5)


def test_a_part_of_a_suite() -> None:
    of = suite(hindsight=["static-3", "zclip"])
    part = of.select(methods=["zclip", "nothing"], trunks=["high", "calm"], seeds=7)
    assert part.methods == ("zclip", "nothing")
    assert part.hindsight == ("static-3",)
    assert [trunk.name for trunk in part.trunks] == ["high", "calm"]
    assert part.seeds == 7
    assert of.select() == of


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"methds": []}, "fake: unknown key 'methds'; did you mean 'methods'"),
        ({"methods": "nothing"}, "fake: methods must be a list of names, found 'nothing'"),
        ({"methods": []}, "fake: a comparison needs methods, found none"),
        ({"methods": ["a", "b"], "hindsight": ["a"]}, "methods must differ, found 'a' twice"),
        ({"seeds": 0}, "seeds must be a whole number, at least 1, found 0"),
        ({"seeds": True}, "seeds must be a whole number, at least 1, found True"),
        ({"trunks": {}}, "a comparison needs trunks"),
        ({"trunks": {"t": 3}}, "fake: trunks.t must be a mapping of keys to values, found 3"),
        ({"trunks": {"t": {**CALM, "stresors": {}}}}, "trunk t: unknown key 'stresors'; did you mean 'stressors'"),
        ({"trunks": {"t": {"group": "calm", "corpus": "bytes"}}}, "trunk t: size is missing; name one of sizes: tiny"),
        ({"trunks": {"t": {**CALM, "size": "tine"}}}, "trunk t: unknown size 'tine'; did you mean 'tiny'"),
        ({"trunks": {"t": {"size": "tiny", "corpus": "bytes"}}}, "trunk t: group is missing"),
        ({"trunks": {"t": {**CALM, "group": "clam"}}}, "group must be one of calm, stressed, found 'clam'"),
        ({"trunks": {"t": {**CALM, "fault": "x"}}}, "expected no fault in a calm trunk, found 'x'"),
        ({"trunks": {"t": {**CALM, "group": "stressed"}}}, "expected a fault, in a word or two, in a stressed trunk"),
        ({"trunks": {"a/b": CALM}}, "a trunk's name must be letters"),
        (
            {"trunks": {"t": {**CALM, "stressors": {"rare_token": 1}}}},
            "trunk t: unknown key 'stressors.rare_token'; did you mean",
        ),
        ({"trunks": {"t": {**CALM, "overrides": {"step": 1}}}}, "trunk t: unknown key 'step'; did you mean 'steps'"),
        ({"trunks": {"t": {**CALM, "lr_factor": 0}}}, "trunk t: lr_factor must be a number above 0, found 0"),
        ({"trunks": {"t": {**CALM, "lr_factor": "3x"}}}, "trunk t: lr_factor must be a number above 0, found '3x'"),
        ({"trunks": {"t": {**CALM, "stressors": 3}}}, "trunk t: stressors must be a mapping"),
        ({"sizes": {"tiny": 3}}, "trunk calm: size must be a mapping"),
        ({"sizes": 3}, "fake: sizes must be a mapping"),
    ],
)
def test_a_mistake_costs_one_sentence(values: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as error:
        suite(**values)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_unknown_suites_and_trunks_name_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="unknown suite 'quik'; did you mean 'quick'"):
        load_suite("quik")
    with pytest.raises(UserError, match=r"expected a YAML file at .*none\.yaml, found none"):
        load_suite(tmp_path / "none.yaml")
    with pytest.raises(UserError, match="unknown trunk 'cal'; did you mean 'calm'"):
        suite().select(trunks=["cal"])
