"""Pages of other origins, over real HTTP: those that the operator names may call, with their keys."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local_runner.flags import serving
from local_runner.process.launch import LOOPBACK, Runner

pytestmark = pytest.mark.usefixtures("forked")

OURS, OTHER = "https://a.example", "https://b.example"
KEY = "a-key-of-the-tests-0123456789abcdef"


@pytest.fixture(scope="module")
def http(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    keys = tmp_path_factory.mktemp("keys") / "keys"
    keys.write_text(KEY)
    told = ("--cors-origins", f"{OURS},http://localhost:3000", "--api-key-file", str(keys), "--drain-seconds", "0.5")
    with (
        Runner(bundle, arguments=told) as runner,
        httpx.Client(base_url=f"http://{LOOPBACK}:{runner.http_port}", trust_env=False) as opened,
    ):
        yield opened


def asked(http: httpx.Client, origin: str) -> httpx.Response:
    wanted = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    return http.options("/score", headers={"origin": origin, **wanted})


def test_a_preflight_needs_no_key_and_an_origin_that_is_named(http: httpx.Client) -> None:
    allowed = asked(http, OURS)
    assert (allowed.status_code, allowed.headers["access-control-allow-origin"]) == (200, OURS)
    assert "authorization" in allowed.headers["access-control-allow-headers"].lower()
    refused = asked(http, OTHER)
    assert refused.status_code == 400
    assert "access-control-allow-origin" not in refused.headers


def test_calls_name_the_origin_and_still_need_a_key(http: httpx.Client) -> None:
    for key, status in ((KEY, 200), ("another", 401)):
        headers = {"origin": OURS, "authorization": f"Bearer {key}"}
        answer = http.post("/score", json={"inputs": "a"}, headers=headers)
        assert (answer.status_code, answer.headers["access-control-allow-origin"]) == (status, OURS)
    answer = http.post("/score", json={"inputs": "a"}, headers={"origin": OTHER, "authorization": f"Bearer {KEY}"})
    assert "access-control-allow-origin" not in answer.headers


def test_a_server_names_no_origin_by_default(runner: Runner) -> None:
    answer = httpx.get(f"http://{LOOPBACK}:{runner.http_port}/healthz", headers={"origin": OURS}, trust_env=False)
    assert (answer.status_code, "access-control-allow-origin" in answer.headers) == (200, False)


@pytest.mark.parametrize(
    "told",
    ["a.example", "https://a.example/", "https://a,b", "", "https://*.example", "https://A.example", "http://a?b"],
)
def test_what_is_no_origin_is_refused(told: str) -> None:
    with pytest.raises(ValueError, match=r"no origin|blank"):
        serving.CORS_ORIGINS.parse(told)
    for origins in ("*", "http://127.0.0.1:8080,https://xn--bcher-kva.example,http://[::1]:3000"):
        assert serving.CORS_ORIGINS.parse(origins) == origins
