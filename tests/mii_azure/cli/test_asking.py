"""query and chat against one server of a tiny chat model: what is typed is sent, and what comes is shown."""

import io
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from local_runner.process.launch import LOOPBACK, Runner
from mii_azure.sdk.generate import generate
from tests.fork_server import ForkServer, forking
from tests.mii_azure.cli.conftest import Done
from tests.tiny_models import tiny_model

Mii = Callable[..., Done]
SHORT = "max_new_tokens=4"


@pytest.fixture(scope="module")
def served(fork_server: ForkServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Runner]:
    folder = tmp_path_factory.mktemp("chat")
    tiny_model("llama", "conversational", folder / "model")
    bundle = generate("conversational", str(folder / "model"), "chat", output=folder / "chat")
    with forking(fork_server), Runner(bundle) as runner:
        yield runner


@pytest.fixture
def address(served: Runner) -> str:
    return f"{LOOPBACK}:{served.grpc_port}"


def test_a_text_is_a_message_and_json_is_the_same(address: str, mii: Mii) -> None:
    asked = {"inputs": [{"role": "user", "content": "Hello!"}], "parameters": {"max_new_tokens": 4}}
    typed = mii("query", address, "Hello!", SHORT)
    assert typed.code == 0, typed
    told = json.loads(mii("query", address, json.dumps(asked), "--json").out)
    assert typed.out == told[0]["generated_text"][-1]["content"].rstrip("\n") + "\n"
    assert mii("query", address, "Hello!", SHORT, "--stream").out == told[0]["generated_text"][-1]["content"] + "\n"


def test_a_wrong_parameter_is_refused_before_it_is_sent(address: str, mii: Mii) -> None:
    done = mii("query", address, "Hello!", "max_new_token=4")
    assert (done.code, "Did you mean max_new_tokens?" in done.err) == (2, True)


def test_the_http_port_and_urls_are_told_apart(served: Runner, mii: Mii) -> None:
    wrong = mii("query", f"{LOOPBACK}:{served.http_port}", "Hello!")
    assert wrong.code == 2
    assert f"Ask http://{LOOPBACK}:{served.http_port}/score" in wrong.err
    without = mii("query", f"http://{LOOPBACK}:{served.http_port}", '{"inputs": "x"}')
    assert f"Did you mean http://{LOOPBACK}:{served.http_port}/score?" in without.err
    right = mii("query", f"http://{LOOPBACK}:{served.http_port}/score", "Hello!", SHORT)
    assert right.code == 0, right


@pytest.mark.parametrize("verb", ["serve", "check", "parity", "bench", "verify", "deploy"])
def test_an_address_is_no_bundle(verb: str, mii: Mii) -> None:
    done = mii(verb, "http://127.0.0.1:5001/score")
    assert (done.code, "http://127.0.0.1:5001/score is an address" in done.err) == (3, True), done


def test_a_chat_remembers_until_it_begins_anew(address: str, mii: Mii, monkeypatch: pytest.MonkeyPatch) -> None:
    def said(*lines: str) -> list[str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO("\n".join(lines)))
        done = mii("chat", address, SHORT, "system=Be brief.")
        assert done.code == 0, done
        return done.out.splitlines()

    first, second = said("Hello!", "", "And now?")
    assert said("Hello!", "/new", "Hello!") == [first, first]
    system = {"role": "system", "content": "Be brief."}
    asked = [system, {"role": "user", "content": "Hello!"}, {"role": "assistant", "content": first}]
    payload = {"inputs": [*asked, {"role": "user", "content": "And now?"}], "parameters": {"max_new_tokens": 4}}
    assert mii("query", address, json.dumps(payload)).out == second + "\n"


def test_a_chat_fails_as_the_server_says(address: str, mii: Mii, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("Hello! " * 500))
    done = mii("chat", address)
    assert done.code != 0
    assert "error [" in done.err
    assert "Traceback" not in done.err


def test_typed_requests_of_a_bundle_are_refused_before_it_starts(served: Runner, mii: Mii) -> None:
    done = mii("query", served.bundle, "Hello!", "max_new_token=4")
    assert done.code == 2
    assert "starting" not in done.err


def test_a_missing_folder_is_told_with_the_nearest(mii: Mii, tmp_path: Path) -> None:
    (tmp_path / "models" / "chat").mkdir(parents=True)
    for typed in ("models/cat", "model/cat", "model/chat"):
        done = mii("plan", "--task", "chat", "--model", typed)
        assert "Did you mean conversational?" in done.err
        done = mii("plan", "--task", "conversational", "--model", typed)
        assert (done.code, "Did you mean models/chat?" in done.err) == (3, True), done
