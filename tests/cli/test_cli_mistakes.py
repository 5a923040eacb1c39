"""A mistake on the command line costs one sentence and nothing else."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from tests.support.command_line import assert_one_sentence

MISTAKES: dict[str, tuple[list[str], dict[str, str | None], tuple[str, ...]]] = {
    # what is wrong: arguments, files that are there (None: a folder), what the sentence must contain
    "preset": (["tinny"], {}, ("'tinny'", "did you mean 'tiny'?", "mini")),
    "no preset alike": (["qqqq"], {}, ("'qqqq'", "presets: demo, large")),
    "preset of another kind": (["uncertainty"], {}, ("uncertainty", "unknown key")),
    "key": (
        ["tiny", "--set", "optimizer.lrr=1"],
        {},
        ("'optimizer.lrr'", "did you mean 'lr'?", "weight_decay"),
    ),
    "key of the top": (["tiny", "--set", "step=1"], {}, ("'step'", "did you mean 'steps'?")),
    "key below the index": (
        ["tiny", "--set", "monitor.uncertainty.windw=9"],
        {},
        ("windw", "did you mean 'window'?"),
    ),
    "key in a file": (
        ["a.yaml"],
        {"a.yaml": "extends: tiny\noptimiser: {lr: 1}\n"},
        ("a.yaml", "did you mean 'optimizer'?"),
    ),
    "deep key in a file": (
        ["a.yaml"],
        {"a.yaml": "extends: tiny\nmodel: {widht: 8}\n"},
        ("model.widht", "'width'?"),
    ),
    "key twice": (
        ["a.yaml"],
        {"a.yaml": "extends: tiny\nsteps: 1\nsteps: 2\n"},
        ("a.yaml", "steps", "twice"),
    ),
    "no equals sign": (
        ["tiny", "--set", "steps"],
        {},
        ("KEY=VALUE", "'steps'", "--set optimizer.lr=1e-3"),
    ),
    "no key": (["tiny", "--set", "=3"], {}, ("KEY=VALUE", "'=3'")),
    "no value": (["tiny", "--set", "steps="], {}, ("steps", "integer", "None")),
    "value that is not YAML": (["tiny", "--set", "steps=[1"], {}, ("steps", "'[1'", "quote")),
    "value of many lines": (["tiny", "--set", "steps=a\n\nb"], {}, ("steps", "integer")),
    "missing file": (["gone.yaml"], {}, ("gone.yaml", "found none", "preset")),
    "empty file": (["a.yaml"], {"a.yaml": ""}, ("a.yaml", "empty file", "extends: tiny")),
    "comment only": (["a.yaml"], {"a.yaml": "# nothing\n"}, ("a.yaml", "empty file")),
    "list": (["a.yaml"], {"a.yaml": "- steps\n"}, ("a.yaml", "mapping", "list")),
    "broken YAML": (["a.yaml"], {"a.yaml": "a: [1\nb: {"}, ("a.yaml", "not valid YAML", "line 2")),
    "extends itself": (["a.yaml"], {"a.yaml": "extends: a.yaml\n"}, ("extends itself", "remove")),
    "extends nothing": (["a.yaml"], {"a.yaml": "extends: tinny\n"}, ("'tinny'", "'tiny'")),
    "nothing to start from": (["a.yaml"], {"a.yaml": "steps: 3\n"}, ("missing", "extends: tiny")),
    "negative rate": (
        ["tiny", "--set", "stressors.rare_tokens=-0.1"],
        {},
        ("stressors.rare_tokens", "0", "-0.1"),
    ),
    "rate over one": (
        ["tiny", "--set", "stressors.artefacts=2"],
        {},
        ("stressors.artefacts", "1", "found 2"),
    ),
    "negative learning rate": (
        ["tiny", "--set", "optimizer.lr=-1"],
        {},
        ("optimizer.lr", "greater than 0", "-1"),
    ),
    "no steps": (["tiny", "--set", "steps=0"], {}, ("steps", "1", "found 0")),
    "heads": (["tiny", "--set", "model.width=63"], {}, ("width", "multiple of heads", "63", "2")),
    "vocabulary": (
        ["tiny", "--set", "corpus.vocab_size=3"],
        {},
        ("corpus.vocab_size", "257", "found 3"),
    ),
    "scalar for a section": (["tiny", "--set", "model=5"], {}, ("model", "found 5")),
    "no corpus path": (
        ["tiny", "--set", "corpus.name=text"],
        {},
        ("corpus.path", "found none", "UTF-8"),
    ),
    "out holds something": (
        ["tiny", "--out", "full"],
        {"full/a": "1"},
        ("full", "not empty", "--resume"),
    ),
    "out is a file": (
        ["tiny", "--out", "a"],
        {"a": "1"},
        ("a must be a folder", "give another --out"),
    ),
    "out is below a file": (
        ["tiny", "--out", "a/b/c"],
        {"a": "1"},
        ("a/b/c must be a folder", "give another --out"),
    ),
    "name is a path": (["tiny", "--set", "name=a/b"], {}, ("name", "'a/b'")),
    "name goes up": (["tiny", "--set", "name=../a"], {}, ("name", "'../a'")),
    "name is a path elsewhere": (["tiny", "--set", r"name=a\b"], {}, ("name", "a")),
    "nothing to run": ([], {}, ("CONFIG", "preset", "tiny", "YAML")),
    "nothing to run but where": (
        ["--out", "a", "--set", "steps=3"],
        {},
        ("CONFIG", "preset", "tiny", "YAML"),
    ),
    "resume what": (["--resume"], {}, ("--resume", "--out FOLDER")),
    "resume a preset": (
        ["tiny", "--resume", "--out", "a"],
        {"a/checkpoints/cp_1.ptz": "zip"},
        ("--resume", "neither CONFIG, --set nor --weights"),
    ),
    "resume otherwise": (
        ["--resume", "--out", "a", "--set", "steps=3"],
        {},
        ("--resume", "neither CONFIG, --set nor --weights"),
    ),
    "resume with weights": (
        ["--resume", "--out", "a", "--weights", "w.pt"],
        {},
        ("--resume", "nor --weights"),
    ),
    "resume nothing": (
        ["--resume", "--out", "gone"],
        {},
        ("gone", "checkpoints", "leave out --resume"),
    ),
    "resume an empty folder": (
        ["--resume", "--out", "a"],
        {"a": None},
        ("checkpoints", "found none"),
    ),
    "resume a file": (["--resume", "--out", "a"], {"a": "1"}, ("checkpoints", "found none")),
    "resume what was never saved": (
        ["--resume", "--out", "a"],
        {"a/config.yaml": "steps: 3"},
        ("checkpoints", "found none"),
    ),
    "resume a finished run": (
        ["--resume", "--out", "a"],
        {"a/summary.json": "{}"},
        ("has ended", "--out"),
    ),
    "no weights": (["tiny", "--weights", "gone.pt"], {}, ("gone.pt", "found no file")),
    "weights of another kind": (
        ["tiny", "--weights", "a.ckpt"],
        {"a.ckpt": "1"},
        ("a.ckpt", ".safetensors or .pt"),
    ),
    "weights that are none": (
        ["tiny", "--weights", "a.pt"],
        {"a.pt": "1"},
        ("a.pt was not read", "damaged"),
    ),
    "checkpoints are a step apart": (
        ["tiny", "--set", "checkpoints.every=0"],
        {},
        ("checkpoints.every", "found 0"),
    ),
    "moments": (
        ["tiny", "--set", "checkpoints.moments=4bit"],
        {},
        ("checkpoints.moments", "8bit", "'4bit'"),
    ),
}
TEXT = ["tiny", "--set", "corpus.name=text", "--set"]
MISTAKES |= {
    "corpus path": ([*TEXT, "corpus.path=gone.txt"], {}, ("gone.txt", "found neither", "exists")),
    "empty corpus": (
        [*TEXT, "corpus.path=e.txt"],
        {"e.txt": ""},
        ("e.txt", "no text", "give one with text"),
    ),
    "folder without text": (
        [*TEXT, "corpus.path=a"],
        {"a": None},
        ("corpus.path", "/a, found 0 file(s)", "give one with text"),
    ),
    "folder of binaries": (
        [*TEXT, "corpus.path=a"],
        {"a/b.bin": "\0\0"},
        ("corpus.path", "/a, found", "no text"),
    ),
    "short corpus": (
        [*TEXT, "corpus.path=s.txt"],
        {"s.txt": "hello " * 20},
        ("640", "found 122", "give more text"),
    ),
    "corpus shorter than a batch": (
        [*TEXT, "corpus.path=a.txt"],
        {"a.txt": "hello " * 120},
        ("text", "give more text"),
    ),
    "corpus too short for its vocabulary": (
        [*TEXT, "corpus.path=a.txt", "--set", "corpus.tokenizer=bpe"],
        {"a.txt": "hello " * 120},
        ("4096", "corpus.vocab_size", "more text"),
    ),
    "validation set": (
        ["tiny", "--set", "validation.sequences=9999999"],
        {},
        ("9999999", "validation", "ask for fewer"),
    ),
    "batch": (["tiny", "--set", "batch_size=9999999"], {}, ("9999999", "smaller batch_size")),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_costs_one_sentence(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments, there, words = MISTAKES[name]
    for path, content in there.items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        if content is None:
            (tmp_path / path).mkdir()
        else:
            (tmp_path / path).write_text(content, encoding="utf-8")
    assert_one_sentence(["run", *arguments], words, tmp_path, capsys)
    assert_one_sentence(["run", *arguments, "--json"], words, tmp_path, capsys)


def test_too_little_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(
        "trainenv.models.build.psutil.virtual_memory", lambda: SimpleNamespace(available=2**20)
    )
    words = ("tiny needs at least", "GiB", "found 0.0 GiB free", "smaller preset")
    assert_one_sentence(["run", "tiny", "--set", "device=cpu"], words, tmp_path, capsys)


def test_no_gpu(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    words = ("device cuda was asked for", "finds none", "device: auto")
    assert_one_sentence(["run", "tiny", "--set", "device=cuda"], words, tmp_path, capsys)
