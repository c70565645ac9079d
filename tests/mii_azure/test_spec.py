"""The spec refuses what Azure's own client refuses, and says what to write instead."""

from __future__ import annotations

import warnings

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mii_azure.errors import InvalidName, SpecError
from mii_azure.spec import Spec, azure_name, check_name, make_spec

with warnings.catch_warnings():  # azure-ai-ml uses an option that marshmallow deprecated
    warnings.simplefilter("ignore")
    from azure.ai.ml.entities._endpoint._endpoint_helpers import validate_endpoint_or_deployment_name
    from azure.ai.ml.exceptions import ValidationException


def azure_accepts(name: str) -> bool:
    try:
        validate_endpoint_or_deployment_name(name)
    except ValidationException:
        return False
    return "\n" not in name  # its pattern ends in $, which lets one newline pass


@given(st.text(alphabet="abzAZ019-_. \n\u00e9", max_size=36))
@example("")
@example("ab")
@example("a" * 32)
@example("a" * 33)
@example("abc\n")
@example("-ab")
@example("ab-")
@example("1ab")
def test_names_are_azures(name: str) -> None:
    # Two characters are enough for us: Azure then sees NAME-endpoint.
    if azure_accepts(name if len(name) != 2 else name + name[-1]):
        assert check_name(name) == name
        assert azure_accepts(azure_name(name))
        return
    with pytest.raises(InvalidName) as caught:
        check_name(name)
    suggestion = caught.value.hint.removeprefix("Try '").removesuffix("'.")
    assert azure_accepts(azure_name(check_name(suggestion)))


@pytest.mark.parametrize(
    ("field", "value"),
    [("dtype", "int8"), ("instance_count", 0), ("instance_count", 51), ("auth_mode", "none"), ("x", 1)],
)
def test_a_wrong_preference_is_named(field: str, value: object) -> None:
    with pytest.raises(SpecError, match=field):
        make_spec(**{"task": "fill-mask", "model": "m", "name": "abc", field: value})


@pytest.mark.parametrize(
    ("asked", "said", "remedy"),
    [
        ({"kind": "kubernetes"}, "name of its cluster", "--compute:"),
        ({"kind": "template"}, "image and registry", "--registry and --image:"),
        ({"kind": "kaito", "image": "foo"}, "form", "HOST/REPOSITORY"),
        ({"instance_typ": "x"}, "instance_typ", "Nearest: instance_type"),
    ],
)
def test_what_is_wrong_is_said_without_a_list_of_all_settings(asked: dict[str, str], said: str, remedy: str) -> None:
    with pytest.raises(SpecError) as caught:
        make_spec(task="fill-mask", model="m", name="abc", **asked)
    assert said in caught.value.message
    assert remedy in caught.value.hint
    assert len(str(caught.value)) < 250


def test_a_bad_name_is_not_a_validation_error() -> None:
    with pytest.raises(InvalidName):
        make_spec(task="fill-mask", model="m", name="my_model")


def test_the_schema_describes_every_field() -> None:
    properties = Spec.model_json_schema()["properties"]
    assert set(properties) == set(Spec.model_fields)
    assert all(field["description"] for field in properties.values())
