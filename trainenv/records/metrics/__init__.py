"""What became of a run, as numbers that runs are compared by: read from its folder alone.

    measured = measure(Path("runs/tiny"))
    measured.instability.per_100k, measured.recovery.median, measured.wasted, measured.notes

*Steps taken* are the optimizer steps of purpose `main` in the order they were trained, those of lines that were rewound
included; steps of branches that were thrown away are not among them. Where a line starts further back than the one before it
ended, the history of a step is that of the lines it grew from, not what was left behind.

First family
- *final loss*: the last clean validation loss, nats per token. A run that diverged, or whose last loss is no number, counts as a
  uniform guess: ln V. `log_final_loss` is its natural logarithm, `perplexity` its exponential.
- *harm*: judged on the clean probe, a fixed batch that is measured every few steps; see `harm.py`. The *level* is the median of
  the last 8 looks at it. An *instability event* starts at the first of looks that all lie at least
  0.1 nats above the level before the first of them, over at least 8 steps; a loss that is no finite
  number is one at once. A rise counts once: the next event can start only after a look that is less
  than 0.1 above the level, which has followed by then. So neither one odd look nor a drift of less
  than 0.1 nats in some 4 looks is one, and a second spike before the first has healed is.
- *instability* is events per 100 000 steps taken. An event starts on a look, so up to `monitor.probe_every` steps late. A rise
  that is gone back behind before it has lasted 8 steps is no event; `cut_short` counts those,
  beside the events.
- *recovery*: steps taken from an event's start to the first look within 0.02 nats of its level (a look as good as the best so
  far always is), across rewinds: going back costs the steps until the run is again as good as it
  was. Events that have not ended with the run are right-censored and counted as `unrecovered`;
  `median` is Kaplan and Meier's (1958), null where fewer than half are known to recover; `mean`
  counts a censored event with the steps that it has lasted, so at least that.
- *wasted*: (rewound + verify) ÷ all FLOPs of the ledger; *drafting*: plan ÷ all.
- *stressors*: for each name that was planted, the steps taken that had it, the steps within 16 after one (itself included), and
  the events that started there. An event near two names counts for both. What chance alone would
  give of E events is E × near ÷ steps taken.

Second family, from `branches/*/decision.json`; null where there is no such folder
- *invoke rate*: decisions per 1000 steps taken. *Verified* is a decision in which a branch beside the control was really run;
  *accept rate*: decisions whose accepted branch is not the control ÷ verified ones. `over_time` has it for each verified
  decision over the last 8 up to it.
- *gap*: mean |measured Δ − expected median| over verified branches, in ln loss; *bias* the mean of the difference and *sign*
  that of its sign: above 0, reality was worse than the draft.
- *coverage*: share of measured Δ within `expected` low to high; a branch that diverged lies outside. Branches that were stopped
  early as clear losers, or failed, measured nothing over the whole of the verified steps: neither
  gap nor coverage has them.
- *verification cost*: steps and FLOPs that decisions say they cost, committed branches included, and their share of all FLOPs.

What is missing or torn is passed over, NaN (null in JSON) or left out of the counts, and the notes
say so.
"""

from trainenv.monitor.harm import Harm, HarmWatch
from trainenv.records.metrics.decision_metrics import Decisions
from trainenv.records.metrics.instability import (
    Cluster,
    HarmEvent,
    Instability,
    Recovery,
    Row,
    clusters,
    harm_events,
    instability,
    recovery,
)
from trainenv.records.metrics.run_metrics import Metrics, measure

__all__ = [
    "Cluster",
    "Decisions",
    "Harm",
    "HarmEvent",
    "HarmWatch",
    "Instability",
    "Metrics",
    "Recovery",
    "Row",
    "clusters",
    "harm_events",
    "instability",
    "measure",
    "recovery",
]
