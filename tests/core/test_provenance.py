"""Provenance tells apart what differs, and is plain data."""

import json
from dataclasses import dataclass

import pytest
import torch

from tests import tiny
from workbench.core.provenance import digest, hyper_parameters, package_version, provenance


def test_equal_data_have_one_digest_and_others_another() -> None:
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1})
    assert digest(["a"]) != digest(["b"])
    assert digest(["ab"]) != digest(["a", "b"])
    assert digest(["1"]) != digest([1])
    assert len(digest("")) == 16


def test_long_tensors_are_told_apart_in_their_middle() -> None:
    one = torch.zeros(5000)
    other = one.clone()
    other[2500] = 1
    assert digest([one]) != digest([other])
    assert digest([one]) == digest([one.clone()])


@pytest.mark.parametrize("text", ["\ud800", "é\n\0", "🙂"])
def test_any_text_has_a_digest(text: str) -> None:
    assert digest([text]) == digest([text])


def test_hyper_parameters_are_the_fields_of_a_method() -> None:
    @dataclass(frozen=True)
    class Method:
        steps: int = 5
        name: str = "x"

    assert hyper_parameters(Method()) == {"steps": 5, "name": "x"}
    assert hyper_parameters(object()) == {}


def test_it_holds_the_model_and_is_plain_data() -> None:
    model, parameters = tiny.model("gpt2", torch.float64), {"k": 1}
    found = provenance(model, method="M", data=[1], source="paper", parameters=parameters, seed=3)
    parameters["k"] = 2
    assert (found.model, found.fingerprint) == (model.name, model.fingerprint)
    assert (found.dtype, found.seed, found.parameters) == ("float64", 3, {"k": 1})
    assert (found.torch, found.workbench) == (torch.__version__, package_version())
    assert json.loads(json.dumps(found.to_json())) == found.to_json()
