"""`Rules`: the rollback rule of the mode `rules`, which a resumed run takes up where it was."""

from __future__ import annotations

from trainenv.agents.baselines import RollbackRule
from trainenv.types import Event, Run, Snapshot, Telemetry


class Rules(RollbackRule):
    """A rollback rule whose states to go back to are those of the regular checkpoints.

    Each further alarm at one place skips twice as much data: a bad shard may be longer than what
    the first rollback skips.
    """

    def _due(self, step: int) -> bool:
        return step % self.every == 0

    def _go_back(self, run: Run, snapshot: Snapshot, alarm: Telemetry) -> Event:
        usual = self.skip
        self.skip = usual * 2 ** (len(self._here) - 1)
        try:
            return super()._go_back(run, snapshot, alarm)
        finally:
            self.skip = usual
