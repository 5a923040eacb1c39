"""Tasks with verifiable solutions: an embedded generator, and samples that are read.

    tasks = generate(seed=0, count=100)
    tasks[0].is_correct(tasks[0].solution)

`kinds` makes tasks of each kind and `generator` verifies their wrong solutions. `language` and
`interpreter` are the little language that they are checked in. `rows` and `code_contests` read
samples, `duplicates` finds those that repeat others, `sample_sets` chooses among them, and
`sample_corpus` and `sample_batches` make them training data.
"""

from trainenv.data.tasks.duplicates import DuplicateFinder, Overlap
from trainenv.data.tasks.generator import generate, right_sample, wrong_sample
from trainenv.data.tasks.interpreter import Bounds, run
from trainenv.data.tasks.language import ProgramError
from trainenv.data.tasks.sample_batches import EncodedSamples, SampleBatches
from trainenv.data.tasks.sample_corpus import SampleCorpus, task_parts
from trainenv.data.tasks.task import Case, Sample, Task

__all__ = [
    "Bounds",
    "Case",
    "DuplicateFinder",
    "EncodedSamples",
    "Overlap",
    "ProgramError",
    "Sample",
    "SampleBatches",
    "SampleCorpus",
    "Task",
    "generate",
    "right_sample",
    "run",
    "task_parts",
    "wrong_sample",
]
