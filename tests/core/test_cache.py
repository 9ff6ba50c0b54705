"""The key-value cache: filled in order, read back as views, and never beyond its capacity."""

import pytest
import torch

from tests import tiny
from workbench.core.cache import KeptKeys, KeyValueCache, SuffixCache
from workbench.core.errors import PromptError
from workbench.core.protocols import new_cache
from workbench.core.tap import UNTAPPED

CPU = torch.device("cpu")


def test_keys_and_values_are_read_back_as_they_were_written() -> None:
    cache = KeyValueCache(2, 3, 5, 2, 4, dtype=torch.float32, device=CPU)
    keys, values = tiny.normal(2, 3, 2, 5, 4), tiny.normal(2, 3, 2, 5, 4, seed=1)
    start = 0
    for size in (2, 1, 2):
        stop = start + size
        cache.reserve(torch.ones(3, size, dtype=torch.bool), padded=False)
        for layer in range(2):
            k, v = cache.append(
                layer, keys[layer, :, :, start:stop], values[layer, :, :, start:stop]
            )
            assert torch.equal(k, keys[layer, :, :, :stop])
            assert torch.equal(v, values[layer, :, :, :stop])
        start = stop
        assert cache.length == stop


def test_it_remembers_which_columns_are_pads() -> None:
    cache = KeyValueCache(1, 2, 4, 1, 2, dtype=torch.float32, device=CPU)
    assert not cache.padded
    first = torch.tensor([[False, True], [True, True]])
    assert torch.equal(cache.reserve(first, padded=True), first)
    one = torch.ones(2, 1, dtype=torch.bool)
    assert torch.equal(cache.reserve(one, padded=False), torch.cat([first, one], 1))
    assert cache.padded  # once padded, always padded


def test_it_does_not_grow_beyond_its_capacity() -> None:
    cache = KeyValueCache(1, 1, 2, 1, 2, dtype=torch.float32, device=CPU)
    cache.reserve(torch.ones(1, 2, dtype=torch.bool), padded=False)
    with pytest.raises(PromptError, match="The cache holds 2 positions, 3 are needed"):
        cache.reserve(torch.ones(1, 1, dtype=torch.bool), padded=False)
    assert cache.length == 2


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_model_s_cache_has_its_sizes_and_dtype(kind: str, dtype: torch.dtype) -> None:
    model = tiny.model(kind, dtype)
    cache = new_cache(model, 2, 7)
    cache.reserve(torch.ones(2, 3, dtype=torch.bool), padded=False)
    heads, width = model.sizes.n_key_value_heads, model.sizes.d_head
    part = torch.ones(2, heads, 3, width, dtype=dtype)
    keys, values = cache.append(model.sizes.n_layers - 1, part, part)
    assert keys.shape == values.shape == (2, heads, 3, width)
    assert keys.dtype is dtype


@pytest.mark.parametrize("kind", tiny.KINDS)
@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("column", [1, 4, 6])
def test_a_suffix_on_kept_keys_is_the_end_of_the_whole_pass(
    kind: str, side: str, column: int
) -> None:
    model = tiny.model(kind, torch.float64)
    batch = tiny.batch([[1, 2, 3, 4, 5, 6, 7], [8, 9, 10, 11]], [7, 4], side)
    kept = KeptKeys(padded=batch.real is not None)
    with torch.no_grad():
        resid = model.embed(batch, UNTAPPED)
        whole = model.layers(resid, batch, UNTAPPED, cache=kept)
        part = batch.since(column).repeat(3)
        suffix = SuffixCache(kept, batch.real, column, 3)
        again = model.layers(model.embed(part, UNTAPPED), part, UNTAPPED, cache=suffix)
    expected = whole[:, column:].repeat(3, 1, 1)
    real = torch.ones_like(part.tokens).bool() if part.real is None else part.real
    torch.testing.assert_close(again[real], expected[real], rtol=0, atol=1e-12)
    assert torch.equal(part.positions[real], batch.positions[:, column:].repeat(3, 1)[real])
