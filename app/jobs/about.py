"""The model itself, and whether it can read a prompt.

Notable: where the default model is not on this machine, the built-in one answers instead.
"""

from app.host import Job
from app.jobs._bench import Bench, prompt_ids
from app.jobs._table import Answers
from app.results import AboutModel, Example, Readable, SteeringExample
from app.specs import About, Reads
from app.state import BUILT_IN
from workbench.core.errors import PromptError
from workbench.core.protocols import Model
from workbench.models.assets import DEFAULT, is_present
from workbench.models.transformer import Transformer

LANGUAGE = (
    Example(
        "who gets the drink",
        "When Mary and John went to the store, John gave a drink to",
        " Mary",
        " John",
    ),
    Example("a capital", "The capital of France is", " Paris", " London"),
    Example("induction", "The wug ran to Dax. The blick ran to Tol. The wug ran to D", "ax", "ol"),
    Example("agreement", "The keys to the old cabinet", " are", " is"),
)
LETTERS = (
    Example("repeated letters", "fbhadgecfbhad", "g", "a"),
    Example("another order", "hgfedcbahgf", "e", "d"),
)

SUBJECTS = (
    "My day was",
    "The weather is",
    "The film was",
    "Her voice is",
    "That meal was",
    "This place feels",
    "The news is",
    "Our trip was",
)
MOODS = SteeringExample(
    positive=tuple(f"{subject} wonderful" for subject in SUBJECTS),
    negative=tuple(f"{subject} terrible" for subject in SUBJECTS),
    prompt="My day was",
)
STEMS = ("abc", "efg", "cba", "gfe", "cfb")
ENDINGS = SteeringExample(  # less of "d", and the model goes on as if it had just read "h"
    positive=(*(f"{stem}d" for stem in STEMS), "bhgd"),
    negative=(*(f"{stem}h" for stem in STEMS), "bdgh"),
    prompt="cbhafdged",
)


def about(bench: Bench, spec: About, _: Job) -> AboutModel:
    """Loads the model and says what it is."""
    name, notice = spec.model, ""
    if name == DEFAULT and not is_present(name):
        name = BUILT_IN
        notice = (
            f"{DEFAULT} is not on this machine, so this is the built-in induction model: two "
            f"layers, built by hand, sixteen letters. Run “workbench pull {DEFAULT}” for a "
            "language model, then reload."
        )
    return _describe(bench.model(name), name, notice)


def reads(bench: Bench, spec: Reads, _: Job) -> Readable:
    """Whether the model's tokens spell the prompt, and its context holds it."""
    try:
        prompt_ids(bench.model(spec.model), spec.prompt)
    except PromptError:
        return Readable(readable=False)
    return Readable(readable=True)


def _describe(model: Model, name: str, notice: str) -> AboutModel:
    sizes = model.sizes
    return AboutModel(
        name=name,
        parameters=_parameters(model),
        n_layers=sizes.n_layers,
        n_heads=sizes.n_heads,
        n_key_value_heads=sizes.n_key_value_heads,
        d_model=sizes.d_model,
        n_ctx=sizes.n_ctx,
        device=str(model.device),
        dtype=str(model.dtype).removeprefix("torch."),
        examples=LETTERS if name == BUILT_IN else LANGUAGE,
        steering=ENDINGS if name == BUILT_IN else MOODS,
        notice=notice,
    )


def _parameters(model: Model) -> int:
    """How many weights, tied ones once; 0 where a foreign model does not say."""
    if not isinstance(model, Transformer):
        return 0
    return sum({p.data_ptr(): p.numel() for p in model.stack.parameters()}.values())


ANSWERS = Answers({About: about, Reads: reads})
