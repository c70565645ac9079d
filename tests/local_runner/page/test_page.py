"""The page at `/`: who gets it, what its files may do, and that it opens no door that a key closes."""

import re
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from local_runner.access.security import SecurityFiles, load
from local_runner.flags import serving
from local_runner.host.host import ScriptHost
from local_runner.http import app as http_app
from local_runner.page.page import FOLDER, Page
from local_runner.process.launch import Runner
from mii_azure.cli.serving import runner_options
from mii_azure.platform.servers import HOST_FILES

BROWSER = {"accept": "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"}
FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.fixture
async def guarded(bundle: Path, tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    """The page before an application that asks for a key, as the doors put them together."""
    (tmp_path / "keys").write_text("secret")
    app = load(SecurityFiles(api_keys=tmp_path / "keys")).guard(http_app.build(ScriptHost(bundle)))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(Page(app)), base_url="http://here") as client:
        yield client


def test_browsers_get_the_page_and_everybody_else_healthy(runner: Runner) -> None:
    root = f"http://127.0.0.1:{runner.http_port}/"
    page = httpx.get(root, headers=BROWSER, trust_env=False)
    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert page.content == (FOLDER / "index.html").read_bytes()
    for accept in ("*/*", "", "text/plain", "application/json"):
        assert httpx.get(root, headers={"accept": accept}, trust_env=False).text == "Healthy"
    head = httpx.head(root, headers=BROWSER, trust_env=False)
    assert (head.content, head.headers["content-length"]) == (b"", str(len(page.content)))
    scored = httpx.post(root, json={"inputs": "a"}, headers=BROWSER, trust_env=False)
    assert scored.headers["content-type"] == "application/json"


def test_no_page(bundle: Path, forked: None) -> None:
    with Runner(bundle, arguments=("--no-page",)) as runner:
        root = f"http://127.0.0.1:{runner.http_port}/"
        assert httpx.get(root, headers=BROWSER, trust_env=False).text == "Healthy"
        assert httpx.get(f"{root}page/main.js", trust_env=False).status_code == 404


def test_the_flag_goes_from_one_command_line_to_the_other() -> None:
    values = {flag.variable: flag.default for flag in (*serving.PEOPLE, *serving.LOCAL, *serving.RAY)}
    assert "--no-page" not in runner_options(values)
    words = runner_options({**values, "no_page": True, "http_port": 0})
    assert "--no-page" in words
    assert words[words.index("--http-port") + 1] == "0"


async def test_the_page_needs_no_key_and_what_it_asks_for_does(guarded: httpx.AsyncClient) -> None:
    assert (await guarded.get("/", headers=BROWSER)).status_code == 200
    for name in FILES:
        assert (await guarded.get(f"/page/{name}")).status_code == 200
    for path in ("/metrics", "/swagger.json", "/page/", "/page/none.js", "/page/../metrics", "/page/%2e%2e/page.py"):
        assert (await guarded.get(path, headers=BROWSER)).status_code == 401
    assert (await guarded.post("/page/main.js")).status_code == 401


async def test_the_policy_allows_own_files_alone(guarded: httpx.AsyncClient) -> None:
    for path in ("/", "/page/main.js"):
        headers = (await guarded.get(path, headers=BROWSER)).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
        assert policy["default-src"] == policy["frame-ancestors"] == policy["form-action"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert "unsafe" not in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff"


def test_files_name_no_other_host_and_make_no_html() -> None:
    for name in FILES:
        text = (FOLDER / name).read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://", text), name
        assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|new Function", text), name
        assert not re.search(r"localStorage|sessionStorage|document\.cookie|indexedDB", text), name
        assert len(text.splitlines()) <= 400, name
    html = (FOLDER / "index.html").read_text("utf-8")
    assert not re.search(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", html)
    named = set(re.findall(r'(?:src|href)="/page/([^"]+)"', html))
    for name in FILES:
        named |= set(re.findall(r'from "\./([^"]+)"', (FOLDER / name).read_text("utf-8")))
    assert named | {"index.html"} == set(FILES)


def test_the_container_never_has_it() -> None:
    assert not [name for name in HOST_FILES if "page" in name]
