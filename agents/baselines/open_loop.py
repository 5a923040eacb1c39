"""Open-loop paths of the learning rate: the run follows a path that no measurement changes.

The best of many paths in hindsight, chosen for each scenario on other seeds, shows how far the
learning rate alone can take a run; a method that steers can be measured against it. The paths are
in `rate_paths`.

The branching loop puts ZClip in force where the configuration clips nothing; so does a path.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from trainenv.agents.baselines.rate_factor import change_rate
from trainenv.agents.baselines.rate_paths import RatePath
from trainenv.agents.branching.standing_rules import enable_default_clipping
from trainenv.checkpoints.store import CheckpointStore
from trainenv.loop import Callback, CallbackResult
from trainenv.records.run_folder import RunFolder
from trainenv.types import Run, Telemetry


@dataclass(kw_only=True)
class OpenLoop(Callback):
    """Callback that sets the learning rate along a path at each end of a block.

    Args:
        path: Path of the factor on the learning rate.
        default_clip: True to put ZClip in force at the start if no clip policy was chosen.
    """

    path: RatePath = field(default_factory=lambda: RatePath.constant(1.0))
    default_clip: bool = True

    def on_train_begin(self, run: Run, folder: RunFolder, store: CheckpointStore, /) -> None:
        """Set clipping and the first factor of a new run. See `Callback`."""
        if run.step:
            return
        events = []
        if self.default_clip:
            events += enable_default_clipping(run)
        events += change_rate(run, self.path.factor(0.0))
        for event in events:
            folder.event(event)

    def on_block_end(self, run: Run, window: Sequence[Telemetry], /) -> CallbackResult:
        """Set the factor for the steps to come. See `Callback`."""
        if run.done or run.diverged:
            return CallbackResult()
        return CallbackResult(events=change_rate(run, self.path.factor(run.step / run.horizon.end)))
