"""Configuration: what loads, what is refused, and that every refusal names the place and the remedy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from trainenv.checkpoints.store import CheckpointStore
from trainenv.config.presets import RENAMED_KEYS, configs_folder, find, merge, presets, read_yaml
from trainenv.config.schema import (
    BranchingConfig,
    CheckpointConfig,
    InterventionConfig,
    ModelConfig,
    RunConfig,
    UncertaintyConfig,
    validate,
)
from trainenv.models.build import parameter_count, positions
from trainenv.types import CLIP_NAMES, UserError

Write = Callable[..., Path]
WHOLE = """
steps: 10
batch_size: 4
model: {width: 8, layers: 1, heads: 2, context: 8}
optimizer: {lr: 1e-3}
"""


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Writes a YAML file and returns its path."""

    def write(text: str, name: str = "mine.yaml") -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
        return path

    return write


# ── presets ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_presets_are_the_shipped_files() -> None:
    assert {"tiny", "mini", "small", "medium", "large"} <= set(presets())
    assert not {"uncertainty", "state_schema_v1"} & set(presets())
    assert presets() == sorted(presets())
    assert all((configs_folder() / f"{name}.yaml").is_file() for name in presets())


@pytest.mark.parametrize("name", presets())
def test_preset_loads_and_fits_its_own_model(name: str) -> None:
    config = RunConfig.load(name)
    assert config.name == name
    assert config.model.width % config.model.heads == 0
    assert positions(config) >= config.model.context
    assert config.schedule.warmup < config.steps
    assert config.batch_size % config.accumulation == 0
    assert RunConfig.load(configs_folder() / f"{name}.yaml") == config


@pytest.mark.parametrize("name", ["tiny", "mini", "small", "medium"])
def test_preset_can_train_on_long_sequences(name: str) -> None:
    assert RunConfig.load(name, {"stressors.long_sequence": 0.01}).stressors.lengthens


@pytest.mark.parametrize(
    ("name", "vocabulary", "millions"),
    [
        ("tiny", 256, 0.12),
        ("mini", 256, 3.2),
        ("small", 50257, 124),
        ("medium", 50257, 355),
        ("large", 50257, 774),
    ],
)
def test_preset_is_as_large_as_its_comment_says(
    name: str, vocabulary: int, millions: float
) -> None:
    assert f"{millions:g}" in find(name).read_text(encoding="utf-8").splitlines()[0]
    assert parameter_count(RunConfig.load(name), vocabulary) / 1e6 == pytest.approx(
        millions, rel=0.02
    )


def test_presets_on_the_corpora_they_name() -> None:
    named = {
        name: RunConfig.load(name).corpus.name
        for name in ("tiny", "mini", "small", "medium", "large")
    }
    assert named == {
        "tiny": "stdlib",
        "mini": "stdlib",
        "small": "wikitext-103",
        "medium": "wikitext-103",
        "large": "c4",
    }


def test_presets_save_as_often_as_they_are_long() -> None:
    """Every 1000 steps of a run of full length, exact where the files are small."""
    saves = {
        name: RunConfig.load(name).checkpoints
        for name in ("demo", "tiny", "mini", "small", "medium", "large")
    }
    assert {name: (save.every, save.moments) for name, save in saves.items()} == {
        "demo": (50, "exact"),
        "tiny": (50, "exact"),
        "mini": (50, "8bit"),
        "small": (1000, "8bit"),
        "medium": (1000, "8bit"),
        "large": (1000, "8bit"),
    }
    assert {(save.keep_last, save.max_bytes, save.on_error) for save in saves.values()} == {
        (8, None, "raise")
    }


def test_checkpoints_as_the_store_takes_them(tmp_path: Path) -> None:
    """One name a setting, from the YAML file to the store; and the same defaults."""
    made, default = (
        CheckpointStore(tmp_path, **CheckpointConfig().model_dump()),
        CheckpointStore(tmp_path),
    )
    for name in CheckpointConfig.model_fields:
        assert getattr(made, name) == getattr(default, name)
    chosen = CheckpointConfig(every=7, keep_last=2, moments="exact", max_bytes=5, on_error="warn")
    assert CheckpointStore(tmp_path, **chosen.model_dump()).max_bytes == 5


def test_uncertainty_holds_the_decided_numbers() -> None:
    config = validate(UncertaintyConfig, read_yaml(find("uncertainty")), "uncertainty")
    assert (config.window, config.decay) == (512, 0.98)
    assert config.weights == {"volatility": 0.5, "entropy": 0.3, "disagreement": 0.2}
    assert (config.threshold, config.consecutive, config.single) == (2.5, 3, 3.2)
    assert RunConfig.load("tiny").monitor.uncertainty == config


# ── what a configuration may come from ──────────────────────────────────────────────────────────────────────────────


def test_whole_file(write: Write) -> None:
    config = RunConfig.load(write(WHOLE))
    assert (config.name, config.steps, config.batch_size, config.optimizer.lr) == (
        "mine",
        10,
        4,
        1e-3,
    )


def test_file_as_string_and_yml(write: Write) -> None:
    path = write(WHOLE, "other.yml")
    assert RunConfig.load(str(path)) == RunConfig.load(path)


def test_configuration_is_itself() -> None:
    config = RunConfig.load("tiny")
    again = RunConfig.load(config)
    assert again == config


def test_written_out_configuration_loads_as_itself(write: Write) -> None:
    config = RunConfig.load(
        "tiny",
        {
            "name": "kept",
            "stressors.planted": [{"at": 3, "kind": "artefacts"}],
            "corpus": {"name": "text", "path": "a/b"},
        },
    )
    assert RunConfig.load(write(yaml.safe_dump(config.model_dump(mode="json")))) == config


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("3e-4", 3e-4),
        ("3E-4", 3e-4),
        ("1e3", 1e3),
        ("2.5e-4", 2.5e-4),
        ("1.e-2", 1e-2),
        (".5e+1", 5.0),
        ("+3e4", 3e4),
        ("0.5", 0.5),
    ],
)
def test_scientific_notation_is_a_number(write: Write, text: str, value: float) -> None:
    read = read_yaml(write(f"lr: {text}"))["lr"]
    assert isinstance(read, float)
    assert read == value


@pytest.mark.parametrize("text", ["e4", "3e", "1e-4x", "v1e5", "'3e-4'"])
def test_what_only_looks_scientific_stays_text(write: Write, text: str) -> None:
    assert isinstance(read_yaml(write(f"name: {text}"))["name"], str)


# ── extends ─────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_extends_a_preset_and_states_only_what_differs(write: Write) -> None:
    config, tiny = (
        RunConfig.load(write("extends: tiny\noptimizer: {weight_decay: 0.3}\nsteps: 7")),
        RunConfig.load("tiny"),
    )
    assert (config.name, config.steps, config.optimizer.weight_decay) == ("mine", 7, 0.3)
    assert config.optimizer.lr == tiny.optimizer.lr
    assert config.model == tiny.model


def test_extends_chain_nearest_wins(write: Write) -> None:
    write("extends: tiny\nsteps: 11\nseed: 1\nbatch_size: 2", "base.yaml")
    write("extends: base.yaml\nsteps: 12\nseed: 2", "middle.yaml")
    config = RunConfig.load(write("extends: middle.yaml\nsteps: 13", "top.yaml"))
    assert (config.name, config.steps, config.seed, config.batch_size) == ("top", 13, 2, 2)


def test_extends_is_relative_to_the_file(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("extends: tiny\nsteps: 21", "shared/base.yaml")
    top = write("extends: ../shared/base.yaml", "runs/top.yaml")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert RunConfig.load(top).steps == 21


def test_a_stated_name_is_inherited_over_by_the_file_name(write: Write) -> None:
    write("extends: tiny\nname: given", "base.yaml")
    assert RunConfig.load(write("extends: tiny\nname: given")).name == "given"
    assert RunConfig.load(write("extends: base.yaml", "top.yaml")).name == "top"


@pytest.mark.parametrize(
    "files", [{"a": "a"}, {"a": "b", "b": "a"}, {"a": "b", "b": "c", "c": "b"}]
)
def test_extends_in_a_circle(write: Write, files: dict[str, str]) -> None:
    paths = [write(f"extends: {base}.yaml", f"{name}.yaml") for name, base in files.items()]
    with pytest.raises(UserError, match=r"extends itself.*remove one `extends`"):
        RunConfig.load(paths[0])


def test_extends_nothing_that_exists(write: Write) -> None:
    with pytest.raises(UserError, match="unknown preset 'tinny'; did you mean 'tiny'"):
        RunConfig.load(write("extends: tinny"))
    with pytest.raises(UserError, match=r"expected a YAML file at gone\.yaml, found none"):
        RunConfig.load(write("extends: gone.yaml"))


# ── overrides ───────────────────────────────────────────────────────────────────────────────────────────────────────


def test_dotted_and_nested_overrides_are_the_same() -> None:
    dotted = RunConfig.load("tiny", {"optimizer.lr": 1e-4, "steps": 3, "monitor.block": 2})
    assert dotted == RunConfig.load(
        "tiny", {"optimizer": {"lr": 1e-4}, "steps": 3, "monitor": {"block": 2}}
    )
    assert (dotted.optimizer.lr, dotted.steps, dotted.monitor.block) == (1e-4, 3, 2)
    assert dotted.optimizer.weight_decay == RunConfig.load("tiny").optimizer.weight_decay


def test_overrides_leave_the_configuration_they_came_from() -> None:
    config = RunConfig.load("tiny")
    before = config.model_dump()
    assert RunConfig.load(config, {"model.layers": 3}).model.layers == 3
    assert config.model_dump() == before


def test_unknown_override_names_the_nearest() -> None:
    with pytest.raises(
        UserError,
        match=r"tiny: unknown key 'optimizer\.lrr'; did you mean 'lr'\?; valid here: betas, eps, lr, momentum, name, weight_decay",
    ):
        RunConfig.load("tiny", {"optimizer.lrr": 1e-4})


def test_source_of_an_override_of_a_configuration_is_its_name() -> None:
    with pytest.raises(UserError, match=r"^tiny: "):
        RunConfig.load(RunConfig.load("tiny"), {"stepss": 1})


nested = st.recursive(
    st.integers(),
    lambda below: st.dictionaries(st.sampled_from("abc"), below, max_size=3),
    max_leaves=8,
)
mappings = st.dictionaries(st.sampled_from("abc"), nested, max_size=3)


def leaves(values: dict[str, Any], prefix: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    """Return the value at each path; an empty mapping is a value."""
    found: dict[tuple[str, ...], Any] = {}
    for key, value in values.items():
        if isinstance(value, dict) and value:
            found |= leaves(value, (*prefix, key))
        else:
            found[(*prefix, key)] = value
    return found


@given(base=mappings, over=mappings)
def test_merge(base: dict[str, Any], over: dict[str, Any]) -> None:
    before = repr((base, over))
    merged = leaves(merge(base, over))
    assert repr((base, over)) == before
    above = leaves(over)
    for path, value in above.items():
        if value != {}:
            assert merged[path] == value
    for path, value in leaves(base).items():
        touched = any(path[: len(p)] == p or p[: len(path)] == path for p in above)
        if not touched:
            assert merged[path] == value
    assert merge(base, {}) == base
    assert merge({}, over) == over


# ── refusals ────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_unknown_preset_names_the_nearest_and_all() -> None:
    with pytest.raises(
        UserError,
        match=f"unknown preset 'tinny'; did you mean 'tiny'.*{', '.join(presets())}.*path ending in .yaml",
    ):
        RunConfig.load("tinny")
    with pytest.raises(UserError) as error:
        RunConfig.load("zzzzzz")
    assert "did you mean" not in str(error.value)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    with pytest.raises(
        UserError,
        match=f"expected a YAML file at .*found none; give .*preset: {', '.join(presets())}",
    ):
        RunConfig.load(tmp_path / "gone.yaml")
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(UserError, match="expected a YAML file"):
        RunConfig.load(tmp_path / "folder.yaml")


@pytest.mark.parametrize(
    ("text", "where", "meant", "valid"),
    [
        ("stepss: 3", "stepss", "steps", "batch_size"),
        ("model: {widht: 3}", "model.widht", "width", "layers"),
        ("monitor: {probe_evry: 3}", "monitor.probe_evry", "probe_every", "block"),
        (
            "stressors: {planted: [{at: 1, kind: artefacts}, {at: 1, kind: artefacts, sise: 2}]}",
            "stressors.planted.1.sise",
            "size",
            "at",
        ),
        (
            "interventions: {allow_span: true}",
            "interventions.allow_span",
            "allow_spam",
            "lr_scales",
        ),
        ("clip: {option: {}}", "clip.option", "options", "policy"),
    ],
)
def test_unknown_key_names_the_nearest(
    write: Write, text: str, where: str, meant: str, valid: str
) -> None:
    path = write(f"extends: tiny\n{text}")
    with pytest.raises(UserError) as error:
        RunConfig.load(path)
    assert str(error.value).startswith(
        f"{path}: unknown key '{where}'; did you mean '{meant}'?; valid here: "
    )
    assert valid in str(error.value).split("valid here: ")[1].split(", ")


def test_unknown_uncertainty_key_names_the_nearest() -> None:
    values = {**read_yaml(find("uncertainty")), "treshold": 2.0}
    with pytest.raises(
        UserError, match=r"unknown key 'monitor\.uncertainty\.treshold'; did you mean 'threshold'"
    ):
        RunConfig.load("tiny", {"monitor.uncertainty": values})


def test_unknown_clip_policy_names_the_valid_ones(write: Write) -> None:
    with pytest.raises(UserError, match=r"clip\.options\.zclop") as error:
        RunConfig.load(write("extends: tiny\nclip: {options: {zclop: {}}}"))
    assert all(name in str(error.value) for name in CLIP_NAMES)
    with pytest.raises(UserError, match=r"clip\.policy: .*zclip.*found 'zclop'"):
        RunConfig.load(write("extends: tiny\nclip: {policy: zclop}"))


@pytest.mark.parametrize(
    "key", ["steps", "batch_size", "model", "optimizer", "model.width", "optimizer.lr"]
)
def test_missing_key_is_named(write: Write, key: str) -> None:
    values: dict[str, Any] = yaml.safe_load(WHOLE)
    *path, last = key.split(".")
    inner = values
    for part in path:
        inner = inner[part]
    del inner[last]
    path_written = write(yaml.safe_dump(values))
    with pytest.raises(
        UserError, match=f"{key} is missing; state it, or start the file with `extends: tiny`"
    ):
        RunConfig.load(path_written)


@pytest.mark.parametrize(
    "text",
    [
        "steps: 1\nsteps: 2",
        "model: {width: 1, width: 2}",
        "a: [{b: 1, b: 1}]",
        '"steps": 1\nsteps: 2',
    ],
)
def test_a_key_that_stands_twice(write: Write, text: str) -> None:
    with pytest.raises(UserError, match=r"is not valid YAML: the key '\w+' is there twice.*line"):
        read_yaml(write(text))


def test_the_same_key_in_two_places_is_fine(write: Write) -> None:
    assert read_yaml(write("a: {b: 1}\nc: {b: 2}")) == {"a": {"b": 1}, "c": {"b": 2}}


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "an empty file"),
        ("# nothing", "an empty file"),
        ("[1, 2]", "list"),
        ("tiny", "str"),
        ("3", "int"),
    ],
)
def test_not_a_mapping(write: Write, text: str, found: str) -> None:
    with pytest.raises(
        UserError, match=f"must hold a mapping of keys to values, found {found}; `extends: tiny`"
    ):
        read_yaml(write(text))


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe\x00a", "name: é".encode("latin-1"), b"a: [1", b"a: b: c", b"\ta: 1", b"{[1]: 2}"],
)
def test_not_yaml(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match="is not valid YAML") as error:
        read_yaml(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_yaml_runs_no_code(write: Write) -> None:
    with pytest.raises(UserError, match="is not valid YAML"):
        read_yaml(write("name: !!python/object/apply:os.getcwd []"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", 0),
        ("steps", 1.5),
        ("steps", "many"),
        ("seed", -1),
        ("seed", 2**63),
        ("batch_size", 0),
        ("precision", "int8"),
        ("device", "tpu"),
        ("optimizer.lr", 0),
        ("optimizer.lr", -1e-3),
        ("optimizer.lr", float("nan")),
        ("optimizer.lr", float("inf")),
        ("optimizer.betas", [0.9, 1.0]),
        ("optimizer.weight_decay", -0.1),
        ("stressors.rare_tokens", -0.01),
        ("stressors.long_sequence", 1.01),
        ("stressors.harsh_warmup_lr", 0),
        ("model.context", 1),
        ("model.dropout", 1.0),
        ("schedule.final", 1.5),
        ("schedule.decay_share", 0),
        ("schedule.warmup", -1),
        ("corpus.vocab_size", 256),
        ("monitor.block", 0),
        ("checkpoints.every", 0),
        ("checkpoints.keep_last", 0),
        ("checkpoints.max_bytes", 0),
        ("checkpoints.moments", "4bit"),
        ("checkpoints.on_error", "ignore"),
        ("validation.every", -1),
        ("environment.decision_steps", 0),
        ("model", 3),
    ],
)
def test_out_of_range(key: str, value: Any) -> None:
    with pytest.raises(UserError) as error:
        RunConfig.load("tiny", {key: value})
    assert str(error.value).startswith(f"tiny: {key}")
    assert str(error.value).endswith(f"found {value[-1] if isinstance(value, list) else value!r}")


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            {"model.heads": 3},
            "model: width must be a multiple of heads, found width 64 and heads 3",
        ),
        ({"model.positions": 63}, r"model: positions must be at least context \(64\), found 63"),
        ({"accumulation": 3}, r"batch_size \(8\) must be a multiple of accumulation \(3\)"),
        (
            {"accumulation": 4, "stressors.long_sequence": 0.1},
            r"batch_size ÷ accumulation \(2\) must be a multiple of stressors.long_factor \(4\)",
        ),
        (
            {"accumulation": 4, "stressors.planted": [{"at": 0, "kind": "long_sequence"}]},
            r"must be a multiple of stressors.long_factor",
        ),
        (
            {"interventions.lr_scales": [0.9, 1.0]},
            "lr_scales must start with 1.0, so that the action of all zeros does nothing",
        ),
        ({"interventions.weight_decay_scales": []}, "weight_decay_scales must start with 1.0"),
        (
            {"interventions.lr_bounds": [1.5, 2.0]},
            r"lr_bounds must enclose 1.0, found \(1.5, 2.0\)",
        ),
        ({"interventions.weight_decay_bounds": [2.0, 0.5]}, "weight_decay_bounds must enclose 1.0"),
    ],
)
def test_what_does_not_fit_together(overrides: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        RunConfig.load("tiny", overrides)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"single": 2.0}, r"single \(2.0\) must be at least threshold \(2.5\)"),
        ({"min_history": 600}, r"min_history \(600\) must be at most window"),
    ],
)
def test_uncertainty_that_contradicts_itself(change: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        validate(UncertaintyConfig, {**read_yaml(find("uncertainty")), **change}, "uncertainty")


def test_one_sentence(write: Write) -> None:
    with pytest.raises(UserError) as error:
        RunConfig.load(write("extends: tiny\nsteps: -1\nseed: -1\noptimizer: {lr: -1}"))
    assert "\n" not in str(error.value)
    assert "pydantic" not in str(error.value)


# ── frozen ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_frozen() -> None:
    config = RunConfig.load("tiny")
    with pytest.raises(ValidationError, match="frozen"):
        config.steps = 3
    with pytest.raises(ValidationError, match="frozen"):
        config.optimizer.lr = 3.0
    with pytest.raises(ValidationError, match=r"[Ee]xtra"):
        ModelConfig(width=8, layers=1, heads=1, context=8, depth=3)  # type: ignore[call-arg]


def test_defaults_of_the_action_space_are_the_decided_ones() -> None:
    config = InterventionConfig()
    assert config.lr_scales == (1.0, 0.8, 0.9, 1.1)
    assert config.weight_decay_scales == (1.0, 0.5, 2.0)
    assert [config.allow_spam, config.allow_data_reorder, config.allow_skip_batch] == [False] * 3


def test_stressors_are_off_by_default() -> None:
    stressors = RunConfig.load("tiny").stressors
    assert (
        stressors.rare_tokens,
        stressors.long_sequence,
        stressors.artefacts,
        stressors.block_shuffle,
    ) == (0, 0, 0, 0)
    assert stressors.harsh_warmup_steps == 0
    assert not stressors.planted
    assert not stressors.lengthens


# ── keys in their old spelling ──────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(("section", "keys"), RENAMED_KEYS.items())
def test_a_key_in_its_old_spelling_is_read_and_the_new_one_named(
    section: str, keys: Mapping[str, str]
) -> None:
    for old, new in keys.items():
        value = getattr(getattr(RunConfig.load("tiny"), section), new)
        changed = (
            (not value)
            if isinstance(value, bool)
            else value / 2
            if isinstance(value, float)
            else value + 1
        )
        changed = changed + 3 if new == "max_lr_factor" else changed
        with pytest.warns(
            FutureWarning, match=rf"{section}\.{old} is now called {section}\.{new};"
        ):
            config = RunConfig.load("tiny", {f"{section}.{old}": changed})
        assert (
            config
            == RunConfig.load("tiny", {f"{section}.{new}": changed})
            != RunConfig.load("tiny")
        )


def test_an_old_key_in_a_file_gives_way_to_an_override(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nbranching: {quiet: 7}\n")
    with pytest.warns(FutureWarning, match=r"branching\.refractory_steps"):
        assert RunConfig.load(path).branching.refractory_steps == 7
    with pytest.warns(FutureWarning):
        assert (
            RunConfig.load(path, {"branching.refractory_steps": 9}).branching.refractory_steps == 9
        )
    with pytest.warns(FutureWarning):
        assert BranchingConfig(quiet=3).refractory_steps == 3  # type: ignore[call-arg]


def test_a_key_in_both_spellings_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("extends: tiny\nbranching: {share: 0.2, max_waste: 0.3}\n")
    with pytest.raises(
        UserError, match=r"branching\.max_waste is given twice, .* branching\.share"
    ):
        RunConfig.load(path)
