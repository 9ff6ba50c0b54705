"""What answers a spec: the only place of the app that touches torch and the library.

One public module per kind of question, each defining `ANSWERS`; found by their files. Everything
here runs on the worker's thread.
"""

import gc
import os

import torch

from app.host import Job, Runner
from app.jobs._bench import Bench
from app.jobs._table import Answers, table
from app.specs import Spec
from workbench.core.errors import OptionError

__all__ = ["Answers", "start"]


def start() -> Runner:
    """Sets the worker's thread up and gives what answers specs there."""
    torch.set_num_threads(threads())  # noqa: TID251 - once, where the app starts
    answers = table()
    bench = Bench()
    gc.collect()
    gc.freeze()  # Streamlit collects after every script; what is loaded by now need not be walked

    def run(spec: Spec, job: Job) -> object:
        answer = answers.get(type(spec))
        if answer is None:
            raise OptionError("spec", "of a known kind", type(spec).__name__)
        return answer(bench, spec, job)

    return run


def threads() -> int:
    """How many threads a forward may use: one core is left to the server and the browser.

    Measured on two cores: with two threads a forward beside a busy server takes seven times longer,
    since the threads wait for one another. `OMP_NUM_THREADS` decides where it is set.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "")
    return int(asked) if asked.isdecimal() and int(asked) else max(1, (os.cpu_count() or 1) - 1)
