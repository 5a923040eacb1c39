"""Metrics of a run, read from its folder alone, to compare runs by.

    measured = measure(Path("runs/tiny"))
    measured.instability.per_100k, measured.recovery.median, measured.wasted, measured.notes

*Steps taken* are the optimizer steps of purpose `main` in the order in which they were trained,
those of rewound lines included. Steps of discarded branches are not counted. Where a line starts
before the end of the previous one, the history of a step is that of the lines it grew from.

First family, from telemetry, validations and summary:

- *final loss*: the last clean validation loss, nats per token. A run that diverged, or whose last
  loss is non-finite, counts with the loss of a uniform guess, ln V. `log_final_loss` is its natural
  logarithm, `perplexity` its exponential.
- *test loss*: the loss on the test part of the corpus, nats per token, which nothing in the run has
  seen. It is measured once, after the last step, where `validation.test_sequences` asks for it. It
  counts like the final loss where the run diverged.
- *harm*: measured on the clean probe, a fixed batch that is evaluated every few steps; see
  `trainenv.monitor.harm`. The *level* is the median of the last 8 evaluations. An *instability
  event* starts at the first of evaluations that all lie at least 0.1 nats above the level before
  them, over at least 8 steps. A non-finite loss is an event at once. A rise counts once: the next
  event can start only after an evaluation less than 0.1 nats above the level, which has adapted by
  then. So a single odd evaluation is no event, and neither is a drift of less than 0.1 nats in
  about 4 evaluations. A second spike before the first has healed is an event.
- *instability*: events per 100 000 steps taken. An event starts at an evaluation, so up to
  `monitor.probe_every` steps late. A rise that a rewind ends within 8 steps is no event;
  `cut_short` counts those separately.
- *recovery*: steps taken from the start of an event to the first evaluation within 0.02 nats of its
  level, or as good as the best so far. It continues across rewinds: a rewind costs the steps until
  the run is as good as before. Events that have not ended with the run are right-censored and
  counted as `unrecovered`. `median` is that of Kaplan and Meier (1958), null if fewer than half are
  known to recover. `mean` counts a censored event with the steps that it has lasted, so it is a
  lower bound.
- *wasted*: (rewound + verify) ÷ all FLOPs of the ledger. *drafting*: plan ÷ all FLOPs.
- *stressors*: for each planted stressor, the steps taken that had it, the steps at most 16 after
  one (itself included), and the events that started there. An event near two stressors counts for
  both. By chance alone, E × near ÷ steps taken of E events would start there.

Second family, from `branches/*/decision.json`; null without that folder:

- *invoke rate*: decisions per 1000 steps taken. A decision is *verified* if a branch other than the
  control was trained. *accept rate*: decisions whose accepted branch is not the control ÷ verified
  ones. `over_time` has it for each verified decision, over the last 8 up to it.
- *gap*: mean |measured Δ − expected median| over verified branches, in ln loss. *bias* is the mean
  of the difference, and *sign* that of its sign: above 0, the result was worse than the draft.
- *coverage*: share of measured Δ between the `expected` low and high. A branch that diverged lies
  outside. Branches that were stopped early, or failed, have no measurement over all verified steps:
  gap and coverage leave them out.
- *verification cost*: steps and FLOPs of the decisions, committed branches included, and their
  share of all FLOPs.

Missing or torn values are skipped, NaN (null in JSON) or left out of the counts, and the notes say
so.
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
