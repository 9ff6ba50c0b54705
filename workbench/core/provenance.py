"""Where a result comes from: enough to make it again, and to see that two are comparable."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING, Any, final

import torch

if TYPE_CHECKING:
    from workbench.core.protocols import Model


def package_version() -> str:
    """The installed version of this package."""
    try:
        return version("interp-workbench")
    except PackageNotFoundError:
        return "0+source"


@final
@dataclass(frozen=True)
class Provenance:
    """What made a result: software, model, data, method and its parameters, seed."""

    method: str
    source: str  # the paper, or "" for a plain run
    model: str
    fingerprint: str
    dtype: str
    data: str  # digest of the data
    parameters: Mapping[str, Any] = field(default_factory=dict[str, Any])
    seed: int | None = None
    workbench: str = field(default_factory=package_version)
    torch: str = torch.__version__

    def to_json(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


def provenance(
    model: "Model",
    *,
    method: str,
    data: object,
    source: str = "",
    parameters: Mapping[str, Any] | None = None,
    seed: int | None = None,
) -> Provenance:
    """The provenance of a result of `method` on `model` and `data` (anything JSON can hold)."""
    return Provenance(
        method=method,
        source=source,
        model=model.name,
        fingerprint=model.fingerprint,
        dtype=str(model.dtype).removeprefix("torch."),
        data=digest(data),
        parameters=dict(parameters or {}),
        seed=seed,
    )


def hyper_parameters(method: object) -> dict[str, Any]:
    """The fields of a method by name; a method is a dataclass, its fields its hyper-parameters."""
    if not is_dataclass(method):
        return {}
    return {field.name: vars(method)[field.name] for field in fields(method)}


def digest(data: object) -> str:
    """A short SHA-256 of anything JSON can hold, and of tensors."""
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, default=_plain)
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()[:16]


def _plain(value: object) -> object:
    return value.tolist() if isinstance(value, torch.Tensor) else str(value)  # str would cut it
