"""Bundles with `--server http`: what they carry, what azure-ai-ml makes of them, and what checks say of a wrong one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from mii_azure.bundle.bundle_view import Inspected
from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.verify import verify_bundle
from mii_azure.checks import files, yaml_rules
from mii_azure.checks.check import RULES, check
from mii_azure.errors import SpecError
from mii_azure.platform import servers
from mii_azure.sdk.generate import generate
from tests.mii_azure.bundle.test_azure_yaml import submit
from tests.mii_azure.bundles import rendered
from tests.mii_azure.checks.mutations import DOCKERFILE, ENVIRONMENT, LOCK, edit
from tests.module_graph import module_graph

# What an image with --server http does not install, and what only the other packages may import.
_ABSENT = ("grpc", "mii_azure", "cryptography.x509", "ray", "typer.main", "azure.ai")
_ALONE = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name in {_ABSENT!r} or name.startswith(tuple(absent + "." for absent in {_ABSENT!r})):
            raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Absent())
sys.path.insert(0, sys.argv[1])
import local_runner.container as container
assert container.__file__.startswith(sys.argv[1]), container.__file__
assert sys.modules["scoring"].__file__.startswith(sys.argv[1])
"""


@pytest.fixture(scope="module")
def http_bundle(tmp_path_factory, tiny) -> Path:
    """One bundle, never changed."""
    folder = tmp_path_factory.mktemp("http") / "bundle"
    return generate("fill-mask", str(tiny("bert", "fill-mask")), "my-mask", output=folder, server="http")


def own(http_bundle: Path, folder: Path) -> Path:
    return Path(shutil.copytree(http_bundle, folder / "bundle"))


def test_it_has_no_findings_and_is_as_generated(http_bundle):
    assert check(http_bundle) == []
    assert verify_bundle(http_bundle).sound


def test_the_host_it_carries_runs_without_the_packages_that_its_image_lacks(http_bundle):
    code = str(http_bundle / "code")
    done = subprocess.run([sys.executable, "-B", "-c", _ALONE, code], cwd="/", capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_it_carries_the_installed_files_byte_for_byte_and_not_one_more(http_bundle):
    base = http_bundle / "code/local_runner"
    carried = {path.relative_to(base).as_posix(): path.read_bytes() for path in base.rglob("*.py")}
    assert carried == {name: (servers.HOST / name).read_bytes() for name in servers.HOST_FILES}
    assert not {"server.py", "grpc/services.py", "access/security.py", "client/client.py"} & carried.keys()


def test_a_bundle_for_azures_server_carries_no_host_and_no_package_of_it(tmp_path, tiny):
    bundle = generate("fill-mask", str(tiny("bert", "fill-mask")), "my-mask", output=tmp_path / "bundle")
    assert not (bundle / "code/local_runner").exists()
    assert not {pin.name for pin in pins((bundle / LOCK).read_text())} & set(servers.HOST_PACKAGES)


def test_the_lock_has_each_package_once(http_bundle):
    names = [pin.name for pin in pins((http_bundle / LOCK).read_text())]
    assert len(names) == len(set(names))
    assert set(servers.HOST_PACKAGES) <= set(names)


@pytest.mark.parametrize("device", ["cpu", "a100"])
def test_azure_takes_its_routes_and_variables(tmp_path, device):
    bodies = submit(tmp_path, rendered("text-generation", device, server="http"))
    properties = bodies["environment"]["properties"]
    routes = properties["inferenceConfig"]
    assert routes["livenessRoute"] == {"port": 5001, "path": "/healthz"}
    assert routes["readinessRoute"] == {"port": 5001, "path": "/readyz"}
    assert routes["scoringRoute"] == {"port": 5001, "path": "/"}
    variables = bodies["deployment"]["properties"]["environmentVariables"]
    assert variables["MII_AZURE_HTTP_PORT"] == "5001"
    assert not variables.keys() & {"GUNICORN_CMD_ARGS", "WORKER_COUNT", "WORKER_TIMEOUT"}


def test_the_plan_and_the_readme_say_which_server(http_bundle):
    assert "| server | http |" in (http_bundle / "plan.md").read_text()
    assert "/v1/models" in (http_bundle / "README.md").read_text()


def test_a_batch_endpoint_takes_no_server(tiny, tmp_path):
    model = str(tiny("bert", "fill-mask"))
    with pytest.raises(SpecError, match="no HTTP server"):
        generate("fill-mask", model, "a-name", output=tmp_path / "b", kind="batch", compute="cpu", server="http")
    with pytest.raises(SpecError, match="server"):
        generate("fill-mask", model, "a-name", output=tmp_path / "b", server="flask")


def test_the_routes_of_the_other_server_are_found(http_bundle, tmp_path):
    bundle = own(http_bundle, tmp_path)
    edit(ENVIRONMENT, "/readyz", "/").apply(bundle)
    (problem,) = yaml_rules.routes(Inspected(bundle))
    assert problem.keys == ("inference_config", "readiness_route")
    assert "/readyz on port 5001" in problem.message
    assert list(yaml_rules.routes(Inspected(http_bundle))) == []


def test_an_image_that_starts_another_server_is_found(http_bundle, tmp_path):
    bundle = own(http_bundle, tmp_path)
    edit(DOCKERFILE, "python -m local_runner.container", "azmlinfsrv --port 5001").apply(bundle)
    rule = next(rule for rule in RULES if rule.id == "MII406")
    assert [problem.file for problem in rule.find(Inspected(bundle))] == [DOCKERFILE]


def test_a_lock_without_the_servers_packages_is_found(http_bundle, tmp_path):
    bundle = own(http_bundle, tmp_path)
    edit(LOCK, "^uvicorn==", "left-pad==").apply(bundle)
    (problem,) = files.image_without_the_host(Inspected(bundle))
    assert problem.file == LOCK
    assert "imports uvicorn," in problem.message


def test_a_host_of_another_version_is_named(http_bundle, tmp_path):
    bundle = own(http_bundle, tmp_path)
    edit("code/local_runner/host/host.py", r"^class Host\((.*)\):$", r"class Host(\1):  # patched").apply(bundle)
    (problem,) = files.scoring_of_another_version(Inspected(bundle))
    assert problem.file == "code/local_runner/host/host.py"
    assert "HTTP host" in problem.message
    assert verify_bundle(bundle).scoring == ["local_runner/host/host.py"]


def test_the_command_of_the_image_is_json(http_bundle):
    line = (http_bundle / DOCKERFILE).read_text().rstrip().splitlines()[-1]
    assert json.loads(line.removeprefix("CMD "))[-1].endswith(f"exec python -m {servers.HOST_MODULE}")
    assert yaml.safe_load((http_bundle / ENVIRONMENT).read_text())["inference_config"]["scoring_route"]["path"] == "/"


def test_what_ships_of_the_host_is_all_that_it_imports_and_no_more():
    """Declared, not found: whoever lets the host import another module sees here that it is to ship."""
    shipped = {f"local_runner.{name.removesuffix('.py').replace('/', '.')}" for name in servers.HOST_FILES}
    shipped = {name.removesuffix(".__init__") for name in shipped}
    graph = module_graph()
    wanted, left = {"local_runner"}, [servers.HOST_MODULE]
    while left:
        name = left.pop()
        if name not in wanted:
            wanted.add(name)
            left += [name.rpartition(".")[0], *(each for each in graph[name] if each.startswith("local_runner."))]
    assert shipped == wanted
    assert list(servers.HOST_FILES) == sorted(servers.HOST_FILES)
