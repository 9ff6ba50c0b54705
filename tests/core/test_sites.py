"""Sites print and parse, and are chosen by name, glob, list and predicate."""

import contextlib
import copy
import dataclasses
import pickle
import re
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from tests import tiny
from workbench.core.axes import AXES
from workbench.core.errors import EmptySelectionError, UnknownNameError
from workbench.core.sites import Site, is_glob, one_site, patterns_of, select

KNOWN = tiny.model("llama").sites


@pytest.mark.parametrize("kind", tiny.KINDS)
def test_every_site_of_a_model_prints_and_parses(kind: str) -> None:
    for site in tiny.model(kind).sites:
        assert Site.parse(str(site)) == site
        assert eval(repr(site), {"Site": Site.parse}) == site
        assert site.axes == tuple(AXES[site.name].split())


@given(name=st.sampled_from(sorted(AXES)), layer=st.integers(0, 999_999))
def test_every_known_name_prints_and_parses_at_every_layer(name: str, layer: int) -> None:
    site = Site(name, layer if "{}" in name else None)
    assert Site.parse(str(site)) == site


@given(text=st.text(max_size=40) | st.from_regex(r"blocks\.\d+\.(attn\.)?hook_\w+"))
def test_what_parses_prints_the_same_and_the_rest_is_one_error(text: str) -> None:
    with contextlib.suppress(UnknownNameError):
        assert str(Site.parse(text)) == text


@pytest.mark.parametrize(
    "text",
    [
        "blocks.03.attn.hook_z",
        "blocks.-1.attn.hook_z",
        "blocks.{}.attn.hook_z",
        "blocks.٣.attn.hook_z",
        "blocks." + "9" * 5000 + ".attn.hook_z",
        "blocks.3.attn.hook_z ",
        "Blocks.3.attn.hook_z",
        "blocks.3.hook_embed",
        "hook_z",
        "",
    ],
)
def test_near_misses_do_not_parse(text: str) -> None:
    with pytest.raises(UnknownNameError, match="No site named"):
        Site.parse(text)


def test_an_unknown_site_names_the_nearest_at_its_layer() -> None:
    with pytest.raises(UnknownNameError) as caught:
        Site.parse("blocks.3.attn.z")
    assert "blocks.3.attn.hook_z" in str(caught.value)


def test_the_short_name_is_the_name_within_the_block() -> None:
    assert Site.parse("blocks.3.attn.hook_z").short == "attn.hook_z"
    assert Site.parse("hook_embed").short == "hook_embed"


def test_select_takes_a_name_a_site_a_glob_a_list_and_a_predicate() -> None:
    z = [Site("blocks.{}.attn.hook_z", layer) for layer in range(3)]
    assert select("blocks.1.attn.hook_z", KNOWN) == (z[1],)
    assert select(z[1], KNOWN) == (z[1],)
    assert select("blocks.*.attn.hook_z", KNOWN) == tuple(z)
    assert select("blocks.[02].attn.hook_z", KNOWN) == (z[0], z[2])
    assert select([z[2], "blocks.?.attn.hook_z"], KNOWN) == tuple(z)
    assert select(lambda site: site.layer == 1 and site.short == "attn.hook_z", KNOWN) == (z[1],)


def test_select_answers_in_forward_order_without_repeats() -> None:
    chosen = select(["blocks.2.hook_mlp_out", "hook_embed", "hook_*", "hook_embed"], KNOWN)
    assert chosen == select(lambda site: site in chosen, KNOWN)
    assert list(chosen) == sorted(set(chosen), key=KNOWN.index)


def test_what_selects_nothing_is_an_error_that_says_so() -> None:
    with pytest.raises(UnknownNameError, match=r"No site named 'blocks\.9\.attn\.hook_z'"):
        select("blocks.9.attn.hook_z", KNOWN)
    with pytest.raises(UnknownNameError, match=re.escape("'blocks.*.attn.hook_y'")):
        select(["hook_embed", "blocks.*.attn.hook_y"], KNOWN)
    with pytest.raises(EmptySelectionError, match="empty; the model has"):
        select([], KNOWN)
    with pytest.raises(EmptySelectionError):
        select(lambda site: False, KNOWN)


def test_one_site_must_be_one() -> None:
    assert one_site("hook_embed", KNOWN) == Site("hook_embed")
    with pytest.raises(EmptySelectionError, match=r"names 3 sites where one is needed"):
        one_site("blocks.*.attn.hook_z", KNOWN)


def test_patterns_are_checked_to_be_spelt_like_sites() -> None:
    assert patterns_of(["blocks.*.hook_resid_post", KNOWN[0]]) == (
        "blocks.*.hook_resid_post",
        "hook_embed",
    )
    with pytest.raises(UnknownNameError):
        patterns_of("blocks.0.hook_residual")
    with pytest.raises(EmptySelectionError, match="at least one site"):
        patterns_of([])


def test_a_glob_is_what_may_match_several() -> None:
    assert is_glob("blocks.*")
    assert is_glob("a?")
    assert is_glob("[ab]")
    assert not is_glob("blocks.3.attn.hook_z")


def test_there_is_one_object_for_each_place() -> None:
    site = Site.parse("blocks.3.attn.hook_z")
    assert site is Site("blocks.{}.attn.hook_z", 3)
    assert pickle.loads(pickle.dumps(site)) is site
    assert copy.deepcopy(site) is site
    assert dataclasses.replace(site, layer=4) is Site.parse("blocks.4.attn.hook_z")
    assert str(Site("blocks.{}.attn.hook_q", True)) == "blocks.1.attn.hook_q"


@pytest.mark.usefixtures("unchecked")
def test_a_layer_is_a_whole_number_of_any_kind() -> None:
    number: Any = torch.tensor(3)
    text: Any = "3"
    assert Site("blocks.{}.attn.hook_z", number) is Site("blocks.{}.attn.hook_z", 3)
    with pytest.raises(TypeError, match="integer"):
        Site("blocks.{}.attn.hook_z", text)
