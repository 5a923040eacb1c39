"""README, CONTRIBUTING and docs keep their word: links, paths, commands, code and tables."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import pytest

from trainenv.checkpoints.schema import SCHEMA, check_state
from trainenv.cli import make_parser
from trainenv.config.describe import markdown
from trainenv.config.schema import RunConfig, TrainingConfig
from trainenv.monitor.uncertainty import UncertaintyIndex
from trainenv.run import TrainingRun

ROOT = Path(__file__).parent.parent
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")
MADE_BY_RUNS = {
    *("config.yaml", "summary.json", "events.jsonl", "results.json", "trackers.json"),
    *("branches/", "tensorboard/", "wandb/", "compute/flops", "parent.json"),
}
SHELL = ("bash", "sh", "console", "")


@dataclass(frozen=True)
class Page:
    """A page of Markdown, taken apart."""

    path: Path

    def __str__(self) -> str:
        return self.path.relative_to(ROOT).as_posix()

    @cached_property
    def text(self) -> str:
        return self.path.read_text(encoding="utf-8")

    @cached_property
    def prose(self) -> str:
        return re.sub(r"^```.*?^```$", "", self.text, flags=re.MULTILINE | re.DOTALL)

    def code(self, *languages: str) -> list[str]:
        """Blocks in one of the languages."""
        blocks = re.findall(r"^```(\w*)\n(.*?)^```$", self.text, re.MULTILINE | re.DOTALL)
        return [code for language, code in blocks if language in languages]

    @cached_property
    def links(self) -> list[tuple[str, str]]:
        """Text and target of each link, once."""
        return sorted(set(re.findall(r"\[([^\]]*)\]\(([^)\s]+)\)", self.prose)))

    @cached_property
    def commands(self) -> list[list[str]]:
        """Words of each command in a block, without comments."""
        lines = [
            line for code in self.code(*SHELL) for line in code.replace("\\\n", " ").splitlines()
        ]
        return commands_among(lines)

    @cached_property
    def mentions(self) -> list[list[str]]:
        """Words of each command in a sentence or a table."""
        return commands_among(re.findall(r"`([^`\n]+)`", self.prose))


def commands_among(lines: Iterable[str]) -> list[list[str]]:
    typed = (
        line.removeprefix("$ ").removeprefix(".venv/bin/").partition(" > ")[0] for line in lines
    )
    known = ("trainenv ", "make ", "python benchmarks/")
    return [shlex.split(line, comments=True) for line in typed if line.startswith(known)]


PAGES = [
    Page(ROOT / "README.md"),
    Page(ROOT / "CONTRIBUTING.md"),
    *map(Page, sorted((ROOT / "docs").glob("*.md"))),
]
README = PAGES[0]
LINKS = [(page, text, target) for page in PAGES for text, target in page.links]
COMMANDS = [(page, command) for page in PAGES for command in page.commands]
MENTIONS = [(page, command) for page in PAGES for command in page.mentions]
PYTHON = [(page, code) for page in PAGES for code in page.code("python")]


def of(command: str, *, mentions: bool = True) -> list[tuple[Page, list[str]]]:
    return [(page, words) for page, words in COMMANDS + MENTIONS * mentions if words[0] == command]


def named(page: Page) -> str:
    return str(page)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ +(.+)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title).strip().lower().replace(" ", "-") for title in titles}


def tracked() -> list[Path]:
    """The files that are, or would be, in the repository."""
    if not (ROOT / ".git").exists():
        pytest.skip("not a git checkout")
    command = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    names = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=60
    ).stdout
    return [path for name in names.split("\0") if name and (path := ROOT / name).is_file()]


# ── every page ──────────────────────────────────────────────────────────────────────────────────


def test_the_pages_are_there() -> None:
    pages = {"architecture", "configuration", "extending", "glossary", "results"}
    assert pages <= {page.path.stem for page in PAGES}
    assert {command[0] for _, command in COMMANDS} == {"trainenv", "make", "python"}
    assert {str(page) for page, _ in PYTHON} >= {"README.md", "docs/extending.md"}


@pytest.mark.parametrize(("page", "text", "target"), LINKS, ids=lambda part: str(part))
def test_links_lead_somewhere(page: Page, text: str, target: str) -> None:
    path, _, anchor = target.partition("#")
    if path.startswith(("https://", "mailto:")):
        return
    assert "://" not in path
    assert not Path(path).is_absolute()
    linked = (page.path.parent / path).resolve() if path else page.path
    assert linked.exists()
    assert linked.is_relative_to(ROOT)
    if anchor:
        assert anchor in anchors(linked.read_text(encoding="utf-8"))
    name = re.fullmatch(r"`(\w+)`", text)
    if name and linked.suffix == ".py":  # a class or function that is said to be in that file
        tree = ast.parse(linked.read_text(encoding="utf-8"))
        kinds = (ast.ClassDef, ast.FunctionDef)
        assert name[1] in {node.name for node in ast.walk(tree) if isinstance(node, kinds)}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_paths_in_words_are_there(page: Page) -> None:
    """Words in backticks that look like a path: a slash or an ending, and no environment's name."""
    words = re.findall(r"`([\w./-]+)`", page.prose)
    endings = r"\.(py|yaml|yml|json|md|toml|txt)$"
    paths = {
        word
        for word in words
        if re.search(endings, word) or ("/" in word and not re.search(r"-v\d+$", word))
    }
    ours = {
        path
        for path in paths - MADE_BY_RUNS
        if not path.startswith("runs/") and path != "tokenizer.json"
    }
    places = (ROOT, ROOT / "trainenv", page.path.parent)
    assert not {path for path in ours if not any((place / path).exists() for place in places)}


@pytest.mark.parametrize(
    ("page", "command"), of("trainenv", mentions=False), ids=lambda part: str(part)
)
def test_trainenv_commands_parse(page: Page, command: list[str]) -> None:
    args = make_parser().parse_args(command[1:])
    if not hasattr(args, "config"):
        return
    if args.resume:
        assert (args.config, args.set) == (None, [])
        assert args.out is not None
    else:
        RunConfig.load(args.config, dict(pair.split("=", 1) for pair in args.set))


@pytest.mark.parametrize(
    ("page", "command"),
    [pair for pair in MENTIONS if pair[1][0] == "trainenv"],
    ids=lambda part: str(part),
)
def test_trainenv_commands_in_words_are_there(
    page: Page, command: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Some are only the name of a command, without what it needs."""
    with pytest.raises(SystemExit) as ended:
        make_parser().parse_args([*command[1:], "--help"])
    assert ended.value.code == 0
    described = capsys.readouterr().out
    assert all(word in described for word in command if word.startswith("--"))


@pytest.mark.parametrize(("page", "command"), of("make"), ids=lambda part: str(part))
def test_make_commands_have_a_target(page: Page, command: list[str]) -> None:
    targets = [word for word in command[1:] if "=" not in word and not word.startswith("-")]
    assert targets
    for target in targets:
        assert re.search(rf"^{re.escape(target)}:", MAKEFILE, re.MULTILINE)


@pytest.mark.parametrize(("page", "command"), of("python"), ids=lambda part: str(part))
def test_benchmarks_have_their_options(page: Page, command: list[str]) -> None:
    script = ROOT / command[1]
    source = script.read_text(encoding="utf-8")
    if script.name == "kills.py":
        source = (ROOT / "tests" / "support" / "killing.py").read_text(encoding="utf-8")
    for word in command[2:]:
        if word.startswith("--"):
            assert f'"{word}"' in source


@pytest.mark.parametrize(
    ("page", "code"), PYTHON, ids=lambda part: str(part).partition("\n")[0][:40]
)
def test_code_runs(page: Page, code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    exec(compile(code, str(page), "exec", dont_inherit=True), {"__name__": "page"})
    left = {path.name for path in tmp_path.iterdir()}
    assert left <= {"runs"}


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_tables_are_whole(page: Page) -> None:
    for table in re.findall(r"(?:^\|.*\n)+", page.prose, re.MULTILINE):
        rows = table.splitlines()
        assert len(rows) >= 3
        assert re.fullmatch(r"\|[-:| ]+\|", rows[1])
        assert len({row.count("|") - row.count(r"\|") for row in rows}) == 1, rows[0]


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_nothing_is_left_to_fill_in(page: Page) -> None:
    assert not re.findall(r"^[A-Z]+_[A-Z_]+$|\bTODO\b|\bTBD\b|\bFIXME\b", page.text, re.MULTILINE)


# ── README ──────────────────────────────────────────────────────────────────────────────────────


def test_readme_is_short_and_starts_with_two_commands() -> None:
    assert len(README.text.splitlines()) <= 150
    assert ["make", "demo"] in README.commands
    assert ["make", "test"] in README.commands


def test_results_are_a_table() -> None:
    section = re.search(r"^## Results\n(.*?)(?=^## |\Z)", README.text, re.MULTILINE | re.DOTALL)
    assert section is not None
    assert len([line for line in section[1].splitlines() if line.startswith("|")]) >= 3


# ── docs ────────────────────────────────────────────────────────────────────────────────────────


def test_the_page_of_configuration_keys_is_as_the_keys_are() -> None:
    written = (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8")
    assert written == markdown(), "run: trainenv config --markdown > docs/configuration.md"


def test_the_table_of_layers_has_every_folder() -> None:
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\|[^|]*\| `(\w+)(?:/|\.py)` \|", text, re.MULTILINE)
    folders = {path.parent.name for path in (ROOT / "trainenv").glob("*/__init__.py")}
    files = {path.stem for path in (ROOT / "trainenv").glob("*.py")} - {"__init__", "__main__"}
    assert set(listed) == folders | files
    order = [
        listed.index(name)
        for name in ("cli", "agents", "records", "run", "training", "config", "types")
    ]
    assert order == sorted(order)


def test_the_glossary_has_each_word_once() -> None:
    text = (ROOT / "docs" / "glossary.md").read_text(encoding="utf-8")
    words = re.findall(r"^\| ([a-z ]+) \|", text, re.MULTILINE)[1:]
    assert len(words) == len(set(words)) >= 25
    architecture = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    used = set(re.findall(r"\*([a-z ]+)\*(?!\*)", re.sub(r"\*\*.*?\*\*", "", architecture)))
    assert used
    assert {
        word for word in used if word not in words and word.removesuffix("s") not in words
    } == set()


def test_a_result_is_one_number_a_cell() -> None:
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert text.count("How to read it: ") >= 10
    for table in re.findall(r"(?:^\|.*\n)+", text, re.MULTILINE):
        head, _, *rows = (
            [cell.strip() for cell in row.strip("|").split("|")] for row in table.splitlines()
        )
        assert rows
        for row in rows:
            cells = dict(zip(head, row))
            for name in ("measured", "ratio", "change of the final loss, %", "interval"):
                numbers = re.findall(
                    r"[-−+]?\d[\d.e-]*", cells.get(name, "").replace(" 000", "000")
                )
                assert len(numbers) <= (2 if name == "interval" else 1)


# ── configurations ────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
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


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs").glob("*.yaml")), ids=lambda path: path.stem
)
def test_shipped_configurations_say_what_they_are(path: Path) -> None:
    assert path.read_text(encoding="utf-8").startswith("# ")


# ── the repository ────────────────────────────────────────────────────────────────────────────────


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
