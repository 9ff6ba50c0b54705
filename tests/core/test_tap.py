"""Taps compose: `chain` is associative, with the untapped one as its neutral element."""

from typing import final

import pytest
import torch
from torch import Tensor
from typing_extensions import override

from workbench.core.sites import Site
from workbench.core.tap import UNTAPPED, Recorder, Tap, chain

HERE, THERE = Site("hook_embed"), Site("hook_unembed")


@final
class Affine(Tap):
    """x -> a x + b at one site; none of two of them commute."""

    def __init__(self, a: float, b: float, site: Site = HERE) -> None:
        self.a, self.b, self.site = a, b, site

    @override
    def __call__(self, site: Site, value: Tensor) -> Tensor:
        return self.a * value + self.b if site == self.site else value

    @override
    def wants(self, site: Site) -> bool:
        return site == self.site


ONE, TWO, THREE = Affine(2, 1), Affine(3, -5), Affine(-1, 7)
X = torch.arange(4.0)


def test_taps_act_in_their_order() -> None:
    assert torch.equal(chain(ONE, TWO)(HERE, X), 3 * (2 * X + 1) - 5)
    assert not torch.equal(chain(ONE, TWO)(HERE, X), chain(TWO, ONE)(HERE, X))


def test_chain_is_associative() -> None:
    left, right = chain(chain(ONE, TWO), THREE), chain(ONE, chain(TWO, THREE))
    assert torch.equal(left(HERE, X), right(HERE, X))
    assert torch.equal(left(HERE, X), chain(ONE, TWO, THREE)(HERE, X))


def test_the_untapped_is_neutral() -> None:
    assert chain() is UNTAPPED
    assert chain(UNTAPPED, UNTAPPED) is UNTAPPED
    assert chain(UNTAPPED, ONE, UNTAPPED) is ONE
    assert UNTAPPED(HERE, X) is X
    assert not UNTAPPED.wants(HERE)


def test_a_chain_wants_what_any_of_its_taps_wants() -> None:
    both = chain(ONE, Affine(1, 0, THERE))
    assert both.wants(HERE)
    assert both.wants(THERE)
    assert not both.wants(Site("hook_pos_embed"))


def test_a_recorder_keeps_its_sites_as_later_taps_find_them() -> None:
    recorder = Recorder((HERE,))
    after = chain(ONE, recorder, TWO)
    after(THERE, X)
    out = after(HERE, X)
    assert dict(recorder.recorded()) == {HERE: pytest.approx(2 * X + 1)}
    assert torch.equal(out, 3 * (2 * X + 1) - 5)
    assert recorder.wants(HERE)
    assert not recorder.wants(THERE)


def test_a_tap_is_a_protocol() -> None:
    assert isinstance(ONE, Tap)
    assert isinstance(UNTAPPED, Tap)
    assert not isinstance(lambda site, value: value, Tap)
