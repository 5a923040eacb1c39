"""A sandbox for generated Python programs.

    sandbox = Bubblewrap(limits=Limits(wall_s=5))
    tests = FunctionTests("assert candidate(1) == 2", entry_point="f")
    check(sandbox, "def f(x): return x + 1", tests)

`isolation` has the two kinds of sandbox, `limits` and `seccomp` what a program may do in it,
`inside` is the script that runs there, `launch` starts it, and `programs` checks programs.
"""

from trainenv.evaluation.sandbox.isolation import Bubblewrap, RlimitsOnly, Sandbox
from trainenv.evaluation.sandbox.limits import Limits
from trainenv.evaluation.sandbox.programs import (
    FunctionTests,
    InputOutput,
    Tests,
    Verdict,
    check,
    check_all,
    check_sandbox,
    run_script,
)

__all__ = [
    "Bubblewrap",
    "FunctionTests",
    "InputOutput",
    "Limits",
    "RlimitsOnly",
    "Sandbox",
    "Tests",
    "Verdict",
    "check",
    "check_all",
    "check_sandbox",
    "run_script",
]
