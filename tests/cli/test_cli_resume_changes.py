"""A run is resumed with what it was trained with: other text, settings or steering cost a sentence, or are accepted by name."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.support.command_line import asks_to_stop_at, assert_one_sentence, sets
from tests.support.strict_json import strict
from trainenv import cli, data
from trainenv.cli import main
from trainenv.records.made_of import MadeOf, check_corpus
from trainenv.run import TrainingRun
from trainenv.types import Telemetry, UserError

WORDS = "the of and to in is you that it he was for\n"
RESUME = ["run", "--resume", "--out", "mine"]
RECORD = Path("mine/checkpoints/made_of.json")


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The corpus cache, outside of the folder where nothing may change."""
    folder = tmp_path_factory.mktemp("cache")
    monkeypatch.setenv("TRAINENV_CACHE", str(folder))
    return folder


@pytest.fixture(autouse=True)
def text() -> Path:
    """A text to train on; corpora in memory are those of another process."""
    data._load.cache_clear()
    file = Path("a.txt")
    file.write_text(WORDS * 1000, encoding="utf-8")
    return file


def interrupted(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *more: str, step: int = 12
) -> None:
    """A run on the text that was stopped, in the folder `mine`."""
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, step)
        on = sets(corpus__name="text", corpus__path="a.txt")
        assert main(["run", "tiny", *on, *more, "--out", "mine"]) == cli.INTERRUPTED
    capsys.readouterr()
    data._load.cache_clear()


def said(capsys: pytest.CaptureFixture[str], *more: str) -> str:
    assert main([*RESUME, *more]) == 0
    return capsys.readouterr().out.splitlines()[0]


def test_other_text_is_refused_and_may_be_accepted(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    before = json.loads(RECORD.read_text())["corpus"]
    text.write_text(WORDS.upper() * 1000, encoding="utf-8")
    assert_one_sentence(
        RESUME, (f"was {before}, is ", "digest of the corpus", "--accept-changes"), tmp_path, capsys
    )
    told = said(capsys, "--accept-changes")
    assert "not bit-exact: the digest of the corpus" in told
    assert before in told
    assert json.loads(RECORD.read_text())["corpus"] not in (before, None)


def test_a_decision_on_other_text_is_not_replayed(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    check_corpus(Path("mine"), TrainingRun.from_config("mine/config.yaml"))
    text.write_text(WORDS.upper() * 1000, encoding="utf-8")
    data._load.cache_clear()
    with pytest.raises(UserError, match=r"was \w+, is \w+; put the text back"):
        check_corpus(Path("mine"), TrainingRun.from_config("mine/config.yaml"))


def test_other_tokens_of_the_same_text_are_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A tokenizer at a path is another one, as a new version of it would be."""
    on = "corpus={name: text, path: a.txt, tokenizer: bpe, vocab_size: 260}"
    assert main(["run", "tiny", *sets(steps=1), "--set", on]) == 0
    made = next(cache.glob("bpe-*-260.json"))
    Path("t.json").write_text(made.read_text(encoding="utf-8"), encoding="utf-8")
    interrupted(
        monkeypatch,
        capsys,
        *("--set", "corpus.tokenizer=gpt2", "--set", "corpus.tokenizer_path=t.json"),
    )
    other = json.loads(made.read_text(encoding="utf-8"))
    other["model"]["merges"] = []
    Path("t.json").write_text(json.dumps(other), encoding="utf-8")
    assert_one_sentence(RESUME, ("digest of the corpus", "tokenizer"), tmp_path, capsys)


def test_text_that_was_moved_is_the_same_text(
    text: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    config = Path("mine/config.yaml")
    config.write_text(
        config.read_text().replace(str(text.absolute()), str(text.rename("b.txt").absolute()))
    )
    assert said(capsys) == "resuming from step 12, bit-exact"


def test_it_may_be_resumed_from_anywhere(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    Path("a.txt").write_text("something else\n" * 1000, encoding="utf-8")
    assert main(["run", "--resume", "--out", "../mine"]) == 0
    assert ", bit-exact\n" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("  lr: 0.003", "  lr: 0.001", "optimizer.lr was 0.003, is 0.001"),
        ("steps: 24", "steps: 48", "steps was 24, is 48"),
        ("  warmup: 4", "  warmup: 5", "schedule.warmup was 4, is 5"),
    ],
)
def test_a_configuration_that_was_edited_is_refused(
    old: str,
    new: str,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch, capsys, "--set", "optimizer.lr=0.003")
    config = tmp_path / "mine" / "config.yaml"
    assert old in config.read_text(encoding="utf-8")
    config.write_text(config.read_text(encoding="utf-8").replace(old, new, 1), encoding="utf-8")
    assert_one_sentence(RESUME, (words, "--accept-changes"), tmp_path, capsys)
    assert said(capsys, "--accept-changes") == f"resuming from step 12, not bit-exact: {words}"


def test_settings_that_change_no_bit_may_be_edited(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    config = tmp_path / "mine" / "config.yaml"
    edited = (
        config.read_text(encoding="utf-8")
        .replace("name: tiny", "name: mine")
        .replace("keep_last: 8", "keep_last: 3")
    )
    config.write_text(edited, encoding="utf-8")
    assert said(capsys) == "resuming from step 12, bit-exact"


NO_RECORDS = [
    None,
    "",
    "[]",
    "{}",
    "[" * 9000,
    '{"config": 3, "corpus": null, "callback": null, "flags": []}',
    '{"config": {}, "corpus": null, "callback": {}, "flags": []}',
    '{"config": {}, "corpus": null, "callback": {"class": 3}, "flags": []}',
    '{"config": {}, "corpus": null, "callback": null, "flags": "--by-hand"}',
    '{"config": {}, "corpus": 3, "callback": null, "flags": []}',
]


@pytest.mark.parametrize("record", NO_RECORDS)
def test_a_folder_that_does_not_say_is_resumed_unchecked(
    record: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    if record is None:
        RECORD.unlink()
    else:
        RECORD.write_text(record, encoding="utf-8")
    assert "the folder has no record of them" in said(capsys)
    assert MadeOf.read(Path("mine")) is not None


def test_a_record_of_a_later_version_is_read(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    record = json.loads(RECORD.read_text(encoding="utf-8"))
    RECORD.write_text(json.dumps({**record, "version": 2}), encoding="utf-8")
    assert said(capsys) == "resuming from step 12, bit-exact"


class Killed(BaseException):
    """Stands for SIGKILL: nothing is saved on the way out."""


def test_an_accepted_change_is_on_record_once_a_checkpoint_has_it(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Killed before that, the newest checkpoint is still one of the text that was before."""
    interrupted(monkeypatch, capsys, "--set", "checkpoints.every=8")
    words = text.read_text(encoding="utf-8")
    text.write_text(words.upper(), encoding="utf-8")

    def killed(run: TrainingRun, steps: int) -> list[Telemetry]:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(TrainingRun, "advance", killed)
        with pytest.raises(Killed):
            main([*RESUME, "--accept-changes"])
    capsys.readouterr()
    assert_one_sentence(RESUME, ("digest of the corpus",), tmp_path, capsys)
    text.write_text(words, encoding="utf-8")
    data._load.cache_clear()
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 16)
        assert main(RESUME) == cli.INTERRUPTED
    assert ", bit-exact\n" in capsys.readouterr().out
    text.write_text(words.upper(), encoding="utf-8")
    data._load.cache_clear()
    with monkeypatch.context() as patch:
        asks_to_stop_at(patch, 20)
        assert main([*RESUME, "--accept-changes"]) == cli.INTERRUPTED
    capsys.readouterr()
    assert said(capsys) == "resuming from step 20, bit-exact"


def test_accepting_changes_of_a_new_run_makes_no_sense(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(
        ["run", "tiny", *sets(), "--accept-changes"], ("--resume", "leave it out"), tmp_path, capsys
    )


# ── who steers ──────────────────────────────────────────────────────────────────────────────────────────────────────

BRANCHING = ("--branching", "--planner", "random")


@pytest.mark.parametrize("flags", [BRANCHING, ("--by-hand",)], ids=["branching", "by hand"])
def test_a_steered_run_goes_on_steered_as_it_was(
    flags: tuple[str, ...],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch, capsys, *flags)
    for others in (("--branching", "--planner", "grid"), ("--by-hand",)):
        if others != flags:
            words = (f"is steered by {' '.join(flags)}, found {others[0]}", "leave that out")
            assert_one_sentence([*RESUME, *others], words, tmp_path, capsys)
    assert main([*RESUME, "--json"]) == 0
    assert strict(capsys.readouterr().out)["ended"] == "budget spent"
    made = MadeOf.read(Path("mine"))
    assert made is not None
    assert made.flags == flags


def test_the_planner_need_not_be_named_again(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys, *BRANCHING)
    assert said(capsys, "--branching").endswith(", bit-exact")


def test_an_unsteered_run_stays_unsteered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys)
    assert_one_sentence(
        [*RESUME, "--by-hand"],
        ("is not steered, found --by-hand", "--accept-changes"),
        tmp_path,
        capsys,
    )
    told = said(capsys, "--by-hand", "--accept-changes")
    assert "not bit-exact: it was not steered, is steered by --by-hand" in told


def test_a_steered_run_whose_folder_does_not_say_by_what(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupted(monkeypatch, capsys, "--by-hand")
    RECORD.unlink()
    assert_one_sentence(
        RESUME, ("is steered", "found no callback", "--branching", "--by-hand"), tmp_path, capsys
    )
    assert_one_sentence(
        [*RESUME, "--branching"],
        ("another callback", "trainenv.agents.Branching", "--accept-changes"),
        tmp_path,
        capsys,
    )
    assert ", bit-exact if text" in said(capsys, "--by-hand")


@pytest.mark.parametrize(
    ("flags", "others"),
    [
        (("--by-hand",), ()),
        (("--by-hand",), BRANCHING),
        (BRANCHING, ()),
        (BRANCHING, ("--by-hand",)),
    ],
)
def test_other_steering_where_the_folder_does_not_say_is_accepted_by_name(
    flags: tuple[str, ...],
    others: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    interrupted(monkeypatch, capsys, *flags)
    RECORD.unlink()
    assert main([*RESUME, *others, "--accept-changes"]) == 0
    assert "not bit-exact: the callback that steered it is not recorded" in capsys.readouterr().out


def test_a_planner_without_a_loop_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert_one_sentence(
        ["run", "tiny", *sets(), "--planner", "grid"],
        ("--planner grid", "no --branching"),
        tmp_path,
        capsys,
    )
