"""Words of the report and their meaning, shown at its foot."""

from __future__ import annotations

from trainenv.report.drawing.svg import element

WORDS = (
    ("accepted", "The branch did no harm in its real steps; the run continued as that branch."),
    ("alarm", "The uncertainty index was above its threshold."),
    ("branch", "A trial: the run from a saved state, with a change, for a few real steps."),
    (
        "compute",
        "Floating-point operations (FLOPs) of all training steps, evaluations and planning.",
    ),
    ("control", "The branch without a change. The others are measured against it."),
    ("decision", "Trigger, plan, trial and verdict on one change of the run."),
    ("forecast", "What the world model expects of a change, with a 90 % interval."),
    ("harm", "A higher loss on the clean probe: a few sequences that never change."),
    ("incident", "Alarms or harm that belong together, and what was done about them."),
    ("kept step", "A step that is part of the final run; the others were rolled back."),
    (
        "left alone",
        "The same configuration and data, without steering.",
    ),
    (
        "level",
        "The median training loss of the 50 steps before an incident.",
    ),
    (
        "LR ×0.8",
        "The learning rate of the schedule, times 0.8 from there on.",
    ),
    ("nat", "Unit of the loss. 0.01 nats less is about 1 % less perplexity."),
    (
        "plan to the end",
        "Learning rates for the rest of the run. Its first part takes effect at once if it is a "
        "small change.",
    ),
    ("rolled back", "Back to an earlier saved state; the steps since then do not count."),
    ("test loss", "Loss on text that nothing in the run has looked at."),
    ("uncertainty index", "One number a step: how unusual the loss and the gradients are."),
    ("validation loss", "Loss on held-out text, measured while the run trains."),
    ("wasted", "Compute of rolled-back steps and discarded branches, as a share of all compute."),
)


def glossary() -> str:
    """Draw the words as a list."""
    rows = [element("dt", word) + element("dd", meaning) for word, meaning in WORDS]
    return element("dl", *rows, class_="words")
