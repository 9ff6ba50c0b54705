"""Models from a config alone, and saving them for transformers."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import workbench as wb
from tests import tiny
from tests.families import EXAMPLES
from tests.two_stacks import TWO_STACKS
from workbench.core.errors import OptionError, UnknownNameError
from workbench.models.fresh import INITS, Drawn
from workbench.models.transformer import Transformer
from workbench.models.two_stream import TwoStream
from workbench.models.views.stacks import words_of

BUILD = {name: example.build for name, example in {**EXAMPLES, **TWO_STACKS}.items()}
families = pytest.mark.parametrize("family", list(BUILD))
# Rows of positions that no token has: they are saved as zeros.
UNREAD = {("opt", "model.decoder.embed_positions.weight"): 2}
LLAMA = {"model_type": "llama", **tiny.LLAMA}
GPT2 = {"model_type": "gpt2", **tiny.GPT2}


def config_of(family: str) -> dict[str, Any]:
    """The tiny config of a family, as a table."""
    return BUILD[family]().config.to_dict()


def read_by_transformers(model: Transformer, folder: Path) -> Any:
    """What transformers makes of a saved model; nothing may be missing or left over."""
    import transformers

    known: Any = transformers
    writes = model.causal or isinstance(model, TwoStream)  # as transformers sees it
    auto = known.AutoModelForCausalLM if writes else known.AutoModelForMaskedLM
    if model.sizes.n_encoder_layers:
        auto = known.AutoModelForSeq2SeqLM
    theirs, told = auto.from_pretrained(str(folder), dtype="auto", output_loading_info=True)
    assert not told["missing_keys"]
    assert not told["unexpected_keys"]
    return theirs.eval()


def said_by(theirs: Any, ids: torch.Tensor, target: torch.Tensor | None) -> torch.Tensor:
    """Logits of transformers' model."""
    more = {} if target is None else {"decoder_input_ids": target}
    with torch.no_grad():
        return theirs(input_ids=ids, **more).logits


def target_of(model: Transformer) -> torch.Tensor | None:
    """What a decoder is given that has an encoder."""
    return tiny.tokens(2, 4, seed=1) if model.sizes.n_encoder_layers else None


# --- new --------------------------------------------------------------------------------------


@families
def test_a_config_and_a_seed_are_a_model(family: str) -> None:
    config, ids = config_of(family), tiny.tokens(2, 5)
    one, same, other = (wb.models.new(config, seed=seed) for seed in (1, 1, 2))
    assert tiny.digest(one) == tiny.digest(same) != tiny.digest(other)
    assert one.fingerprint == same.fingerprint != other.fingerprint
    assert bool(wb.run(one, ids, target=target_of(one)).logits.isfinite().all())
    assert not any(weight.requires_grad for weight in one.stack.parameters())


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    before = torch.get_rng_state()
    one = wb.models.new(LLAMA)
    torch.rand(3)
    other = wb.models.new(LLAMA)
    torch.set_rng_state(before)
    assert tiny.digest(one) == tiny.digest(other)
    wb.models.new(GPT2)
    assert torch.equal(torch.get_rng_state(), before)


@families
def test_norms_begin_as_transformers_own_do(family: str) -> None:
    theirs = BUILD[family]()
    fresh = type(theirs)(theirs.config)  # as transformers initialises it
    expected, ours = wb.load(fresh), wb.models.new(theirs.config)
    states = dict(expected.stack.named_parameters()), dict(ours.stack.named_parameters())
    for name, weight in states[0].items():
        drawn = family == "gpt_oss" and "ln" not in name  # where theirs begins with noise
        if weight.ndim == 1 and not drawn:
            tiny.close(states[1][name], weight)


def test_gpt2s_initialisation_is_smaller_where_the_stream_is_written() -> None:
    model = wb.models.new({**GPT2, "n_embd": 192, "n_inner": None, "n_layer": 8})
    for name, weight in model.stack.named_parameters():
        expected = 0.02 / 4 if name.endswith(("attn.o.weight", "mlp.down.weight")) else 0.02
        if weight.ndim == 2:
            assert float(weight.std()) == pytest.approx(expected, rel=0.05), name
    assert model.stack.embed.tokens.data_ptr() == words_of(model.stack).weight.data_ptr()  # tied


@pytest.mark.parametrize(
    ("init", "deviation"),
    [
        ("normal", lambda out, read: 0.02),
        ("xavier", lambda out, read: (2 / (out + read)) ** 0.5),
        ("kaiming", lambda out, read: (2 / read) ** 0.5),
        ("orthogonal", lambda out, read: max(out, read) ** -0.5),
    ],
    ids=["normal", "xavier", "kaiming", "orthogonal"],
)
def test_each_initialisation_has_its_spread(
    init: str, deviation: Callable[[int, int], float]
) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 320, "head_dim": 32}
    model = wb.models.new({**LLAMA, **sizes}, init=init)
    for name, weight in model.stack.blocks.named_parameters():
        if weight.ndim == 2:
            assert float(weight.std()) == pytest.approx(deviation(*weight.shape), rel=0.05), name


def test_orthogonal_matrices_are() -> None:
    model = wb.models.new(LLAMA, init="orthogonal")
    for weight in model.stack.blocks.parameters():
        if weight.ndim == 2:
            short = weight if weight.shape[0] <= weight.shape[1] else weight.T
            tiny.close(short @ short.T, torch.eye(len(short)), 1e-5)
    assert set(INITS) == {"gpt2", "normal", "xavier", "kaiming", "orthogonal"}


def test_an_initialisation_of_ones_own_is_asked_for_every_matrix() -> None:
    asked: list[Drawn] = []

    def ones(matrix: Drawn, draws: torch.Generator) -> torch.Tensor:
        asked.append(matrix)
        return torch.ones(matrix.shape)

    model = wb.models.new(GPT2, init=ones)
    assert bool((model.stack.embed.tokens == 1).all())
    assert sum(matrix.embeds for matrix in asked) == 2
    assert sum(matrix.writes for matrix in asked) == 2 * model.sizes.n_layers


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"config": {}}, OptionError, "model_type"),
        ({"config": 3}, OptionError, "config must be"),
        ({"config": {**LLAMA, "model_type": "llamma"}}, UnknownNameError, "Nearest.*llama"),
        ({"init": "xaver"}, UnknownNameError, "Nearest.*xavier"),
        ({"init": lambda matrix, draws: torch.ones(1)}, OptionError, "a tensor of shape"),
        ({"seed": -1}, OptionError, "seed"),
        ({"seed": 1.5}, OptionError, "seed"),
        ({"dtype": torch.int8}, OptionError, "dtype"),
        ({"tokenizer": 3}, OptionError, "tokenizer"),
    ],
    ids=["no type", "no config", "type", "init", "shape", "seed", "half", "dtype", "tokenizer"],
)
def test_what_cannot_be_built_is_refused(
    given: dict[str, Any], error: type[Exception], message: str, unchecked: None
) -> None:
    options: dict[str, Any] = {"config": LLAMA, **given}
    with pytest.raises(error, match=message):
        wb.models.new(**options)


# --- save -------------------------------------------------------------------------------------


@families
def test_transformers_loads_what_was_saved(family: str, tmp_path: Path) -> None:
    config, ids = config_of(family), tiny.tokens(2, 7)
    ours = wb.models.new(config, seed=3, init="xavier")
    theirs = read_by_transformers(ours, wb.save(ours, tmp_path / "model"))
    target = target_of(ours)
    said = wb.run(ours, ids, target=target).logits
    tiny.close(said, said_by(theirs, ids, target), 1e-5)
    again = wb.load(tmp_path / "model")
    assert tiny.digest(again) == tiny.digest(ours)


@families
def test_what_transformers_saved_is_saved_as_it_was(family: str, tmp_path: Path) -> None:
    theirs = BUILD[family]()
    ours = wb.load(theirs)
    back = read_by_transformers(ours, wb.save(ours, tmp_path / "model"))
    expected = dict(theirs.named_parameters())
    assert dict(back.named_parameters()).keys() == expected.keys()
    for name, weight in back.named_parameters():
        rows = UNREAD.get((family, name), 0)
        assert torch.equal(weight[rows:], expected[name][rows:]), name
        assert not weight[:rows].any()


def test_an_unembedding_of_its_own_is_saved_beside_an_embedding_that_its_class_ties(
    tmp_path: Path,
) -> None:
    theirs = TWO_STACKS["t5"].build(**TWO_STACKS["t5"].variants["1.1, untied"])
    ours, ids, target = wb.load(theirs), tiny.tokens(2, 7), tiny.tokens(2, 4, seed=1)
    again = wb.load(wb.save(ours, tmp_path / "model"))
    assert tiny.digest(again) == tiny.digest(ours)
    expected = said_by(theirs, ids, target)
    tiny.close(wb.run(again, ids, target=target).logits, expected, 1e-5)


HEADED = [
    (name, variant)
    for name, example in EXAMPLES.items()
    for variant, changes in example.variants.items()
    if "head" in changes
]


@pytest.mark.parametrize(("family", "variant"), HEADED, ids=[": ".join(one) for one in HEADED])
def test_a_model_with_another_head_is_saved_as_that(
    family: str, variant: str, tmp_path: Path
) -> None:
    theirs = BUILD[family](**EXAMPLES[family].variants[variant])
    ours = wb.load(theirs)
    again = wb.load(wb.save(ours, tmp_path / "model"))
    assert tiny.digest(again) == tiny.digest(ours)
    back = type(theirs).from_pretrained(str(tmp_path / "model"))
    expected = dict(theirs.named_parameters())
    for name, weight in back.named_parameters():
        assert torch.equal(weight, expected[name]), name


def test_the_dtype_and_an_untied_unembedding_are_kept(tmp_path: Path) -> None:
    config = {**GPT2, "tie_word_embeddings": False}
    ours = wb.models.new(config, dtype=torch.bfloat16)
    theirs = read_by_transformers(ours, wb.save(ours, tmp_path))
    assert theirs.dtype == torch.bfloat16
    assert not torch.equal(theirs.lm_head.weight, theirs.transformer.wte.weight)


def test_a_folder_that_holds_something_is_left_alone(tmp_path: Path) -> None:
    model = wb.models.new(LLAMA)
    (tmp_path / "mine.txt").write_text("precious")
    with pytest.raises(OptionError, match="empty, or overwrite=True"):
        wb.save(model, tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["mine.txt"]
    assert tiny.digest(wb.load(wb.save(model, tmp_path, overwrite=True))) == tiny.digest(model)


def test_a_view_is_not_saved_and_says_why(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="views of folded weights have none"):
        wb.save(tiny.model().folded().model, tmp_path / "x")


@pytest.mark.asset
def test_the_default_model_is_saved_with_its_tokenizer(
    default_model: Transformer, tmp_path: Path
) -> None:
    again = wb.load(wb.save(default_model, tmp_path), rearrange=False)
    assert tiny.digest(again) == tiny.digest(default_model)
    one, other = again.tokenizer, default_model.tokenizer
    assert one is not None
    assert other is not None
    text = "Ünïcödé 12\n\n<|im_start|> ok"
    assert one.encode(text) == other.encode(text)
    assert (one.bos_id, one.eos_ids) == (other.bos_id, other.eos_ids)
