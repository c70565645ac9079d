"""Ways to break a bundle, each with the rule that must notice."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple


class Mutation(NamedTuple):
    """A change, and the file that the finding must name."""

    file: str
    apply: Callable[[Path], None]


def edit(file: str, pattern: str, new: str) -> Mutation:
    """Replace the one match of a pattern."""

    def apply(bundle: Path) -> None:
        text, count = re.subn(pattern, lambda match: match.expand(new), (bundle / file).read_text(), flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} matches {file} {count} times"
        (bundle / file).write_text(text)

    return Mutation(file, apply)


def replaced(file: str, pattern: str, new: str) -> Mutation:
    """Replace every match of a pattern."""

    def apply(bundle: Path) -> None:
        text, count = re.subn(pattern, new, (bundle / file).read_text(), flags=re.MULTILINE)
        assert count, f"{pattern!r} does not match {file}"
        (bundle / file).write_text(text)

    return Mutation(file, apply)


def value(file: str, key: str, new: str) -> Mutation:
    """Give the one key of that name in a YAML file another value."""
    return edit(file, rf"^( *){key}: .*$", rf"\g<1>{key}: {new}")


def without(file: str, key: str) -> Mutation:
    """Remove a key with what is below it."""
    return edit(file, rf"^( *){key}:.*\n(?:\1 +.*\n)*", "")


def probe(name: str, field: str, new: int) -> Mutation:
    return edit("deployment.yml", rf"({name}:\n(?:  .*\n)*?  {field}:) \d+", rf"\1 {new}")


def write(file: str, content: str | bytes) -> Mutation:
    def apply(bundle: Path) -> None:
        (bundle / file).write_bytes(content if isinstance(content, bytes) else content.encode())

    return Mutation(file, apply)


def set_json(file: str, **fields: object) -> Mutation:
    def apply(bundle: Path) -> None:
        path = bundle / file
        path.write_text(json.dumps(json.loads(path.read_text()) | fields))

    return Mutation(file, apply)


def both(first: Mutation, *others: Mutation) -> Mutation:
    """Several changes; the finding is about the first one's file."""

    def apply(bundle: Path) -> None:
        for mutation in (first, *others):
            mutation.apply(bundle)

    return Mutation(first.file, apply)


def script(init: str = "def init(): pass", run: str = "def run(raw): pass") -> Mutation:
    return write("code/score.py", f"{init}\n{run}\n")


def on(instance_type: str) -> Mutation:
    """Planned for and deployed on that instance type."""
    settings = set_json("code/deployment.json", instance_type=instance_type)
    return both(value(DEPLOYMENT, "instance_type", f'"{instance_type}"'), settings)


ENDPOINT, DEPLOYMENT, ENVIRONMENT, MODEL = "endpoint.yml", "deployment.yml", "environment.yml", "model.yml"
SAMPLE, DOCKERFILE, LOCK = "requests/sample.json", "environment/Dockerfile", "environment/requirements.lock"
_GTHREAD = "--worker-class gthread --threads"
_WIDE = both(on("Standard_F4s_v2"), set_json("model/config.json", hidden_size=10**8))
_UNDERSCORE = both(value(ENDPOINT, "name", '"my_qa"'), value(DEPLOYMENT, "endpoint_name", '"my_qa"'))
_USER_ASSIGNED = "identity:\n  type: user_assigned"
_BY_NAME = "\n  user_assigned_identities:\n    - resource_id: mine"
_CONNECTION = edit(
    DEPLOYMENT, "^  WORKER_COUNT", '  HF_TOKEN: "${{azureml://connections/hub/credentials/token}}"\n  WORKER_COUNT'
)
_LARGE = set_json("code/deployment.json", limits={"max_payload_bytes": 10**8})

#: What breaks, the rule that says so, and how.
BROKEN: dict[str, tuple[str, Mutation]] = {
    "a password in a comment": ("MII006", edit("README.md", "^## Ask it$", "curl https://me:hunter22@host/")),
    "a hub token": ("MII006", set_json("code/deployment.json", name="hf_" + "a1B2" * 9)),
    "a storage key": ("MII006", edit("deploy.sh", "^set -euo", "# AccountKey=" + "Zz9+" * 20 + "\nset -euo")),
    "a private key": ("MII006", edit("deploy.sh", "^set -euo", "# -----BEGIN RSA PRIVATE KEY-----\nset -euo")),
    "a tab in the YAML": ("MII101", edit(DEPLOYMENT, "^instance_count", "\tinstance_count")),
    "a list for YAML": ("MII101", write(ENDPOINT, "- a\n")),
    "YAML that is not text": ("MII101", write(ENDPOINT, b"\xff\xfe\x00")),
    "a date that is none": ("MII101", value(ENDPOINT, "description", "2026-13-45")),
    "YAML without a bottom": ("MII101", write(ENDPOINT, "[" * 1500)),
    "an underscore in the endpoint's name": ("MII102", _UNDERSCORE),
    "a name of 33 characters": ("MII102", edit(DEPLOYMENT, "^name: .*", f'name: "{"a" * 33}"')),
    "a name of two characters": ("MII102", edit(DEPLOYMENT, "^name: .*", 'name: "qa"')),
    "a name that is a number": ("MII102", edit(DEPLOYMENT, "^name: .*", "name: 12345")),
    "no name": ("MII102", edit(DEPLOYMENT, "^name: .*\n", "")),
    "a name in capitals": ("MII103", edit(DEPLOYMENT, "^name: .*", 'name: "My-QA"')),
    "a deployment for another endpoint": ("MII104", value(DEPLOYMENT, "endpoint_name", '"other"')),
    "an environment of another folder": ("MII105", value(DEPLOYMENT, "environment", '"azureml:other-env:1"')),
    "a model without a version": ("MII105", edit(DEPLOYMENT, "^model: .*", 'model: "azureml:my-qa-model@latest"')),
    "a number in the environment": ("MII107", value(DEPLOYMENT, "WORKER_COUNT", "1")),
    "a boolean in the environment": ("MII107", edit(DEPLOYMENT, "^  WORKER_COUNT", "  LOG_IO: true\n  WORKER_COUNT")),
    "an absolute path": ("MII108", value(DEPLOYMENT, "code", '"/home/me/code"')),
    "a Windows path": ("MII108", value(DEPLOYMENT, "code", r"'C:\\me\\code'")),
    "a path out of the bundle": ("MII108", edit(ENVIRONMENT, '^  path: "environment"', '  path: "../environment"')),
    "a path to nothing": ("MII108", value(MODEL, "path", '"weights"')),
    "code without its folder": ("MII108", without(DEPLOYMENT, "code")),
    "no Dockerfile path": ("MII108", without(ENVIRONMENT, "dockerfile_path")),
    "scoring on another port": ("MII109", edit(ENVIRONMENT, '5001(\n    path: "/score")', r"80\1")),
    "two routes of three": ("MII109", without(ENVIRONMENT, "readiness_route")),
    "half of the traffic": ("MII110", edit(ENDPOINT, "^tags:", 'traffic: {"my-qa": 50}\ntags:')),
    "most of the traffic mirrored": ("MII110", edit(ENDPOINT, "^tags:", 'mirror_traffic: {"my-qa": 80}\ntags:')),
    "two mirrors": ("MII110", edit(ENDPOINT, "^tags:", "mirror_traffic: {a: 10, b: 10}\ntags:")),
    "traffic to a name in capitals": ("MII114", edit(ENDPOINT, "^tags:", 'traffic: {"My-QA": 100}\ntags:')),
    "a token as it is": ("MII115", edit(DEPLOYMENT, "^  WORKER_COUNT", '  HF_TOKEN: "abc"\n  WORKER_COUNT')),
    "half of a reference": (
        "MII115",
        edit(DEPLOYMENT, "^  WORKER_COUNT", '  API_KEY: "${{azureml://connections/}}"\n  WORKER_COUNT'),
    ),
    "an identity without its id": ("MII116", edit(ENDPOINT, "^tags:", f"{_USER_ASSIGNED}\ntags:")),
    "an identity by its name": ("MII116", edit(ENDPOINT, "^tags:", f"{_USER_ASSIGNED}{_BY_NAME}\ntags:")),
    "a connection that may not be read": ("MII117", both(edit(ENDPOINT, "^tags:", "tags:"), _CONNECTION)),
    "an instance type that does not exist": ("MII201", on("Standard_NC7as_T4_v3")),
    "an instance type that Azure retired": ("MII202", on("Standard_NC6s_v3")),
    "a model wider than any machine": ("MII203", _WIDE),
    "no instances": ("MII204", value(DEPLOYMENT, "instance_count", "0")),
    "51 instances": ("MII204", value(DEPLOYMENT, "instance_count", "51")),
    "a probe every zero seconds": ("MII205", probe("readiness_probe", "period", 0)),
    "liveness only after two successes": ("MII205", probe("liveness_probe", "success_threshold", 2)),
    "no liveness probe": ("MII212", without(DEPLOYMENT, "liveness_probe")),
    "a probe that does not wait": (
        "MII206",
        both(probe("liveness_probe", "initial_delay", 1), probe("liveness_probe", "failure_threshold", 1)),
    ),
    "a request of 181 s": ("MII207", value(DEPLOYMENT, "request_timeout_ms", "181000")),
    "no time for a request": ("MII207", value(DEPLOYMENT, "request_timeout_ms", "0")),
    "Azure's default time for a request": ("MII207", without(DEPLOYMENT, "request_timeout_ms")),
    "no concurrency": ("MII208", value(DEPLOYMENT, "max_concurrent_requests_per_instance", "0")),
    "a server that kills its worker": ("MII209", value(DEPLOYMENT, "WORKER_TIMEOUT", '"30"')),
    "a worker timeout that is no number": ("MII209", value(DEPLOYMENT, "WORKER_TIMEOUT", '"soon"')),
    "four copies of the model": ("MII210", value(DEPLOYMENT, "WORKER_COUNT", '"4"')),
    "one synchronous worker": ("MII211", value(DEPLOYMENT, "GUNICORN_CMD_ARGS", '"--worker-class sync"')),
    "fewer threads than requests": ("MII211", value(DEPLOYMENT, "GUNICORN_CMD_ARGS", f'"{_GTHREAD} 4"')),
    "a time in the queue": ("MII213", edit(DEPLOYMENT, "^(  request_timeout_ms:)", r"  max_queue_wait_ms: 500\n\1")),
    "requests larger than a second carries": ("MII214", _LARGE),
    "a script that is not Python": ("MII301", script(init="def init(:")),
    "a script with a null byte": ("MII301", script(run="def run(raw): pass\n\0")),
    "a script that is not text": ("MII301", write("code/score.py", b"\xff")),
    "a script without run": ("MII302", script(run="")),
    "run with **": ("MII302", script(run="def run(**data): pass")),
    "run of headers only": ("MII302", script(run="def run(request_headers): pass")),
    "run that is async": ("MII302", script(run="async def run(raw): pass")),
    "init with an argument": ("MII302", script(init="def init(model): pass")),
    "a config.json beside the script": ("MII303", write("code/config.json", "{}")),
    "settings that scoring cannot read": ("MII304", set_json("code/deployment.json", colour="red")),
    "another instance type than planned for": ("MII304", value(DEPLOYMENT, "instance_type", '"Standard_F8s_v2"')),
    "a sample of another task": ("MII305", write(SAMPLE, '{"inputs": "a text"}')),
    "a sample that is not JSON": ("MII305", write(SAMPLE, "{")),
    "an OpenAPI that is not JSON": ("MII306", write("code/swagger3.json", "{")),
    "an OpenAPI without paths": ("MII306", write("code/swagger2.json", '{"paths": {}}')),
    "a model elsewhere": ("MII307", value(MODEL, "path", '"requests"')),
    "an import that is not installed": ("MII308", script(init="import left_pad\ndef init(): pass")),
    "a model with code of its own": ("MII309", set_json("model/config.json", auto_map={"AutoModel": "modeling.M"})),
    "an image without a tag": ("MII403", replaced(DOCKERFILE, "^FROM [^ \n]+", "FROM python")),
    "CUDA that the driver does not know": ("MII405", replaced(DOCKERFILE, "^FROM [^ \n]+", "FROM a/cuda13.1:1")),
    "a package without a hash": ("MII401", edit(LOCK, "^annotated-types==", "left-pad==1.0\nannotated-types==")),
    "a package without a version": ("MII401", edit(LOCK, "^annotated-types==", "left-pad\nannotated-types==")),
    "an image without hashes": ("MII402", edit(DOCKERFILE, r"--require-hashes \\\n +--use-pep517", "--use-pep517")),
    "a package past the lock": ("MII402", edit(DOCKERFILE, "^USER 10001", "RUN pip install left-pad\nUSER 10001")),
    "a key that Azure does not know": ("MII501", edit(DEPLOYMENT, "^instance_count", "replicas: 2\ninstance_count")),
    "text for a number": ("MII501", value(DEPLOYMENT, "instance_count", "many")),
    "an authentication that does not exist": ("MII501", value(ENDPOINT, "auth_mode", '"password"')),
    "an image beside a Dockerfile": ("MII501", edit(ENVIRONMENT, "^build:", 'image: "python:3.11"\nbuild:')),
    "a model type that does not exist": ("MII501", value(MODEL, "type", '"onnx"')),
}  # fmt: skip
