"""Loading from the cache: seconds after `import torch`, imports counted, and peak memory.

`python -m benchmarks.loading`. Each turn is a process of its own, since imports are paid once a
process; contestants take turns. Memory is what the process holds at most beyond what torch takes,
over the bytes of the weights; a mapped weight counts once it has been read, so one forward is run.
"""

import json
import os
import statistics
import subprocess
import sys

from benchmarks.harness import OURS, machine
from benchmarks.peers import MODEL

TURNS = 5
BEGIN = """
import json, resource, sys, time
import torch
def peak(): return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before, start = peak(), time.perf_counter()
"""
LOADERS = {
    OURS: """
import workbench as wb
model = wb.load({model!r})
took = time.perf_counter() - start
weights = sum({{p.data_ptr(): p.nbytes for p in model.stack.parameters()}}.values())
wb.run(model, "The capital of France is")
""",
    "transformers": """
from transformers import AutoModelForCausalLM, AutoTokenizer
from workbench.models.checkpoint import resolve
folder = str(resolve({model!r}))
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
took = time.perf_counter() - start
weights = sum({{p.data_ptr(): p.nbytes for p in model.parameters()}}.values())
with torch.inference_mode():
    model(**tokenizer("The capital of France is", return_tensors="pt"))
""",
}
END = "\nprint(json.dumps([took, (peak() - before) / weights]))\n"


def once(name: str) -> tuple[float, float]:
    """Seconds, and peak memory over the weights, in a fresh process."""
    script = BEGIN + LOADERS[name].format(model=MODEL) + END
    quiet = {**os.environ, "HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}
    made = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True, env=quiet
    )
    took, memory = json.loads(made.stdout.splitlines()[-1])
    return took, memory


def main() -> None:
    """Prints the table."""
    turns = {name: [once(name) for _ in range(TURNS + 1)][1:] for name in LOADERS}
    lines = ["| load from the cache | seconds | peak memory / weights |", "|---|---|---|"]
    for name, measured in turns.items():
        took, memory = (statistics.median(column) for column in zip(*measured, strict=True))
        lines.append(f"| {name} | {took:.2f} | {memory:.2f} |")
    sys.stdout.write("\n".join([*lines, "", f"{machine()}; medians of {TURNS} processes."]) + "\n")


if __name__ == "__main__":
    main()
