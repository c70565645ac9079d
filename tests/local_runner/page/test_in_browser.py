"""The page in a real browser: each form answers, streams and shows an error, at a phone's width and at a wide one."""

import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest

import mii_azure
from local_runner.process.launch import Runner
from tests.browser import CHROMIUM, Browser
from tests.conftest import Tiny

pytestmark = [
    pytest.mark.usefixtures("forked"),
    pytest.mark.skipif(not CHROMIUM, reason="needs Chromium: apt-get install chromium"),
]

FAMILIES = {
    "text-generation": "gpt2",
    "conversational": "llama",
    "question-answering": "bert",
    "text-classification": "bert",
    "token-classification": "bert",
    "fill-mask": "bert",
    "feature-extraction": "bert",
    "sentence-embeddings": "bert",
    "sentence-similarity": "bert",
    "zero-shot-classification": "bert",
    "text-ranking": "bert",
    "summarization": "bart",
    "translation": "marian",
    "automatic-speech-recognition": "whisper",
    "text-to-image": "stable-diffusion",
}
#: What the answer of each task has to show, as a selector.
SHOWN = {
    "text-generation": ".passage .made",
    "conversational": ".turn.assistant",
    "question-answering": ".context mark",
    "text-classification": ".bar",
    "token-classification": ".entities .entity",
    "fill-mask": ".bar",
    "feature-extraction": "td.heat",
    "sentence-embeddings": "td.heat",
    "sentence-similarity": ".bar",
    "zero-shot-classification": ".bar",
    "text-ranking": ".bar",
    "summarization": ".passage .made",
    "translation": ".passage .made",
    "automatic-speech-recognition": ".passage .made",
    "text-to-image": "figure img",
}
ATTACK = "<img src=x onerror=document.title=1>"
WIDTHS = (400, 1400)
DONE = "!document.querySelector('#send').disabled"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as started:
        yield started


@pytest.fixture(scope="module")
def served(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory, forked: None) -> Iterator[Any]:
    """`served(task, *arguments)` is a runner over a bundle of a tiny model of the task."""
    with ExitStack() as stack:

        @cache
        def start(task: str, *arguments: str) -> Runner:
            family = FAMILIES[task]
            off = ("cpu",) if family == "bert" else ()
            folder = tmp_path_factory.mktemp("page") / task
            bundle = mii_azure.generate(
                task, str(tiny(family, task)), "a-page", output=folder, passes_off=off, dtype="float32"
            )
            return stack.enter_context(Runner(bundle, arguments=("--drain-seconds", "0.5", *arguments)))

        yield start


def visit(browser: Browser, runner: Runner, width: int = 1400) -> None:
    browser.problems.clear()
    browser.resize(width)
    browser.open(f"http://127.0.0.1:{runner.http_port}/")
    browser.wait("document.querySelector('#send')")


def put(browser: Browser, field: str, text: str) -> None:
    """Write into a field as a user does: focus, select all, type."""
    browser.run(f"document.querySelector('#{field}').focus(); document.querySelector('#{field}').select()")
    browser.type(text)


def shown(browser: Browser, selector: str) -> str:
    return str(browser.run(f"document.querySelector('{selector}').innerText"))


def ask(browser: Browser) -> None:
    browser.run("document.querySelector('#send').click()")
    browser.wait(DONE)


def no_overflow(browser: Browser) -> None:
    assert browser.run("document.documentElement.scrollWidth <= window.innerWidth")


def nameless(browser: Browser) -> list[str]:
    """Controls that a screen reader could not name."""
    script = """[...document.querySelectorAll('input, textarea, select, button')].filter(
        (each) => !(each.labels?.length || each.textContent.trim() || each.ariaLabel)).map((each) => each.outerHTML)"""
    found: list[str] = browser.run(script)
    return found


# The default run has the task with streams; `make page` has them all.
@pytest.mark.parametrize(
    "task", [pytest.param(task, marks=() if task == "conversational" else pytest.mark.browser) for task in FAMILIES]
)
def test_each_form_answers_streams_and_shows_errors(task: str, browser: Browser, served: Any) -> None:
    runner = served(task)
    for width in WIDTHS:
        visit(browser, runner, width)
        if task == "text-to-image":
            put(browser, "p-num_inference_steps", "1")
        ask(browser)
        assert shown(browser, "#error") == ""
        assert browser.run(f"document.querySelectorAll('#out {SHOWN[task]}').length") >= 1
        assert " ms" in shown(browser, "#times") or " s" in shown(browser, "#times")
        if browser.run("!!document.querySelector('#stream')"):
            assert "First token" in shown(browser, "#times") and "Tokens a second" in shown(browser, "#times")
            browser.run("document.querySelector('#stream').click()")
            if task == "conversational":
                put(browser, "f-text", "And again?")
            ask(browser)
            assert "First token" not in shown(browser, "#times")
        no_overflow(browser)
        assert nameless(browser) == []
        browser.run("document.querySelectorAll('[id^=f-]').forEach((each) => { each.value = ''; })")
        ask(browser)
        assert re.match("(invalid_input|prompt_too_long): ", shown(browser, "#error"))
        no_overflow(browser)
        # A refused request is the one thing that a browser writes to its console by itself.
        assert [each for each in browser.problems if "400 (Bad Request)" not in each] == []


@pytest.mark.browser
def test_a_sound_is_played_and_its_bytes_take_little_room(browser: Browser, served: Any) -> None:
    visit(browser, served("automatic-speech-recognition"), 400)
    browser.wait("document.querySelector('audio').duration > 0")
    assert browser.run("document.querySelector('#f-text').clientHeight") < 120
    assert "plain transformers" in shown(browser, "#passes")
    assert browser.problems == []


@pytest.fixture(scope="module")
def chat(served: Any) -> Runner:
    """A conversation whose model can be made to say anything."""
    return served("conversational")


def test_what_a_model_says_is_text(browser: Browser, chat: Runner) -> None:
    visit(browser, chat)
    put(browser, "f-text", ATTACK)
    browser.run("document.querySelector('.more').open = true")
    put(browser, "p-guided_choice", ATTACK)
    ask(browser)
    assert shown(browser, "#error") == ""
    texts = browser.run("[...document.querySelectorAll('.turn .text')].map((each) => each.textContent)")
    assert texts == [ATTACK, ATTACK]
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("document.title") == "a-page: conversational"
    assert browser.problems == []


def test_a_parameter_that_is_refused_is_pointed_at(browser: Browser, chat: Runner) -> None:
    visit(browser, chat)
    put(browser, "p-top_p", "7")
    ask(browser)
    assert "invalid_parameter" in shown(browser, "#error")
    assert browser.run("document.activeElement.id") == "p-top_p"
    assert browser.run("document.activeElement.getAttribute('aria-invalid')") == "true"


def test_the_keyboard_alone_sends_and_chooses(browser: Browser, chat: Runner) -> None:
    visit(browser, chat)
    browser.press("Tab")
    assert browser.run("document.activeElement.className") == "skip"
    browser.run("document.querySelector('#f-text').focus()")
    browser.press("Enter")
    browser.wait("document.querySelector('.turn.assistant') && " + DONE)
    assert browser.run("document.activeElement.id") == "f-text"
    assert browser.run("document.querySelector('#out').getAttribute('aria-live')") == "polite"


@pytest.mark.parametrize("language", ["curl", "Python", "openai"])
@pytest.mark.parametrize("streamed", [True, pytest.param(False, marks=pytest.mark.browser)])
def test_the_code_runs_as_it_stands(language: str, streamed: bool, browser: Browser, chat: Runner) -> None:
    visit(browser, chat)
    put(browser, "f-text", 'It\'s a "quote", $HOME, `x` and \\ naïve 🙂')
    put(browser, "p-max_new_tokens", "3")
    put(browser, "p-seed", "7")
    if not streamed:
        browser.run("document.querySelector('#stream').click()")
    browser.run(f"document.querySelector('[value={language}]').click()")
    code = str(browser.run("document.querySelector('#code').textContent"))
    command = ["bash", "-c", code] if language == "curl" else [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    ask(browser)
    answer = browser.run("document.querySelector('.turn.assistant .text').textContent")
    if language == "openai" or (streamed and language == "Python"):
        assert done.stdout.rstrip("\n") == answer.rstrip("\n")
    else:
        assert "generated_text" in done.stdout


def test_a_server_with_keys_asks_for_one(browser: Browser, served: Any, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("open-sesame")
    runner = served("text-generation", "--api-key-file", str(tmp_path / "keys"))
    browser.open(f"http://127.0.0.1:{runner.http_port}/")
    browser.wait("document.querySelector('#door') && !document.querySelector('#door').hidden")
    put(browser, "key", "wrong")
    browser.press("Enter")
    browser.wait("document.querySelector('#door-why').textContent.includes('not one of')")
    put(browser, "key", "open-sesame")
    browser.press("Enter")
    browser.wait("document.querySelector('#send')")
    ask(browser)
    assert shown(browser, "#error") == ""
    assert "$API_KEY" in shown(browser, "#code")
    held = "document.documentElement.outerHTML + JSON.stringify(localStorage) + document.cookie"
    assert "open-sesame" not in browser.run(held)
