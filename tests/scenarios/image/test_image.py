"""The generated Dockerfile, really built, and Azure's server inside it; `make image` runs this, `make test` skips it.

The base image is stood in for by Debian with Python 3.11, since nothing is pulled here: what the base image itself
holds is not tested. Everything after FROM is. MII_AZURE_IMAGE_SERVER=http does it for a bundle with `--server http`.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from local_runner.targets.targets import make_target
from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.render import images
from mii_azure.sdk.generate import generate
from mii_azure.verdict.grade import TOLERANCES, grade
from tools.image.images import Images, Server, missing_programs

MISSING = missing_programs()
pytestmark = [
    pytest.mark.image,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(os.environ.get("MII_AZURE_IMAGE") != "1", reason="`make image` builds the image"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
    pytest.mark.skipif(os.geteuid() != 0, reason="a root file system needs root"),
]
FOLDER = Path(__file__).resolve().parents[3] / ".cache" / "image"
SERVER = os.environ.get("MII_AZURE_IMAGE_SERVER", "azmlinfsrv")
NAME = "localhost/mii-azure-test"
MODEL, APP = "/var/azureml-app/azureml-models//my-qa-model/1/model", "/var/azureml-app/code"


@pytest.fixture(scope="module")
def bundle(tiny, tmp_path_factory) -> Path:
    model = str(tiny("bert", "question-answering"))
    folder = tmp_path_factory.mktemp("image") / "bundle"
    return generate("question-answering", model, "My-qa", output=folder, instance_type="Standard_F8s_v2", server=SERVER)


@pytest.fixture(scope="module")
def built(bundle) -> Iterator[Images]:
    """The image of the bundle's environment folder, gone afterwards; the log is in .cache/image."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    made = Images(FOLDER, FOLDER / "build.log")
    made.ensure_base(images()["cpu"]["image"])
    made.log.unlink(missing_ok=True)
    made.build(bundle / "environment", NAME)
    yield made
    made.remove(NAME)


@pytest.fixture(scope="module")
def container(built) -> Iterator[str]:
    with built.container(NAME) as name:
        yield name


@pytest.fixture(scope="module")
def server(built, container, bundle) -> Iterator[Server]:
    """The image's own command, with what Azure ML mounts and sets, and no network but a loopback."""
    variables = {
        "AML_APP_ROOT": f"{APP}/",
        "AZUREML_ENTRY_SCRIPT": "score.py",
        "AZUREML_MODEL_DIR": MODEL,
        "OMP_NUM_THREADS": "1",
    }
    volumes = {bundle / "code": APP, bundle / "model": MODEL.replace("//", "/")}
    with built.serving(container, built.config(NAME)["Cmd"], volumes, variables) as running:
        running.wait()
        yield running


def test_the_configuration_is_the_dockerfiles(built):
    config = built.config(NAME)
    assert config["User"] == "10001"
    assert config["Cmd"][:2] == ["sh", "-c"]
    assert config["ExposedPorts"] == {"5001/tcp": {}}


def test_nothing_of_this_machine_is_left_in_the_image(built, container):
    script = (
        "cat /etc/pip.conf 2>/dev/null; ls -A /opt/mii-azure /root /home/scoring /opt/wheels /opt/pypi 2>&1 || true"
    )
    told = built.inside(container, "sh", "-c", script)
    assert "venv" in told
    assert "index" not in told
    assert ".whl" not in told
    assert ".lock" not in told


def test_the_venv_holds_what_the_lock_pins_and_nothing_else(built, container, bundle):
    code = "import json, importlib.metadata as m; print(json.dumps([[d.name, d.version] for d in m.distributions()]))"
    found = json.loads(built.inside(container, "python", "-c", code))
    installed = {(name.lower().replace("_", "-").replace(".", "-"), version.split("+")[0]) for name, version in found}
    lock = (bundle / "environment/requirements.lock").read_text()
    assert installed == {(pin.name.lower().replace(".", "-"), pin.version.split("+")[0]) for pin in pins(lock)}


def test_it_runs_as_a_user_that_may_write_nowhere_but_at_home(built, container):
    script = (
        "id -u; touch /opt/mii-azure/venv/x 2>/dev/null && echo writes-venv; touch /x 2>/dev/null && echo writes-root; "
        "touch /home/scoring/x && echo writes-home; cat /etc/shadow 2>/dev/null; true"
    )
    assert built.inside(container, "sh", "-c", script).split() == ["10001", "writes-home"]


@pytest.mark.parametrize("tool", ["gcc", "cc", "g++", "clang", "nvcc", "make", "pip"])
def test_no_compiler_and_no_installer_is_left(built, container, tool):
    assert built.inside(container, "sh", "-c", f"command -v {tool} || echo absent").split() == ["absent"]


def test_the_server_inside_answers_the_sample_as_the_process_here_does(server, bundle):
    sample = (bundle / "requests/sample.json").read_text()
    status, body = server.ask("/score", sample)
    assert status == 200, body
    with make_target("in-process", bundle) as here:
        reply = here.send(sample)
    same = grade((reply.status, reply.body), (status, body), TOLERANCES["float32"])  # each timed CPU formats for itself
    assert same[0] in ("bytes", "values"), same


@pytest.mark.skipif(SERVER != "azmlinfsrv", reason="of Azure's server")
def test_threads_answer_inside_as_the_settings_say(server, built):
    """One worker of gunicorn's gthread kind: the health route answers while a request is in flight."""
    assert "Using worker: gthread" in built.log.read_text(encoding="utf-8", errors="replace").rsplit("azmlinfsrv", 1)[0]


def test_a_bad_request_is_an_error_inside_too(server):
    status, body = server.ask("/score", "{}")
    assert status == 400
    assert json.loads(body)["error"]["code"]


def test_the_server_inside_serves_its_openapi(server):
    status, body = server.ask("/swagger.json?version=3")
    assert status == 200
    assert "/score" in json.loads(body)["paths"]


@pytest.mark.skipif(SERVER != "http", reason="of our own server")
@pytest.mark.parametrize("path", ["/healthz", "/readyz", "/v1/models", "/metrics"])
def test_our_server_inside_answers_its_routes(server, path):
    assert server.ask(path)[0] == 200
