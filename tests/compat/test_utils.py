"""The classic utils: TransformerLens's definitions, without its side effects."""

from collections.abc import Callable
from typing import Any, final

import numpy as np
import pytest
import torch
from torch import Tensor

from tests import tiny
from tests.compat.standin import BOTH, Golden, close
from workbench.compat.transformer_lens import utils
from workbench.compat.transformer_lens.factored_matrix import FactoredMatrix
from workbench.core.errors import EmptySelectionError, OptionError, ShapeError

EACH = pytest.mark.parametrize("gold", BOTH, ids=["ln", "rms"])


@pytest.mark.parametrize(
    ("asked", "name"),
    [
        (("k6",), "blocks.6.attn.hook_k"),
        (("k", 6), "blocks.6.attn.hook_k"),
        (("k", 6, "a"), "blocks.6.attn.hook_k"),
        (("pre2",), "blocks.2.mlp.hook_pre"),
        (("mlp_post", 1), "blocks.1.mlp.hook_post"),
        (("scale4ln1",), "blocks.4.ln1.hook_scale"),
        (("normalized", 27, "ln2"), "blocks.27.ln2.hook_normalized"),
        (("scale",), "ln_final.hook_scale"),
        (("embed",), "hook_embed"),
        (("resid_pre", 5), "blocks.5.hook_resid_pre"),
        (("resid_pre", 5, "block"), "blocks.5.hook_resid_pre"),
        (("resid_pre5",), "hook_resid_pre5"),
        (("attn_scores3",), "hook_attn_scores3"),
        (("attn", 5), "blocks.5.attn.hook_pattern"),
        (("attn_logits", 5), "blocks.5.attn.hook_attn_scores"),
        (("hook_embed",), "hook_embed"),
        (("blocks.1.attn.hook_q",), "blocks.1.attn.hook_q"),
        (("pre_linear", 0), "blocks.0.mlp.hook_pre_linear"),
        (("rot_k", 1), "blocks.1.attn.hook_rot_k"),
    ],
)
def test_names_follow_the_classic_shorthand(asked: tuple[Any, ...], name: str) -> None:
    assert utils.get_act_name(*asked) == name


@pytest.mark.parametrize(
    ("given", "mode", "kept"),
    [
        (2, "int", [2]),
        (-1, "int", [-1]),
        ((3,), "slice", [0, 1, 2]),
        ((1, 4), "slice", [1, 2, 3]),
        ((1, None, 2), "slice", [1, 3]),
        ([4, 0], "array", [4, 0]),
        (torch.tensor([4, 0]), "array", [4, 0]),
        (np.array([True, False, False, True, False]), "array", [0, 3]),
        (np.int64(2), "int", [2]),
        (torch.tensor(2), "int", [2]),
        ([], "array", []),
        (None, "identity", [0, 1, 2, 3, 4]),
    ],
)
def test_a_slice_takes_part_of_an_axis(given: Any, mode: str, kept: list[int]) -> None:
    one = utils.Slice(given)
    x = torch.arange(10).reshape(2, 5)
    assert one.mode == mode
    assert one.apply(x, dim=1).reshape(2, -1).tolist() == x[:, kept].tolist()
    assert one.indices(5).tolist() == kept
    assert one.apply(x, dim=1).ndim == (1 if mode == "int" else 2)
    assert utils.Slice.unwrap(given).apply(x, dim=1).ndim == 2


@pytest.mark.parametrize("given", [1.5, "1", (), (1, 2, 3, 4), True, [0.5]])
def test_what_is_no_slice_is_refused(given: Any) -> None:
    with tiny.unchecked(), pytest.raises(OptionError, match="the slice"):
        utils.Slice(given)


def test_a_slice_of_unknown_length_has_no_indices() -> None:
    with pytest.raises(OptionError, match="max_ctx"):
        utils.Slice((1, 2)).indices()
    one = utils.Slice(3)
    assert one.indices().tolist() == [3]
    assert utils.Slice.unwrap(one) is one
    assert repr(one) == "Slice: 3 Mode: int "


def test_the_loss_is_the_mean_over_predicted_tokens() -> None:
    logits, tokens = tiny.normal(2, 5, 7, dtype=torch.float64), tiny.tokens(2, 5, high=7)
    each = torch.stack(
        [-logits[:, i].log_softmax(-1)[[0, 1], tokens[:, i + 1]] for i in range(4)], 1
    )
    tiny.close(utils.lm_cross_entropy_loss(logits, tokens, per_token=True), each)
    tiny.close(utils.lm_cross_entropy_loss(logits, tokens), each.mean())


def test_pads_do_not_count_in_the_loss() -> None:
    logits, tokens = tiny.normal(2, 5, 7, dtype=torch.float64), tiny.tokens(2, 5, high=7)
    mask = torch.tensor([[1, 1, 1, 0, 0], [1, 1, 1, 1, 1]])
    each = utils.lm_cross_entropy_loss(logits, tokens, per_token=True)
    kept = torch.cat([each[0, :2], each[1]])
    tiny.close(utils.lm_cross_entropy_loss(logits, tokens, mask), kept.mean())
    masked = utils.lm_cross_entropy_loss(logits, tokens, mask, per_token=True)
    assert masked[0].tolist() == [*each[0, :2].tolist(), 0.0, 0.0]


def test_accuracy_is_the_share_of_hits() -> None:
    logits = torch.zeros(1, 4, 3)
    logits[0, [0, 1, 2], [2, 1, 0]] = 1.0
    tokens = torch.tensor([[0, 2, 1, 1]])
    assert utils.lm_accuracy(logits, tokens, per_token=True).tolist() == [[True, True, False]]
    assert utils.lm_accuracy(logits, tokens) == pytest.approx(2 / 3)


@EACH
def test_composition_scores_are_those_of_the_classic(gold: Golden) -> None:
    qk, ov = factors(gold, "Q", "K"), factors(gold, "V", "O")
    want = gold.expected("composition")
    close(utils.composition_scores(ov[0], qk[1]), want["crossed"])
    close(utils.composition_scores(ov[0], ov[1], broadcast_dims=False), want["paired"])
    close(utils.composition_scores(ov, qk)[0, :, 1], want["all_Q"][0, :, 1])
    close(utils.composition_scores(ov, qk.T)[0, :, 1], want["all_K"][0, :, 1])
    close(utils.composition_scores(ov, ov)[0, :, 1], want["all_V"][0, :, 1])
    close(qk.S, want["QK_S"])
    close(ov.eigenvalues.abs().sort(-1).values, want["OV_eigenvalues"])


def factors(gold: Golden, left: str, right: str) -> FactoredMatrix:
    """W_Q W_Kᵀ or W_V W_O of every layer and head, grouped ones repeated."""
    sides: list[Tensor] = []
    for part in (left, right):
        name = f"_W_{part}" if gold.name == "rms" and part in "KV" else f"W_{part}"
        stacked = torch.stack([gold.weights[f"blocks.{n}.attn.{name}"] for n in range(2)])
        sides.append(stacked.repeat_interleave(4 // stacked.shape[1], 1))
    return FactoredMatrix(sides[0], sides[1] if right == "O" else sides[1].mT)


def test_composition_is_the_ratio_of_norms() -> None:
    a, b = tiny.normal(5, 6, dtype=torch.float64), tiny.normal(6, 4, seed=1, dtype=torch.float64)
    left = FactoredMatrix(a, torch.eye(6, dtype=torch.float64))
    right = FactoredMatrix(b, torch.eye(4, dtype=torch.float64))
    tiny.close(utils.composition_scores(left, right), (a @ b).norm() / a.norm() / b.norm())
    with pytest.raises(ShapeError, match=r"left\.rdim = right\.ldim"):
        utils.composition_scores(right, left)


@final
class Pads:
    """What a tokenizer says of its pads."""

    def __init__(self, pad: int | None, bos: int, side: str = "right") -> None:
        self.pad_token_id, self.bos_token_id, self.padding_side = pad, bos, side


@pytest.mark.parametrize(
    ("pads", "bos", "tokens", "mask"),
    [
        (Pads(0, 9), True, [[9, 5, 0, 7, 0, 0]], [[1, 1, 1, 1, 0, 0]]),
        (Pads(0, 9, "left"), True, [[0, 0, 9, 5, 0, 7]], [[0, 0, 1, 1, 1, 1]]),
        (Pads(0, 0, "left"), True, [[0, 0, 0, 5, 0, 7]], [[0, 0, 1, 1, 1, 1]]),
        (Pads(0, 0, "left"), False, [[0, 0, 0, 5, 0, 7]], [[0, 0, 0, 1, 1, 1]]),
        (Pads(0, 0), True, [[0, 5, 7, 0, 0, 0]], [[1, 1, 1, 0, 0, 0]]),
        (Pads(None, 0), True, [[0, 0]], [[1, 1]]),
        (None, True, [[0, 0]], [[1, 1]]),
    ],
)
def test_only_leading_or_trailing_pad_ids_are_pads(
    pads: Pads | None, bos: bool, tokens: list[list[int]], mask: list[list[int]]
) -> None:
    assert utils.get_attention_mask(pads, torch.tensor(tokens), bos).tolist() == mask


def test_the_side_of_pads_is_an_argument_too() -> None:
    tokens, pads = torch.tensor([[0, 0, 5]]), Pads(0, 9, "right")
    assert utils.get_attention_mask(pads, tokens, True, padding_side="left").tolist() == [[0, 0, 1]]
    assert pads.padding_side == "right"
    with pytest.raises(OptionError, match="padding_side"):
        utils.get_attention_mask(Pads(0, 9, "both"), tokens, True)


def test_positions_count_real_tokens() -> None:
    mask = torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]])
    assert utils.get_offset_position_ids(0, mask).tolist() == [[0, 0, 0, 1, 2], [0, 1, 2, 3, 4]]
    assert utils.get_offset_position_ids(3, mask).tolist() == [[1, 2], [3, 4]]


def shares(draw: Callable[[Tensor, torch.Generator], Tensor], logits: Tensor) -> Tensor:
    """How often each token is drawn."""
    draws = torch.Generator().manual_seed(0)
    chosen = draw(logits.expand(4000, -1), draws)
    return torch.bincount(chosen, minlength=logits.shape[-1]) / 4000


def test_draws_have_the_tempered_and_truncated_distribution() -> None:
    logits = torch.tensor([[0.0, 1.0, 2.0, 2.5]])
    p = (logits[0] / 0.7).softmax(-1)
    plain = shares(lambda x, g: utils.sample_logits(x, temperature=0.7, generator=g), logits)
    close(plain, p, 0.03)  # 4 standard deviations of a share of 4,000 draws
    top = shares(lambda x, g: utils.sample_logits(x, top_k=2, top_p=0.1, generator=g), logits)
    close(top, torch.cat([torch.zeros(2), logits[0, 2:].softmax(-1)]), 0.03)
    kept = shares(lambda x, g: utils.sample_logits(x, top_p=0.6, generator=g), logits)
    close(kept, torch.cat([torch.zeros(2), logits[0, 2:].softmax(-1)]), 0.03)


def test_repeated_tokens_are_penalised_after_the_temperature() -> None:
    logits, tokens = torch.zeros(1, 3), torch.tensor([[1, 1, 2]])
    p = torch.tensor([0.0, -2.0, -1.0]).softmax(-1)
    drawn = shares(
        lambda x, g: utils.sample_logits(
            x, temperature=0.5, freq_penalty=1.0, tokens=tokens.expand(len(x), -1), generator=g
        ),
        logits,
    )
    close(drawn, p, 0.03)
    assert not logits.any()
    with pytest.raises(OptionError, match="tokens must be given"):
        utils.sample_logits(logits, freq_penalty=1.0)


def test_drawing_leaves_the_global_generator_alone() -> None:  # trap 33
    before, logits = torch.get_rng_state(), tiny.normal(3, 50)
    utils.sample_logits(logits)
    utils.sample_logits(logits, generator=torch.Generator().manual_seed(1))
    assert torch.equal(torch.get_rng_state(), before)


def test_with_a_generator_per_row_draws_do_not_depend_on_the_batch() -> None:  # trap 33
    logits = tiny.normal(4, 50)

    def drawn(rows: list[int]) -> list[int]:
        draws = [torch.Generator().manual_seed(row) for row in rows]
        return utils.sample_logits(logits[rows], generator=draws).tolist()

    assert drawn([0, 1, 2, 3]) == [drawn([row])[0] for row in range(4)]
    with pytest.raises(OptionError, match="one for each of 4 rows"):
        utils.sample_logits(logits, generator=[torch.Generator()])


def test_temperature_zero_takes_the_likeliest() -> None:
    logits = tiny.normal(3, 50)
    assert utils.sample_logits(logits, temperature=0.0).tolist() == logits.argmax(-1).tolist()


@pytest.mark.parametrize("option", [{"top_k": 0}, {"top_p": 0.0}, {"top_p": 1.5}])
def test_options_of_a_draw_are_checked(option: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        utils.sample_logits(tiny.normal(1, 5), **option)


def test_activations_are_those_of_the_papers() -> None:
    x = tiny.normal(3, 5, dtype=torch.float64)
    tanh = 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3)))
    tiny.close(utils.gelu_new(x), tanh)
    tiny.close(utils.gelu_fast(x), tanh)
    tiny.close(utils.solu(x), x * x.softmax(-1))


def test_small_helpers_say_what_they_see() -> None:
    x = tiny.normal(4, 4)
    assert utils.is_square(x)
    assert not utils.is_square(x[:3])
    assert utils.is_lower_triangular(x.tril())
    assert not utils.is_lower_triangular(x)
    assert not utils.is_lower_triangular(x[:3])
    assert torch.equal(utils.transpose(x[None]), x.T[None])
    assert utils.get_corner(x, 2).shape == (2, 2)
    assert torch.equal(utils.get_corner(FactoredMatrix(x, x)), (x @ x)[:3, :3])
    assert utils.remove_batch_dim(x[None]).shape == (4, 4)
    assert utils.remove_batch_dim(x).shape == (4, 4)
    assert utils.get_device().type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert utils.USE_DEFAULT_VALUE is None


@pytest.mark.parametrize(
    ("given", "array"),
    [
        (torch.ones(2, requires_grad=True), np.ones(2)),
        (torch.ones(2, dtype=torch.bfloat16), np.ones(2)),
        ([1, 2], np.array([1, 2])),
        ((1.5,), np.array([1.5])),
        (3, np.array(3)),
        (np.ones(2), np.ones(2)),
    ],
)
def test_anything_becomes_an_array(given: Any, array: Any) -> None:
    assert (utils.to_numpy(given) == array).all()


def test_gpu_memory_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    utils.print_gpu_mem("after loading")
    assert capsys.readouterr().out.startswith("after loading ~ 0.00 GiB")


@final
class Letters:
    """A tokenizer of letters: a is 1, b is 2 …; 0 ends a text."""

    bos_token_id, eos_token_id, pad_token_id = 30, 0, None

    def __call__(self, text: list[str], *, add_special_tokens: bool, verbose: bool) -> Any:
        assert not add_special_tokens
        return {"input_ids": [[ord(c) - 96 for c in one] for one in text]}


@final
class Texts:
    """A data set in memory, with the few methods of Hugging Face's that are needed."""

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns, self.format = columns, None

    @property
    def features(self) -> dict[str, Any]:
        return self.columns

    def remove_columns(self, column_names: str) -> "Texts":
        return Texts({k: v for k, v in self.columns.items() if k != column_names})

    def map(
        self, function: Any, *, batched: bool, num_proc: int | None, remove_columns: list[str]
    ) -> "Texts":
        assert batched
        assert set(self.columns) == set(remove_columns)
        return Texts(dict(function(self.columns)))

    def set_format(self, *, type: str, columns: list[str]) -> None:  # noqa: A002
        self.format = (type, columns)


def test_texts_become_equal_rows_with_an_end_between_them() -> None:
    data = Texts({"text": ["abc", "", "de"], "id": [0, 1, 2]})
    made = utils.tokenize_and_concatenate(data, Letters(), max_length=3, num_proc=1)
    assert isinstance(made, Texts)
    assert made.columns["tokens"].tolist() == [[30, 1, 2], [30, 3, 0], [30, 0, 4]]
    assert made.format == ("torch", ["tokens"])
    assert set(data.columns) == {"text", "id"}
    bare = utils.tokenize_and_concatenate(data, Letters(), max_length=3, add_bos_token=False)
    assert isinstance(bare, Texts)
    assert bare.columns["tokens"].tolist() == [[1, 2, 3], [0, 0, 4]]


def test_too_short_a_text_is_padded_to_one_row() -> None:
    made = utils.tokenize_and_concatenate(Texts({"text": ["ab"]}), Letters(), max_length=5)
    assert isinstance(made, Texts)
    assert made.columns["tokens"].tolist() == [[30, 1, 2, 0, 0]]
    none = utils.tokenize_and_concatenate(Texts({"text": []}), Letters(), max_length=5)
    assert isinstance(none, Texts)
    assert none.columns["tokens"].shape == (0, 5)
    with pytest.raises(OptionError, match="max_length"):
        utils.tokenize_and_concatenate(Texts({"text": ["ab"]}), Letters(), max_length=1)


@final
class Speller:
    """A model of letters that is sure of the next letter of the alphabet."""

    def __call__(self, input: Tensor) -> Tensor:  # noqa: A002
        return torch.nn.functional.one_hot((input + 1) % 128, 128).float() * 9

    def to_tokens(self, input: str, *, prepend_bos: bool | None) -> Tensor:  # noqa: A002
        return torch.tensor([[ord(c) for c in input]])

    def to_str_tokens(self, input: str, *, prepend_bos: bool | None) -> list[str]:  # noqa: A002
        return list(input)

    def to_string(self, tokens: Tensor) -> str:
        return "".join(map(chr, tokens.tolist()))


def test_an_answer_is_ranked_token_by_token(capsys: pytest.CaptureFixture[str]) -> None:
    utils.test_prompt("ab", "cdx", Speller(), prepend_space_to_answer=False, top_k=1)
    out = capsys.readouterr().out
    assert "Tokenized answer: ['c', 'd', 'x']" in out
    assert "Top 0th token. Logit:  9.00 Prob: 98.46% Token: |c|" in out
    assert "Ranks of the answer tokens: [('c', 0), ('d', 0), ('x', 1)]" in out


def test_of_several_answers_the_first_tokens_are_ranked(
    capsys: pytest.CaptureFixture[str],
) -> None:
    spell = Speller()
    utils.test_prompt("ab", ["cz", "xyz"], spell, False, print_details=False)
    assert capsys.readouterr().out == "Ranks of the answer tokens: [[('c', 0), ('x', 1)]]\n"
    with pytest.raises(EmptySelectionError):
        utils.test_prompt("ab", [], spell)
