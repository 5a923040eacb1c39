"""The branching loop: check_triggers → rewind → plan → verify → commit.

    train(run, folder, callback=Branching(planner=planners.make("grid"), model=model))
    BranchingAgent(env, planner=planners.make("grid"), model=model).run(600)

`branching_loop` has the loop; start to read there. `drafts`, `rollback` and `problems` make plans,
`loop_state` and `decision_records` keep what is remembered and recorded.
"""

from trainenv.agents.branching.agent import BranchingAgent
from trainenv.agents.branching.branching_loop import Branching
from trainenv.agents.branching.problems import PlanningOptions

__all__ = ["Branching", "BranchingAgent", "PlanningOptions"]
