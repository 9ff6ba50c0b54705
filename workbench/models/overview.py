"""What each family supports, as the registry and the families themselves say it: one table.

Notable: nothing here is a list to keep. A family's sites are those of a stack it builds, without
memory, of the default config that transformers has for it; `docs/families.md` is this table.
"""

import importlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, final

from workbench.core.errors import OptionError
from workbench.core.result import Table
from workbench.core.sites import Sites
from workbench.models.config import Config
from workbench.models.encoder_decoder import TwoStacks
from workbench.models.family import FAMILIES
from workbench.models.load import empty
from workbench.models.transformer import Stack
from workbench.models.two_stream import TwoStreamStack

if TYPE_CHECKING:
    from transformers import PretrainedConfig

# What a kind of model is asked to do, and transformers' table of classes that do it.
TASKS: Mapping[str, str] = MappingProxyType(
    {
        "decoder": "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
        "encoder": "MODEL_FOR_MASKED_LM_MAPPING_NAMES",
        "encoder–decoder": "MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES",
    }
)
# What the classes of transformers end in, and the reader of each kind.
READERS: Mapping[str, str] = MappingProxyType(
    {
        "ForCausalLM": "AutoModelForCausalLM",
        "LMHeadModel": "AutoModelForCausalLM",
        "ForMaskedLM": "AutoModelForMaskedLM",
        "ForPreTraining": "AutoModelForPreTraining",
        "ForNextSentencePrediction": "AutoModelForNextSentencePrediction",
        "ForConditionalGeneration": "AutoModelForSeq2SeqLM",
        "ForSequenceClassification": "AutoModelForSequenceClassification",
        "ForTokenClassification": "AutoModelForTokenClassification",
    }
)
HEADER = """# Model families

Every family here is native: each site of the forward can be read and changed, and `wb.verify` holds
a model of it to transformers. This table is written by `workbench models --markdown`, from the
families themselves.

"""


@final
@dataclass(frozen=True)
class Known:
    """One family: what transformers calls it, what it is, and which sites it has."""

    name: str
    about: str
    model_type: str
    architecture: str
    kind: str
    sites: tuple[str, ...]  # names with {} in the layer's place, in forward order


TAIL = """
## The long tail

Of the architectures below there is no family. `wb.load` takes them all the same and runs them
through transformer-lens (see [foreign models](foreign.md)), after it has held what that says to
transformers. Those that are no single stack of blocks are refused, with the reason.

"""


def families() -> tuple[Known, ...]:
    """Every native family; imports transformers, which takes seconds."""
    return tuple(_known(name) for name in FAMILIES)


def table(known: Sequence[Known]) -> Table:
    """One row per family; what is special to it are the sites that at most half of them have."""
    places = [dict.fromkeys(map(_short, one.sites)) for one in known]
    having = Counter(name for found in places for name in found)
    special = [
        ", ".join(name for name in found if 2 * having[name] <= len(known)) for found in places
    ]
    return Table(
        {
            "family": [one.name for one in known],
            "kind": [one.kind for one in known],
            "in transformers": [one.architecture for one in known],
            "what it is": [one.about for one in known],
            "sites": [len(one.sites) for one in known],
            "of which few others have": special,
        }
    )


def markdown(known: Sequence[Known]) -> str:
    """The same as a document."""
    made = table(known)
    lines = [" | ".join(made.columns), " | ".join("---" for _ in made.columns)]
    for row in made.rows():
        code = {"family", "in transformers"}
        cells = (f"`{cell}`" if name in code else str(cell) for name, cell in row.items())
        lines.append(" | ".join(cells))
    listed = ", ".join(f"`{name}`" for name in long_tail(known))
    return HEADER + "".join(f"| {line} |\n" for line in lines) + TAIL + f"{listed}\n"


def long_tail(known: Sequence[Known]) -> tuple[str, ...]:
    """The language models of transformers that transformer-lens bridges and no family here is.

    Those that transformers itself has not are left out: they come with code of their own, which is
    never run here. Imports transformer-lens, which takes seconds.

    Raises:
        MissingDependencyError: If transformer-lens is not installed.
    """
    import transformers

    from workbench.models.foreign import architectures

    native = {one.architecture for one in known}
    theirs = set(dir(transformers))
    others = (name for name in architectures() if name in theirs and name not in native)
    return tuple(name for name in others if name.endswith("ForCausalLM"))


def default_config(name: str) -> "PretrainedConfig":
    """The config that transformers has for a family's models by default.

    Raises:
        OptionError: If transformers knows no models of that name.
    """
    from transformers import AutoConfig
    from transformers.models.auto import configuration_auto

    types: Mapping[str, str] = vars(configuration_auto)["CONFIG_MAPPING_NAMES"]
    model_type = next((known for known in types if known.replace("-", "_") == name), None)
    if model_type is None:
        raise OptionError("family", "a file named like one of transformers' model types", name)
    untyped: Any = AutoConfig
    return untyped.for_model(model_type)


def _known(name: str) -> Known:
    config: Any = default_config(name)
    stack = empty(FAMILIES[name], Config(config.model_type, config.to_dict()))
    kind = kind_of(stack)
    module = importlib.import_module(type(FAMILIES[name]).__module__)
    about = (module.__doc__ or "").strip().partition("\n")[0].rstrip(".")
    architecture = architecture_of(config.model_type, kind)
    return Known(name, about, config.model_type, architecture, kind, _names(stack.sites))


def _names(sites: Sites) -> tuple[str, ...]:
    return tuple(dict.fromkeys(site.name for site in sites))


def architecture_of(model_type: str, kind: str) -> str:
    """What transformers calls its class of a model type for what a kind does.

    Raises:
        OptionError: If it has none.
    """
    from transformers.models.auto import modeling_auto

    tables = vars(modeling_auto)
    for table in (TASKS[kind], TASKS["decoder"], "MODEL_MAPPING_NAMES"):
        found = tables[table].get(model_type)
        if found is not None:  # an encoder may be known as what it writes with
            return found if isinstance(found, str) else found[0]
    raise OptionError("model_type", "one that transformers has a class for", model_type)


def reader_of(architecture: str) -> Any:
    """The class of transformers that reads an architecture; one without a head for other names."""
    from transformers.models.auto import modeling_auto

    ending = next((end for end in READERS if architecture.endswith(end)), "")
    return vars(modeling_auto)[READERS.get(ending, "AutoModel")]


def kind_of(stack: Stack) -> str:
    """One of `TASKS`."""
    if isinstance(stack, TwoStacks):
        return "encoder–decoder"
    writes = stack.causal or isinstance(stack, TwoStreamStack)  # as transformers sees it
    return "decoder" if writes else "encoder"


def _short(name: str) -> str:
    return name.rpartition("{}.")[2]
