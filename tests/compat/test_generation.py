"""Classic generation and its cache: what is read in parts is what is read at once."""

from typing import Any

import pytest
import torch
from torch import Tensor

import workbench as wb
from tests import tiny
from tests.compat.classic import IDS, logits, raw
from workbench.compat.transformer_lens.hooked_transformer import HookedTransformer
from workbench.compat.transformer_lens.key_value_cache import HookedTransformerKeyValueCache
from workbench.core.errors import OptionError, ShapeError

kinds = pytest.mark.parametrize("kind", tiny.KINDS)


def greedy(facade: HookedTransformer, ids: Tensor, steps: int) -> Tensor:
    """The argmax of one uncached forward after another."""
    for _ in range(steps):
        ids = torch.cat([ids, logits(facade, ids)[:, -1:].argmax(-1)], 1)
    return ids


@kinds
@pytest.mark.parametrize("cached", [True, False])
def test_greedy_text_is_the_loop_of_uncached_forwards(kind: str, cached: bool) -> None:
    options: dict[str, Any] = {"do_sample": False, "use_past_kv_cache": cached}
    made = raw(kind).generate(IDS, 6, stop_at_eos=False, **options)
    assert torch.equal(made, greedy(raw(kind), IDS, 6))


def test_it_needs_no_tokenizer_and_no_id_is_taken_for_a_pad() -> None:
    bare = HookedTransformer.from_pretrained_no_processing(wb.load(tiny.hf("gpt2")))
    ids = torch.zeros(2, 3, dtype=torch.long)
    made = bare.generate(ids, 4, do_sample=False, return_type="tokens")
    assert torch.equal(made, greedy(bare, ids, 4))


@kinds
def test_a_batch_of_texts_says_what_each_says_alone(kind: str) -> None:
    texts = ["abcdef", "ab", "xyz"]
    together = raw(kind).generate(texts, 5, do_sample=False, stop_at_eos=False)
    assert together == [
        raw(kind).generate(text, 5, do_sample=False, stop_at_eos=False) for text in texts
    ]


def test_draws_depend_on_the_seed_and_touch_no_other() -> None:
    facade, state = raw("gpt2"), torch.random.get_rng_state()
    one = facade.generate(IDS, 8, seed=3, stop_at_eos=False)
    assert torch.equal(one, facade.generate(IDS, 8, seed=3, stop_at_eos=False))
    assert not torch.equal(one, facade.generate(IDS, 8, seed=50, stop_at_eos=False))
    assert torch.equal(one[1:], facade.generate(IDS[1:], 8, seed=4, stop_at_eos=False))
    facade.generate(IDS, 2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_truncation_and_penalties_are_the_classic_ones() -> None:
    facade = raw("gpt2")
    base = greedy(facade, IDS, 6)
    options: dict[str, Any] = {"stop_at_eos": False, "seed": 1}
    assert torch.equal(facade.generate(IDS, 6, top_k=1, top_p=1.0, **options), base)
    assert torch.equal(facade.generate(IDS, 6, top_p=1e-9, **options), base)
    assert torch.equal(facade.generate(IDS, 6, temperature=0.0, **options), base)
    same = torch.full((1, 4), 7)
    fine = facade.generate(same, 8, top_k=1, freq_penalty=1e4, **options)[0, 4:].tolist()
    assert len(set(fine)) == 8  # nothing is said twice
    assert 7 not in fine


def test_rows_that_have_ended_are_filled_up_and_all_ended_stops() -> None:
    facade = raw("gpt2")
    base = greedy(facade, IDS, 6)
    end = int(base[0, 9])
    made = facade.generate(IDS, 6, do_sample=False, eos_token_id=end)
    first = base[0, 7:].tolist().index(end)
    assert made[0, 7 + first :].tolist() == [end] * (made.shape[1] - 7 - first)
    alone = facade.generate(IDS[:1], 6, do_sample=False, eos_token_id=[end])
    assert alone[0].tolist() == base[0, : 7 + first + 1].tolist()


@kinds
def test_hooks_act_in_generation_as_in_a_forward_and_know_their_positions(kind: str) -> None:
    facade, seen = raw(kind), list[list[int]]()

    def double(value: Tensor, hook: Any) -> Tensor:
        seen.append(hook.positions[0].tolist())
        return value * 2

    with facade.hooks([("hook_embed", double)]):
        made = facade.generate(IDS, 3, do_sample=False, stop_at_eos=False)
        assert seen == [list(range(7)), [7], [8]]
        assert torch.equal(made, greedy(facade, IDS, 3))


def test_what_comes_back_is_what_is_asked_for() -> None:
    facade = raw("gpt2")
    options: dict[str, Any] = {"do_sample": False, "stop_at_eos": False}
    text = facade.generate("ab", 3, **options)
    assert isinstance(text, str)
    ids = facade.generate("ab", 3, return_type="tokens", **options)
    assert ids.shape == (1, 6)
    assert facade.tokenizer is not None
    assert text == facade.tokenizer.decode(ids[0].tolist(), skip_special=True)
    embeds = facade.generate("ab", 3, return_type="embeds", **options)
    assert embeds.shape == (1, 6, 24)
    with pytest.raises(OptionError, match="max_new_tokens must be 25 or less"):
        facade.generate(IDS, 26)
    wrong: Any = "text"
    with tiny.unchecked(), pytest.raises(OptionError, match="return_type must be 'input', 'str'"):
        facade.generate(IDS, 3, return_type=wrong)


# --- the cache ------------------------------------------------------------------------------------


def empty(facade: HookedTransformer, rows: int = 2) -> HookedTransformerKeyValueCache:
    """A new cache."""
    return HookedTransformerKeyValueCache.init_cache(facade.cfg, "cpu", rows)


@kinds
@pytest.mark.parametrize("sizes", [[7], [3, 4], [1] * 7])
def test_what_is_read_in_parts_is_what_is_read_at_once(kind: str, sizes: list[int]) -> None:
    facade, cache, start = raw(kind), empty(raw(kind)), 0
    parts: list[Tensor] = []
    for size in sizes:
        part = IDS[:, start : start + size]
        parts.append(logits(facade, part, past_kv_cache=cache))
        start += size
    tiny.close(torch.cat(parts, 1), logits(facade), 1e-5)
    assert cache[0].past_keys.shape == (2, 7, facade.cfg.groups, 8)
    assert cache.previous_attention_mask.tolist() == [[1] * 7] * 2


@kinds
def test_pads_in_the_cache_are_seen_by_nobody(kind: str) -> None:
    facade, cache = raw(kind), empty(raw(kind))
    texts = ["abcd", "xy"]
    facade(texts, past_kv_cache=cache, padding_side="left")
    more = torch.tensor([[97], [98]])
    found = logits(facade, more, past_kv_cache=cache)
    for row, text in enumerate(texts):
        whole = torch.tensor([[257, *text.encode(), int(more[row])]])
        tiny.close(found[row, -1], logits(facade, whole)[0, -1], 1e-5)


@kinds
def test_a_cache_holds_keys_as_they_are_before_they_are_turned(kind: str) -> None:
    """As in the classic: what `hook_k` leaves, edits too; values likewise."""
    facade, cache = raw(kind), empty(raw(kind))
    key = ("blocks.1.attn.hook_k", lambda value, hook: value * 2)
    facade.run_with_hooks(IDS[:, :4], past_kv_cache=cache, fwd_hooks=[key])
    seen = facade.run_with_cache(IDS[:, :4], fwd_hooks=[key], names_filter="*hook_[kv]")[1]
    for layer in range(3):
        assert torch.equal(cache[layer].past_keys, seen["k", layer])
        assert torch.equal(cache[layer].past_values, seen["v", layer])
    once = facade.run_with_hooks(IDS, fwd_hooks=[key])
    parts = facade.run_with_hooks(IDS[:, 4:], past_kv_cache=cache, fwd_hooks=[key])
    tiny.close(torch.as_tensor(parts), torch.as_tensor(once)[:, 4:], 1e-5)
    new = torch.ones(2, 1, facade.cfg.groups, 8)
    keys, values = cache[0].append(new, new)
    assert keys.shape[1] == values.shape[1] == cache[0].past_keys.shape[1] == 8
    with pytest.raises(ShapeError):
        cache[0].append(torch.ones(1, 1, 1, 8), torch.ones(1, 1, 1, 8))


@kinds
def test_a_part_of_the_blocks_reads_on_and_the_rest_is_not_made_up(kind: str) -> None:
    facade, cache = raw(kind), empty(raw(kind))
    for part in (IDS[:, :3], IDS[:, 3:]):
        found = logits(facade, part, past_kv_cache=cache, stop_at_layer=2)
    whole = facade.run_with_cache(IDS, names_filter="blocks.2.hook_resid_pre")[1]["resid_pre", 2]
    tiny.close(found, whole[:, 3:], 1e-5)
    assert cache[2].past_keys.shape[1] == 0
    with pytest.raises(ShapeError, match="past_kv_cache: expected 7 positions in layer 2"):
        facade(IDS[:, :1], past_kv_cache=cache)


def test_a_mask_of_all_tokens_says_of_those_in_the_cache_what_the_cache_says() -> None:
    facade, cache = raw("gpt2"), empty(raw("gpt2"))
    mask = torch.ones(2, 7)
    mask[0, :2] = 0
    facade(IDS[:, :4], attention_mask=mask[:, :4], past_kv_cache=cache)
    cache.freeze()
    new, rest = IDS[:, 4:], mask[:, 4:]
    whole = logits(facade, new, attention_mask=mask, past_kv_cache=cache)
    assert torch.equal(whole, logits(facade, new, attention_mask=rest, past_kv_cache=cache))
    tiny.close(whole, logits(facade, attention_mask=mask)[:, 4:], 1e-5)
    with pytest.raises(OptionError, match="attention_mask must be as in past_kv_cache"):
        facade(new, attention_mask=torch.ones(2, 7), past_kv_cache=cache)
    with pytest.raises(ShapeError, match=r"attention_mask: expected \(2, 3\)"):
        facade(new, attention_mask=torch.ones(2, 6), past_kv_cache=cache)


def test_a_frozen_cache_is_read_and_not_added_to() -> None:
    facade, cache = raw("gpt2"), empty(raw("gpt2"))
    facade(IDS[:, :4], past_kv_cache=cache)
    cache.freeze()
    keys = cache[1].past_keys.clone()
    for seed in (1, 2):
        tail = tiny.tokens(2, 3, seed=seed)
        found = logits(facade, tail, past_kv_cache=cache)
        whole = logits(facade, torch.cat([IDS[:, :4], tail], 1))
        tiny.close(found, whole[:, 4:], 1e-5)
        assert torch.equal(cache[1].past_keys, keys)
    cache.unfreeze()
    facade(tiny.tokens(2, 3), past_kv_cache=cache)
    assert cache[1].past_keys.shape[1] == 7


def test_a_cache_of_other_rows_is_refused() -> None:
    facade = raw("gpt2")
    with pytest.raises(ShapeError, match="past_kv_cache: expected 2 rows, got 3"):
        facade(IDS, past_kv_cache=empty(facade, 3))
    with pytest.raises(ShapeError):
        empty(facade)[0].append(torch.zeros(1, 1, 3, 8), torch.zeros(1, 1, 3, 8))
    with pytest.raises(OptionError, match="below 3"):
        _ = empty(facade)[3]
