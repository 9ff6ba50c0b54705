"""What a machine has, and whether a model says here what transformers says."""

import os
import platform
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import final

import torch
from typing_extensions import override

from workbench.core.provenance import package_version
from workbench.core.run import run
from workbench.models.cache import workbench_cache
from workbench.models.checkpoint import resolve
from workbench.models.load import load

PACKAGES = (
    "torch transformers tokenizers safetensors gguf huggingface-hub transformer-lens einops "
    "jaxtyping scikit-learn scipy numpy streamlit plotly"
).split()
PROMPTS = (
    "The capital of France is",
    "When Mary and John went to the store, John gave a drink to",
    "def fibonacci(n):\n    ",
    "1, 2, 3, 4,",
    "Ünïcödé – 東京 🙂 ok",
)
TOLERANCE = 1e-4  # float32, two orders of the same sums

Facts = tuple[str, list[tuple[str, str]]]


@final
@dataclass(frozen=True)
class Parity:
    """The largest difference of logits between this workbench and transformers."""

    model: str
    worst: float
    prompts: int

    @property
    def passed(self) -> bool:
        """Whether it is within rounding of float32."""
        return self.worst <= TOLERANCE

    @override
    def __str__(self) -> str:
        verdict = "equal" if self.passed else "NOT equal"
        return (
            f"{self.model}: largest difference of logits to transformers {self.worst:.2e} over "
            f"{self.prompts} prompts ({verdict} within {TOLERANCE:.0e})"
        )


def facts() -> Iterator[Facts]:
    """Versions, then the machine."""
    packages = [("interp-workbench", package_version()), ("python", sys.version.split()[0])]
    yield "versions", [*packages, *((name, _version(name)) for name in PACKAGES)]
    yield (
        "machine",
        [
            ("system", platform.platform()),
            ("processors", str(os.cpu_count())),
            ("torch threads", str(torch.get_num_threads())),
            ("gpu", torch.cuda.get_device_name(0) if torch.cuda.is_available() else "none"),
            ("memory free", _memory()),
            ("cache", str(workbench_cache())),
        ],
    )


def parity(model: str) -> Parity:
    """Compares with transformers on a few prompts, in float32.

    Raises:
        UnknownNameError: If there is no such model.
    """
    from transformers import AutoModelForCausalLM

    ours = load(model, dtype=torch.float32)
    theirs = AutoModelForCausalLM.from_pretrained(resolve(model), dtype=torch.float32).eval()
    worst = 0.0
    for prompt in PROMPTS:
        trace = run(ours, prompt)
        with torch.no_grad():
            expected = theirs(trace.batch.tokens).logits
        worst = max(worst, float((trace.logits - expected).abs().max()))
    return Parity(model, worst, len(PROMPTS))


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def _memory() -> str:
    file = Path("/proc/meminfo")
    if not file.exists():
        return "unknown on this system"
    kilobytes = {line.split(":")[0]: line.split()[1] for line in file.read_text().splitlines()}
    free, total = int(kilobytes["MemAvailable"]), int(kilobytes["MemTotal"])
    return f"{free / 2**20:.1f} of {total / 2**20:.1f} GiB"
