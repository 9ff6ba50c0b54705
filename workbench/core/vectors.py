"""Vectors at sites: the tangents and cotangents of a product, each like the activation it meets."""

from collections.abc import Mapping, Sequence

from torch import Tensor

from workbench.core.errors import NonFiniteError, OptionError, ShapeError
from workbench.core.options import expect
from workbench.core.protocols import Model
from workbench.core.run import not_finite
from workbench.core.sites import Site, one_site

# At each site a vector of its activation's shape, or many.
Vectors = Mapping[Site, Tensor] | Mapping[str, Tensor] | Mapping[str | Site, Tensor]
Name = Site | str  # a site, or "logits"
LOGITS = "logits"


def vectors_of(option: str, given: Vectors, model: Model) -> dict[Name, Tensor]:
    """Vectors by site, in forward order, each finite."""
    expect(option, given, Mapping, "a mapping from sites to tensors")
    named = {
        one_site(name, model.sites): expect(f"{option}[{str(name)!r}]", vector, Tensor, "a tensor")
        for name, vector in given.items()
    }
    return {site: named[site] for site in model.sites if site in named}


def directions_of(vectors: Mapping[Name, Tensor], *, many: bool) -> int:
    """How many vectors each site has, at the most."""
    return max((len(one) for one in vectors.values() if one.ndim), default=1) if many else 1


def fitting(
    vectors: Mapping[Name, Tensor], at: Mapping[Name, Tensor], *, many: bool
) -> list[Tensor]:
    """The vectors, in the order of the activations they stand at.

    Raises:
        ShapeError: If one is not like its activation, or two have not equally many directions.
        NonFiniteError: If one is not finite.
    """
    leading = next(iter(vectors.values())).shape[:1] if many else ()
    for name, vector in vectors.items():
        expected = (*leading, *at[name].shape)
        if tuple(vector.shape) != expected or not vector.is_floating_point():
            got = f"{tuple(vector.shape)} of {vector.dtype}"
            raise ShapeError(f"the vector at {name}", f"{expected} of {at[name].dtype}", got)
    check_finite({f"the vector at {name}": vector for name, vector in vectors.items()})
    return [vectors[name].to(value) for name, value in at.items()]


def check_order(early: Sequence[Name], late: Sequence[Name], model: Model) -> None:
    """Refuses pairs of which one cannot depend on the other, which would be zero without a word.

    Raises:
        OptionError: If one of `early` comes after all of `late`, or one of `late` before them all.
    """
    order: dict[Name, int] = {site: place for place, site in enumerate(model.sites)}
    order[LOGITS] = len(order)
    first, last = min(early, key=order.__getitem__), max(late, key=order.__getitem__)
    for name in early:
        if order[name] > order[last]:
            raise OptionError("sites", f"none after {last}, which cannot depend on it", str(name))
    for name in late:
        if order[name] < order[first]:
            raise OptionError("sites", f"none before {first}, on which it would depend", str(name))


def check_finite(values: Mapping[Name, Tensor]) -> None:
    """Refuses what is not finite.

    Raises:
        NonFiniteError: If a value is not; names where.
    """
    for where, value in values.items():
        if bad := not_finite(value):
            raise NonFiniteError(where, bad, value.numel())
