"""Parts that planners share: the plan in the making, the score, sequences of interventions.

    builder = PlanBuilder(problem, "mine")              # keeps budget, masks and pruner
    scores = builder.forecast([(Intervention(lr_scale=0.9),)])
    return builder.plan()

`Score` is the default criterion. `sequences` lists and draws legal sequences of interventions, and
`scoring` scores them by the model or the executor.
"""

from trainenv.planners.support.plan_builder import PlanBuilder
from trainenv.planners.support.score import Score
from trainenv.planners.support.sequences import NOTHING, Interventions, Legality, canonical

__all__ = ["NOTHING", "Interventions", "Legality", "PlanBuilder", "Score", "canonical"]
