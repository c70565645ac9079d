"""The laws of DESIGN.md that a test can hold."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import mii_azure

ROOT = Path(__file__).resolve().parent.parent
HEAVY = {"torch", "transformers", "deepspeed", "azure", "grpc", "fastapi", "azureml_inference_server_http"}


# Deciding on paper must not wait for torch.
DECISIONS = "from scoring.passes.catalogue import encoder_passes, decoder_passes; from scoring.config import Limits; "
DECISIONS += "encoder_passes(); decoder_passes(Limits())"


def imported(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            names.add(node.module.split(".")[0])
    return names


@pytest.mark.parametrize("path", sorted((ROOT / "scoring").rglob("*.py")), ids=lambda p: p.relative_to(ROOT).as_posix())
def test_scoring_imports_none_of_the_other_packages(path: Path) -> None:
    assert not imported(path) & {"mii_azure", "templates", "local_runner", "tests", "benchmarks", "tools"}


@pytest.mark.parametrize("statement", ["import mii_azure", "import mii_azure.cli", "import scoring.tasks", DECISIONS])
def test_heavy_packages_wait_until_they_are_needed(statement: str) -> None:
    code = f"{statement}; import sys; print(*sys.modules)"
    modules = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.split()
    assert not HEAVY & {name.split(".")[0] for name in modules}


def test_public_names() -> None:
    assert sorted(mii_azure.__all__) == [
        "DeploymentType",
        "MiiAzureError",
        "Spec",
        "__version__",
        "async_client",
        "bench",
        "check",
        "client",
        "deploy",
        "diff",
        "generate",
        "parity",
        "plan",
        "prepare",
        "terminate",
        "verify",
    ]
    for name in mii_azure.__all__:
        assert getattr(mii_azure, name) is not None


def test_an_unknown_public_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = mii_azure.nonsense


def test_every_flag_of_a_verb_has_an_environment_twin() -> None:
    import typer

    from mii_azure.cli import app

    command = typer.main.get_command(app)
    for verb, sub in command.commands.items():  # type: ignore[attr-defined]
        for parameter in sub.params:
            if parameter.name != "help" and parameter.param_type_name == "option":
                twin = parameter.opts[0].removeprefix("--").replace("-", "_").upper()
                assert parameter.envvar == f"MII_AZURE_{twin}", (verb, parameter.name)


def test_no_two_meanings_share_an_environment_variable() -> None:
    import typer

    from mii_azure.cli import app

    kinds: dict[str, set[str]] = {}
    for sub in typer.main.get_command(app).commands.values():  # type: ignore[attr-defined]
        for parameter in sub.params:
            if parameter.envvar:
                kinds.setdefault(str(parameter.envvar), set()).add(str(parameter.bare_type()))
    assert {name: types for name, types in kinds.items() if len(types) > 1} == {}


def test_version_is_stated_once_more_only() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'version = "{mii_azure.__version__}"' in text
