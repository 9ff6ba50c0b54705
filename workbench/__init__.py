"""The workbench: look into language models, and control them.

    load       a name, folder, file or Hugging Face model  ->  a frozen Model
    run        one forward with changes and recordings     ->  a Trace
    load_trace opens the files of one that was spilled     ->  a SpilledTrace
    estimate   the memory a run would take, before it runs
    embed_texts a vector for each text, by an encoder
    batch_of   prompts as a Batch, of tokens with types, asked about at a position
    generate   text under a plan, cached or streamed       ->  a Generation or its Pieces
    gradients  of a metric, at sites; jvp and vjp, of sites by sites
    sweep      many one-change runs as few batches
    gradients  of a metric, at sites
    sweep      many one-change runs as few batches; a Grid names what varies
    harvest    activations of many texts, in memory; harvest_into streams them into sinks,
               store_activations onto a disk, from where ActivationStore reads

The nouns are in `ARCHITECTURE.md`; methods are found in `workbench.attribution`, `.steering` and
`.lenses`, probes in `probes`.
"""

from workbench.core import gates, metrics, schedules, scopes, sinks
from workbench.core import operators as ops
from workbench.core.activation_store import ActivationStore
from workbench.core.activation_writer import store_activations, store_size
from workbench.core.data import Batch, Contrast, batch_of
from workbench.core.direction import Direction
from workbench.core.errors import WorkbenchError
from workbench.core.estimate import Estimate, estimate
from workbench.core.generate import Generation, Piece, Stream, generate
from workbench.core.gradients import Tangents, gradients, jvp, vjp
from workbench.core.grid import Grid
from workbench.core.harvest import Harvest, harvest, harvest_into
from workbench.core.interventions import Intervention
from workbench.core.ledger import Receipt
from workbench.core.metrics import Metric
from workbench.core.pace import Pace
from workbench.core.plan import Plan
from workbench.core.protocols import Model
from workbench.core.provenance import package_version
from workbench.core.reading import Spans
from workbench.core.result import Result, load_result
from workbench.core.run import run
from workbench.core.sites import Site
from workbench.core.spilled import SpilledTrace, load_trace
from workbench.core.sweep import sweep
from workbench.core.sweep_result import SweepResult
from workbench.core.tap import Tap
from workbench.core.trace import Trace
from workbench.models.load import load
from workbench.models.pooling import embed_texts

__version__ = package_version()
__all__ = [
    "ActivationStore",
    "Batch",
    "Contrast",
    "Direction",
    "Estimate",
    "Generation",
    "Grid",
    "Harvest",
    "Intervention",
    "Metric",
    "Model",
    "Pace",
    "Piece",
    "Plan",
    "Receipt",
    "Result",
    "Site",
    "Spans",
    "SpilledTrace",
    "Stream",
    "SweepResult",
    "Tangents",
    "Tap",
    "Trace",
    "WorkbenchError",
    "batch_of",
    "embed_texts",
    "estimate",
    "gates",
    "generate",
    "gradients",
    "harvest",
    "harvest_into",
    "jvp",
    "load",
    "load_result",
    "load_trace",
    "metrics",
    "ops",
    "run",
    "schedules",
    "scopes",
    "sinks",
    "store_activations",
    "store_size",
    "sweep",
    "vjp",
]
