"""Core of all adapters: a run that a framework trains in place, and the program that steers it.

- `session`: `Session`, what an adapter talks to. The framework's loop and `trainenv.train` in turn.
- `run`: `InPlaceRun`, the run. Its branches take turns in the live tensors (`stage`).
- `parts`, `packing`: the live parts: model, optimizers, schedulers, counters of the framework.
- `data`: batches by position, in the order of the framework's own loader.
- `rates`: our factor on the learning rates of any scheduler.
- `checkpoint_folders`: our state in the checkpoints of a framework.
- `held_out`, `settings`: held-out data, and the settings of a mode.
"""
