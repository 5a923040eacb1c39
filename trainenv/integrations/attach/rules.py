"""`Rules`: the rollback rule of the mode `rules`, which a resumed run takes up where it was."""

from __future__ import annotations

from trainenv.agents.baselines import RollbackRule


class Rules(RollbackRule):
    """A rollback rule whose states to go back to are those of the regular checkpoints."""

    def _due(self, step: int) -> bool:
        return step % self.every == 0
