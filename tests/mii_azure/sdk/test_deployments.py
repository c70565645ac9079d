"""MII's three calls: deploy, client, terminate."""

import asyncio
import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import mii_azure
from mii_azure.errors import RunnerFailed, SpecError, TaskUnsupported, UnknownDeployment
from scoring.errors import InvalidParameter
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("forked")

Tiny = Callable[[str, str], Path]
QUESTION = {"inputs": {"question": "Who?", "context": "It was Ann."}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MII_AZURE_HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture
def deployed(tiny: Tiny) -> Iterator[str]:
    told: list[str] = []
    mii_azure.deploy(
        task="question-answering",
        model=str(tiny("bert", "question-answering")),
        deployment_name="qa",
        deployment_type=mii_azure.DeploymentType.LOCAL,
        progress=told.append,
    )
    assert [line.split()[0] for line in told] == ["writing", "starting", "qa"]
    yield "qa"
    with contextlib.suppress(UnknownDeployment):
        mii_azure.terminate("qa")


def test_deploy_query_terminate(deployed: str, home: Path, tiny: Tiny) -> None:
    with mii_azure.client(deployed) as client:
        answer = client.query(QUESTION)
        assert answer["answer"] == QUESTION["inputs"]["context"][answer["start"] : answer["end"]]
        assert client.ready()
        assert client.metadata()["task"] == "question-answering"
        with pytest.raises(InvalidParameter, match="top_k"):
            client.query({**QUESTION, "parameters": {"topk": 1}})

        async def inside_a_running_loop() -> None:
            assert client.query(QUESTION) == answer  # the synchronous client, as in Jupyter
            async with mii_azure.async_client(deployed) as other:
                assert await other.query(QUESTION) == answer

        asyncio.run(inside_a_running_loop())
    with pytest.raises(RunnerFailed, match="running already"):
        mii_azure.deploy(task="fill-mask", model=str(tiny("bert", "fill-mask")), deployment_name=deployed)
    pid = mii_azure.sdk.deployments.find(deployed).pid
    mii_azure.terminate(deployed)
    assert not (home / deployed).exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(UnknownDeployment, match="no running deployment 'qa'"):
        mii_azure.client(deployed)


def test_a_deployment_that_died_is_unknown(deployed: str) -> None:
    os.kill(mii_azure.sdk.deployments.find(deployed).pid, 9)
    with pytest.raises(UnknownDeployment):
        until(lambda: not mii_azure.sdk.deployments.find(deployed))


def test_azure_without_a_workspace_is_refused_naming_what_is_missing(
    tiny: Tiny, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MII_AZURE_WORKSPACE", "w")
    with pytest.raises(SpecError, match=r"--subscription, --resource-group missing"):
        mii_azure.deploy(
            task="question-answering",
            model=str(tiny("bert", "question-answering")),
            deployment_name="qa",
            deployment_type=mii_azure.DeploymentType.AML,
        )


@pytest.mark.parametrize(
    "call",
    [{"task": "fill-mask", "model": "m"}, {}, {"bundle": "b", "deployment_type": mii_azure.DeploymentType.LOCAL}],
)
def test_a_call_that_means_nothing_is_refused(call: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        mii_azure.deploy(**call)  # type: ignore[arg-type]


def test_a_model_that_cannot_do_the_task_starts_nothing(tiny: Tiny, home: Path) -> None:
    with pytest.raises(TaskUnsupported):
        mii_azure.deploy(task="text-generation", model=str(tiny("bert", "fill-mask")), deployment_name="qa")
    assert not list(home.glob("*/state.json"))
