"""What the README says holds: its links, its commands and its code; and nothing knows the machine it was written on."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path

import pytest

from trainenv.checkpoints.schema import SCHEMA, check_state
from trainenv.cli import _parser
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.run import TrainingRun

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(language, code) for language, code in re.findall(r"^```(\w*)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)]
PROSE = re.sub(r"^```.*?^```$", "", README, flags=re.MULTILINE | re.DOTALL)
COMMANDS = [
    command
    for language, code in BLOCKS
    if language in ("bash", "sh", "console", "")
    for line in code.replace("\\\n", " ").splitlines()
    if (command := shlex.split(line.removeprefix("$ "), comments=True)) and command[0] in ("trainenv", "make")
]
PYTHON = [code for language, code in BLOCKS if language == "python"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


def tracked() -> list[Path]:
    """The files that are, or would be, in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


# ── README ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_readme_is_short_and_starts_with_two_commands() -> None:
    assert len(README.splitlines()) <= 150
    assert ["make", "demo"] in COMMANDS
    assert ["make", "test"] in COMMANDS


@pytest.mark.parametrize("target", sorted(set(re.findall(r"\]\(([^)\s]+)\)", README))))
def test_links_lead_somewhere(target: str) -> None:
    path, _, anchor = target.partition("#")
    if path.startswith(("https://", "mailto:")):
        return
    assert "://" not in path
    assert not Path(path).is_absolute()
    assert (ROOT / path).exists()
    if anchor:
        text = (ROOT / path).read_text(encoding="utf-8") if path else README
        titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
        assert anchor in {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def test_paths_in_words_are_there() -> None:
    """Words in backticks that look like a path of ours: with a slash or an ending, and no environment's name."""
    words = re.findall(r"`([\w./-]+)`", PROSE)
    paths = {
        word
        for word in words
        if re.search(r"\.(py|yaml|yml|json|md|toml|txt)$", word) or ("/" in word and not re.search(r"-v\d+$", word))
    }
    made_by_runs = {"config.yaml", "summary.json", "events.jsonl"}
    missing = {path for path in paths - made_by_runs if not path.startswith("runs/") and not (ROOT / path).exists()}
    assert not missing


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "trainenv"], ids=" ".join)
def test_trainenv_commands_parse(command: list[str]) -> None:
    args = _parser().parse_args(command[1:])
    if not hasattr(args, "config"):
        return
    if args.resume:
        assert (args.config, args.set) == (None, [])
        assert args.out is not None
    else:
        RunConfig.load(args.config, dict(pair.split("=", 1) for pair in args.set))


@pytest.mark.parametrize("command", [c for c in COMMANDS if c[0] == "make"], ids=" ".join)
def test_make_commands_have_a_target(command: list[str]) -> None:
    targets = [word for word in command[1:] if "=" not in word and not word.startswith("-")]
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)


def test_make_in_words_has_a_target() -> None:
    for target in re.findall(r"`make (\w+)`", PROSE):
        assert re.search(rf"^{target}:", MAKEFILE, re.MULTILINE)


def test_there_is_code_to_run() -> None:
    assert PYTHON
    assert any(command[0] == "trainenv" for command in COMMANDS)


@pytest.mark.parametrize("code", PYTHON, ids=lambda code: f"python-{PYTHON.index(code)}")
def test_code_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), {"__name__": "readme"})
    assert not list(tmp_path.iterdir())


def test_results_are_a_table() -> None:
    section = re.search(r"^## Results\n(.*?)(?=^## |\Z)", README, re.MULTILINE | re.DOTALL)
    assert section is not None
    rows = [line for line in section[1].splitlines() if line.startswith("|")]
    assert len(rows) >= 3
    assert re.fullmatch(r"\|[-:| ]+\|", rows[1])
    assert len({row.count("|") - row.count(r"\|") for row in rows}) == 1


def test_nothing_is_left_to_fill_in() -> None:
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$|\bTODO\b|\bTBD\b|\bFIXME\b", README, re.MULTILINE)


# ── configurations ──────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_load(path: Path) -> None:
    if path.name == SCHEMA:
        check_state(TrainingRun.from_config("tiny").snapshot().state, path.name)
        return
    if path.stem == "uncertainty":
        assert UncertaintyIndex().config == TrainingConfig(steps=1).monitor.uncertainty
        return
    config = RunConfig.load(path.stem)
    assert config == RunConfig.load(path)
    assert config.name == path.stem


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_configurations_say_what_they_are(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


# ── the repository ──────────────────────────────────────────────────────────────────────────────────────────────────


def test_nothing_knows_the_machine_it_was_written_on() -> None:
    places = ("/wo" + "rk/", "/ro" + "ot/", "/t" + "mp/w", "/ho" + "me/")
    found = []
    for path in tracked():
        text = path.read_bytes().decode(errors="replace")
        found += [f"{path.relative_to(ROOT)}: {place}" for place in places if place in text]
    assert not found


def test_no_large_or_generated_file_is_kept() -> None:
    names = [path.relative_to(ROOT) for path in tracked()]
    assert not [str(name) for name in names if {"__pycache__", "runs", ".venv"} & set(name.parts)]
    assert not [str(name) for name in names if (ROOT / name).stat().st_size > 2**20]


def test_no_benchmark_hides_a_package() -> None:
    """Python looks for modules in the folder of a script first."""
    scripts = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert not scripts & {path.name for path in ROOT.iterdir() if path.is_dir()}
