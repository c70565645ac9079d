"""What there is, listed: tasks, instance types, small models; and the version."""

import json
from collections.abc import Callable

from mii_azure.hardware.skus import all_skus
from mii_azure.model.packaged import MODELS
from mii_azure.version import __version__
from scoring.schema.registry import TASKS
from tests.mii_azure.cli.conftest import Done

Mii = Callable[..., Done]


def test_tasks_are_those_that_are_served(mii: Mii) -> None:
    assert [each["task"] for each in json.loads(mii("tasks", "--json").out)] == list(TASKS)
    assert "qa, extractive-qa" in mii("tasks").out


def test_instance_types_that_may_be_deployed_on(mii: Mii) -> None:
    shown = mii("skus").out
    assert "Standard_NC4as_T4_v3  " in shown
    assert "Standard_NC6s_v3 " not in shown
    assert "Standard_NC6s_v3 " in mii("skus", "--everything").out
    assert len(json.loads(mii("skus", "--everything", "--json").out)) == len(all_skus())


def test_small_models_and_those_planned_without_a_hub(mii: Mii) -> None:
    assert [line.split()[0] for line in mii("models").out.splitlines()[1 : 1 + len(MODELS)]] == list(MODELS)
    assert "EleutherAI/gpt-j-6b" not in mii("models").out
    assert "EleutherAI/gpt-j-6b" in mii("models", "--known").out
    wrong = mii("models", "smolm2")
    assert (wrong.code, "Did you mean 'smollm2'?" in wrong.err) == (3, True)


def test_the_version(mii: Mii) -> None:
    assert mii("--version").out == f"mii-azure {__version__}\n"
