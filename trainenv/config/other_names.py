"""Names that other trainers have for our configuration keys."""

from __future__ import annotations

from collections.abc import Mapping

_LIMIT_OF_NORM = "clip: {policy: norm, max_norm: 1.0}"
# Our key, or what to write instead → names of nanoGPT, transformers, Lightning, torchtitan and
# Megatron for it.
_OTHERS: Mapping[str, tuple[str, ...]] = {
    "optimizer.lr": ("learning_rate", "max_lr", "peak_lr", "base_lr"),
    "optimizer.betas": ("beta1", "beta2", "adam_beta1", "adam_beta2"),
    "optimizer.eps": ("epsilon", "adam_epsilon"),
    "optimizer.name": ("optim",),
    "optimizer.weight_decay": ("wd", "decay"),
    "steps": (
        *("max_steps", "num_steps", "total_steps", "train_steps", "training_steps", "train_iters"),
        *("max_iters", "iterations", "epochs", "num_train_epochs", "max_epochs"),
    ),
    "batch_size": (
        *("per_device_train_batch_size", "train_batch_size", "global_batch_size"),
        *("micro_batch_size", "local_batch_size"),
    ),
    "accumulation": (
        *("gradient_accumulation_steps", "accumulate_grad_batches", "grad_accum_steps"),
        "grad_accumulation",
    ),
    "model.layers": ("n_layer", "n_layers", "num_layers", "num_hidden_layers", "depth"),
    "model.heads": ("n_head", "n_heads", "num_heads", "num_attention_heads"),
    "model.width": ("n_embd", "hidden_size", "d_model", "dim", "embed_dim"),
    "model.context": (
        *("block_size", "seq_len", "seq_length", "sequence_length", "max_seq_length"),
        *("max_length", "context_length", "n_ctx"),
    ),
    "model.positions": ("n_positions", "max_position_embeddings"),
    "schedule.warmup": ("warmup_steps", "warmup_iters", "num_warmup_steps", "warmup_ratio"),
    "schedule.kind": ("lr_scheduler_type", "scheduler", "lr_decay_style"),
    "schedule.final": ("min_lr", "min_lr_ratio", "lr_min"),
    "validation.every": ("eval_interval", "eval_steps", "eval_every", "val_check_interval"),
    "validation.sequences": ("eval_iters", "limit_val_batches"),
    "checkpoints.every": ("save_steps", "save_interval", "save_every_n_steps"),
    "checkpoints.keep_last": ("save_total_limit", "save_top_k", "keep_latest_k"),
    "corpus.name": ("dataset", "dataset_name"),
    "corpus.path": ("data_dir", "train_file", "data_path", "dataset_path"),
    "corpus.vocab_size": ("n_vocab",),
    "precision": ("dtype", "bf16", "fp16", "mixed_precision", "autocast"),
    "seed": ("random_seed", "manual_seed"),
    "name": ("run_name", "wandb_run_name"),
    _LIMIT_OF_NORM: (
        *("max_grad_norm", "grad_clip", "gradient_clip_val", "clip_grad", "clip_grad_norm"),
        *("max_norm", "clip_norm", "gradient_clipping"),
    ),
    "--out FOLDER": ("output_dir", "out_dir", "save_dir", "log_dir"),
}
_HERE = {other: ours for ours, others in _OTHERS.items() for other in others}


def called_here(name: str) -> str:
    """Return the end of a sentence that names our key, or nothing for an unknown name.

    Args:
        name: Key of another trainer, without sections.
    """
    ours = _HERE.get(name.replace("-", "_").lower())
    if ours is None:
        return ""
    if ":" in ours or ours.startswith("--"):
        return f"; here you write {ours}"
    return f"; here it is called {ours!r}"
