"""What comes from outside is shown as it is: no sequence that a terminal obeys, no markup, no half of a character."""

import io
import json
import logging
import os
import pty
import subprocess
import sys
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text
from safetensors.numpy import save_file

from local_runner.telemetry import logs
from local_runner.telemetry.terminal import escaped, escaped_json, say
from mii_azure.cli import app, azure_verbs
from mii_azure.cli.progress import status
from mii_azure.cli.shared import Plain, print_json
from tests.mii_azure.model_folders import BERT, tensors

#: Clears the screen, sets the title, writes the clipboard, rings, goes back, C1's own CSI, and turns text around.
EVIL = "\x1b[2J\x1b]0;owned\x07\x1b]52;c;b3duZWQ=\x07\x9b31m\r\b\x7f\u202e\u2066\ud800"
MARKUP = "[red]a[/red] [link=https://evil]b[/link] :warning: [/]"
OBEYED = {chr(n) for n in (*range(9), *range(11, 32), *range(127, 160), *range(0x202A, 0x202F), *range(0x2066, 0x206A))}


def harmless(text: str) -> None:
    assert not OBEYED & set(text.replace("\r\n", "\n")), repr(text)


@given(st.text() | st.text("\x1b[]0;m\x07\x9b\r\n\t\u202e\ud800a"))
def test_nothing_that_a_terminal_obeys_is_left(text: str) -> None:
    shown = escaped(text)
    harmless(shown)
    shown.encode()
    assert escaped(shown) == shown
    assert json.loads(escaped_json(json.dumps(text, ensure_ascii=False))) == text
    harmless(escaped_json(json.dumps(text, ensure_ascii=False)))


def test_what_people_write_stays() -> None:
    for text in ("naïve ☃ 日本語 עברית العربية\u200f 👩\u200d🚀", "a\n\tb\\x1b[0m", "%s {} [x]"):
        assert escaped(text) == text


def _console(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> tuple[Plain, io.StringIO]:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "250")
    console, kept = Plain(), io.StringIO()
    monkeypatch.setattr(console, "_file", kept)
    monkeypatch.setattr(console, "_force_terminal", terminal)
    console.is_interactive = terminal
    return console, kept


@pytest.mark.parametrize("terminal", [True, False])
def test_the_consoles_show_texts_as_they_are(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    console, kept = _console(monkeypatch, terminal)
    table = Table("a" + EVIL, box=None)
    table.add_row(MARKUP + EVIL)
    table.add_row(Text(EVIL))
    for shown in (EVIL + MARKUP, Text.assemble(("error", "red"), EVIL + MARKUP), table):
        console.print(shown, soft_wrap=True)
    text = kept.getvalue()
    for own in ("\x1b[31m", "\x1b[0m", "\x1b[1m"):  # the colours are ours
        assert terminal or own not in text
        text = text.replace(own, "")
    harmless(text)
    assert text.count(MARKUP) == 3 and text.count("\\x1b[2J\\x1b]0;owned") == 5
    text.encode()


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_knows_no_markup(monkeypatch: pytest.MonkeyPatch, terminal: bool) -> None:
    console, kept = _console(monkeypatch, terminal)
    with status(console, enabled=True) as update:
        update(f"starting {MARKUP}\x1b]0;owned\x07")
    assert MARKUP in kept.getvalue() and "\x1b]0;" not in kept.getvalue()


def test_json_is_still_json(capsys: pytest.CaptureFixture[str]) -> None:
    print_json({"generated_text": EVIL, EVIL: [EVIL]})
    text = capsys.readouterr().out
    harmless(text)
    assert json.loads(text) == {"generated_text": EVIL, EVIL: [EVIL]}


def _on_a_terminal(arguments: list[str]) -> tuple[int, str]:
    """Exit code and all that a verb wrote, its standard output and error a terminal."""
    ours, theirs = pty.openpty()
    environment = os.environ | {"TERM": "dumb", "NO_COLOR": "1", "COLUMNS": "400"}
    command = [sys.executable, "-m", "mii_azure.cli.app", *arguments]
    with subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment) as child:
        os.close(theirs)
        pieces = []
        while True:
            try:
                pieces.append(os.read(ours, 65_536))
            except OSError:  # the last holder of the other end is gone
                break
            if not pieces[-1]:
                break
        os.close(ours)
    return child.returncode, b"".join(pieces).decode()


@pytest.mark.parametrize("how", ["terminal", "pipe"])
def test_a_models_own_words_are_shown_escaped(tmp_path: Path, how: str) -> None:
    told = BERT | {"architectures": [f"{EVIL[:-1]}{MARKUP}ForMaskedLM"]}
    (tmp_path / "config.json").write_text(json.dumps(told))
    save_file(tensors(), tmp_path / "model.safetensors")
    arguments = ["plan", "--task", "fill-mask", "--model", str(tmp_path)]
    if how == "terminal":
        code, text = _on_a_terminal(arguments)
    else:
        done = subprocess.run([sys.executable, "-m", "mii_azure.cli.app", *arguments], capture_output=True, check=False)
        code, text = done.returncode, (done.stdout + done.stderr).decode()
    assert code == 0, text
    harmless(text)
    assert "\\x1b[2J" in text and "[red]a[/red]" in text.replace("\n", "").replace("\r", "")


def test_an_error_about_a_name_that_is_no_text_is_told(tmp_path: Path) -> None:
    """A file name that is not UTF-8 has no form on standard output."""
    name = os.fsdecode(os.fsencode(tmp_path) + b"/\xff\x1b[2J")
    command = [sys.executable, "-m", "mii_azure.cli.app", "verify", name]
    done = subprocess.run(command, capture_output=True, check=False)
    assert done.returncode == 3, done.stderr
    harmless(done.stderr.decode())
    assert b"\\udcff\\x1b[2J" in done.stderr


class Answers(BaseHTTPRequestHandler):
    """An endpoint whose texts are EVIL: whole, as a stream, or as an error."""

    def do_POST(self) -> None:
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        word = EVIL[:-1]
        if sent["inputs"] == "error":
            self._reply(400, json.dumps({"error": {"code": "invalid_input", "message": word, "hint": word}}).encode())
        elif sent.get("stream"):
            events = [{"token": {"text": piece}} for piece in (word[:2], word[2:], "\n\tend")]
            self._reply(200, "".join(f"data: {json.dumps(each)}\n\n" for each in [*events]).encode())
        else:
            self._reply(200, json.dumps({"generated_text": word}, ensure_ascii=False).encode())

    def _reply(self, code: int, body: bytes) -> None:
        self.send_response(code)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        return


@pytest.mark.parametrize(("text", "more", "code"), [("a", [], 0), ("a", ["--stream"], 0), ("error", [], 1)])
def test_what_a_server_answers_is_shown_escaped(
    text: str, more: list[str], code: int, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}/score"
    monkeypatch.setattr(sys, "argv", ["mii-azure", "query", url, json.dumps({"inputs": text}), *more])
    with pytest.raises(SystemExit) as end:
        app.main()
    server.shutdown()
    server.server_close()
    assert end.value.code == code
    shown = "".join(capsys.readouterr())
    harmless(shown)
    assert "[2J" in shown
    assert not more or shown.endswith("\n\tend\n")


def test_the_logs_of_azure_are_shown_escaped(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    operations = SimpleNamespace(get_logs=lambda *_, **__: f"one\n{EVIL}\ttwo")
    monkeypatch.setattr(azure_verbs, "workspace_client", lambda *_: SimpleNamespace(online_deployments=operations))
    azure_verbs.logs("my-qa")
    shown = capsys.readouterr().out
    harmless(shown)
    assert shown.startswith("one\n\\x1b[2J") and shown.endswith("\ttwo\n")


@pytest.mark.parametrize("form", logs.FORMATS)
def test_the_runners_log_is_escaped(form: str, monkeypatch: pytest.MonkeyPatch) -> None:
    handlers: list[logging.Handler] = []
    monkeypatch.setattr(logging, "basicConfig", lambda **options: handlers.extend(options["handlers"]))
    monkeypatch.setattr(logs, "_go_on_without_a_disk", lambda: None)
    logs.set_up(form, verbose=False)
    record = logging.LogRecord("a", logging.WARNING, "", 0, "told: %s", (EVIL,), None)
    handlers[0].filter(record)
    harmless(handlers[0].format(record))
    kept = io.StringIO()
    say(EVIL, kept)
    harmless(kept.getvalue())


def test_top_shows_labels_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    from local_runner.client.top import show

    samples = {f"mii_azure_phase,{EVIL}": 1.0, f"mii_azure_requests_total,{EVIL}{MARKUP}": 3.0}
    console, kept = _console(monkeypatch, True)
    read: Callable[[], dict[str, float]] = lambda: samples  # noqa: E731
    show(SimpleNamespace(read=read), console, once=True, interval_s=1)  # type: ignore[arg-type]
    text = kept.getvalue()
    harmless(text)
    assert "\\x1b[2J" in text
