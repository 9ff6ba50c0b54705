"""Loading from the cache: seconds after `import torch`, imports counted, and peak memory.

Whoever maps the weights reads them in the first forward; so the time to the first logits is told
too, whose forward is the same for both.

Each turn is a process of its own, since imports are paid once a process; contestants take turns,
and the first turn, which may have to read the files from disk, is not counted. Memory is what the
process holds at most beyond what torch takes, over the bytes of the weights; a mapped weight counts
once it has been read, so one forward is run. It is read from Linux's VmHWM: `getrusage` hands on
the peak of the process that started this one.
"""

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator

from benchmarks.harness import OURS
from benchmarks.peers import MODEL
from benchmarks.table import head, line

TURNS = 5
BEGIN = """
import json, time
import torch
def peak():
    lines = dict(line.split(":", 1) for line in open("/proc/self/status"))
    return int(lines["VmHWM"].split()[0]) * 1024
before, start = peak(), time.perf_counter()
"""
LOADERS = {
    OURS: """
import workbench as wb
model = wb.load({model!r})
took = time.perf_counter() - start
weights = sum({{p.data_ptr(): p.nbytes for p in model.stack.parameters()}}.values())
with torch.inference_mode():
    wb.run(model, "The capital of France is")
answered = time.perf_counter() - start
""",
    "transformers": """
from transformers import AutoModelForCausalLM, AutoTokenizer
model = AutoModelForCausalLM.from_pretrained({folder!r}, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained({folder!r})
took = time.perf_counter() - start
weights = sum({{p.data_ptr(): p.nbytes for p in model.parameters()}}.values())
with torch.inference_mode():
    model(**tokenizer("The capital of France is", return_tensors="pt"))
answered = time.perf_counter() - start
""",
}
END = "\nprint(json.dumps([took, answered, (peak() - before) / weights]))\n"


def table(most: int | None = None) -> Iterator[str]:
    """Seconds and memory of each."""
    turns = TURNS if most is None else min(TURNS, most)
    taken: dict[str, list[list[float]]] = {name: [] for name in LOADERS}
    for turn in range(turns + 1):
        for name in LOADERS if turn % 2 else reversed(LOADERS):
            taken[name].append(once(name))
    titles = ("load from the cache", "seconds", "to the first logits", "peak memory / weights")
    yield from head(titles)
    for name, measured in taken.items():
        medians = (statistics.median(column) for column in zip(*measured[1:], strict=True))
        yield line(name, *(f"{median:.2f}" for median in medians))
    yield ""
    yield f"Medians of {turns} processes each."
    yield ""


def once(name: str) -> list[float]:
    """Seconds to load, seconds to logits, and peak memory over the weights, in a fresh process."""
    from workbench.models.checkpoint import resolve

    script = BEGIN + LOADERS[name].format(model=MODEL, folder=str(resolve(MODEL))) + END
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    made = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=quiet
    )
    return json.loads(made.stdout.splitlines()[-1])
