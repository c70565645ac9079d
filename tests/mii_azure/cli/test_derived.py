"""Flags of verbs are those of their declarations: the runner's, and the fields of Spec."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import typer
from typer.testing import CliRunner

from local_runner.__main__ import _parser
from local_runner.flags.flag import Flag
from mii_azure.cli import app, derived, serving
from mii_azure.errors import SpecError
from mii_azure.spec import Spec

_TEXTS = {"cors-origins": "https://a.example"}  # of flags that take not any text
COMMANDS: dict[str, click.Command] = typer.main.get_command(app.app).commands  # type: ignore[attr-defined]


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., list[str]]:
    """Run `mii-azure serve` up to where it becomes the runner; returns the runner's arguments."""
    told: list[list[str]] = []
    monkeypatch.setattr(os, "execve", lambda path, command, environment: told.append(command[3:]))

    def serve(*arguments: str) -> list[str]:
        done = CliRunner().invoke(app.app, ["serve", str(tmp_path), *arguments])
        assert done.exit_code == 0, done.output
        return told[-1]

    return serve


@pytest.mark.parametrize("flag", serving.RUNNER, ids=lambda flag: str(flag.name))
@pytest.mark.parametrize("twin", [False, True])
def test_the_runner_gets_each_flag_that_serve_got(
    flag: Flag, twin: bool, served: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    text = flag.choices[-1] if flag.choices else _TEXTS.get(flag.name, "x")
    value = {int: "3", float: "2.5", bool: "true"}.get(flag.kind, text)
    if twin:
        monkeypatch.setenv(flag.twin, value)
    words = [f"--{flag.name}", value]
    arguments = served(*([] if twin else words[:1] if flag.kind is bool else words))
    monkeypatch.delenv(flag.twin, raising=False)
    assert getattr(_parser().parse_args(arguments), flag.variable) == flag.kind(value)


def test_serve_without_flags_is_the_runner_without_flags(served: Callable[..., list[str]], tmp_path: Path) -> None:
    assert _parser().parse_args(served()) == _parser().parse_args([str(tmp_path)])


def test_every_field_of_a_spec_is_a_flag_of_generate() -> None:
    assert sorted(derived.FIELDS) == sorted(Spec.model_fields)
    given = {parameter.name: parameter for parameter in COMMANDS["generate"].params}
    for name, field in Spec.model_fields.items():
        flag = given[f"no_{name}" if field.default is True else name]
        assert not flag.required  # a file may give it
        assert field.is_required() == (flag.default is None and name in ("task", "model", "name"))
        assert flag.envvar == f"MII_AZURE_{str(flag.name).upper()}"


def test_flags_that_are_left_out_are_a_specs_defaults() -> None:
    given: dict[str, Any] = {parameter.name: parameter.default for parameter in COMMANDS["generate"].params}
    given |= {"task": "fill-mask", "model": "m", "name": "abc"}
    assert Spec(**derived.fields(given)) == Spec(task="fill-mask", model="m", name="abc")


def test_collections_and_what_is_on_by_default_have_a_form_of_their_own() -> None:
    given = {"passes_on": " a, b,", "no_prefix_reuse": True, "secrets": "A=keyvault:x"}
    assert derived.fields(given) == {"passes_on": ["a", "b"], "prefix_reuse": False, "secrets": {"A": "keyvault:x"}}


@pytest.mark.parametrize("text", ["hunter2", "hunter2=", "=hunter2", "A=x,hunter2"])
def test_secrets_that_are_no_pairs_are_refused_unsaid(text: str) -> None:
    with pytest.raises(SpecError, match="NAME=REFERENCE") as told:
        derived.fields({"secrets": text})
    assert "hunter2" not in told.value.message
