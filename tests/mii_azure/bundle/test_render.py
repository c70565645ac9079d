"""Rendering: values survive their file's syntax, and each file is what its reader expects."""

import ast
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import jinja2
import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from mii_azure.bundle import render as rendering
from mii_azure.bundle.bundle_view import Inspected
from mii_azure.bundle.lockfile import pins
from mii_azure.bundle.render import TEMPLATES, content_hash, images, render
from mii_azure.planning.planner import plan
from mii_azure.platform import servers
from scoring.schema.registry import TASKS, schema
from tests.mii_azure.bundles import SKUS, rendered, spec_and_plan

AWKWARD = 'a"b\\c: #d {e} |%$`\'"""\u2028é\x7f\t模型'
text = st.text(st.characters(exclude_categories=["Cs"]))
lines = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]))


@given(text)
def test_any_text_is_one_yaml_scalar(value):
    assert yaml.safe_load(f"key: {rendering._yaml(value)}\nnext: 1") == {"key": value, "next": 1}


@pytest.mark.parametrize("value", [True, False, 0, 12, 1.5])
def test_numbers_and_booleans_stay_what_they_are(value):
    assert yaml.safe_load(rendering._yaml(value)) is value or yaml.safe_load(rendering._yaml(value)) == value


@given(lines)
def test_any_line_is_one_docstring(value):
    assert ast.literal_eval(f'"""{rendering._docstring(value)}\n"""') == value + "\n"


@given(lines)
@example("`$x` \\$ \"'")
def test_any_line_is_one_value_of_the_image(value):
    # shlex, unlike a shell, leaves a backslash before a dollar sign where it is.
    assert shlex.split(rendering._docker(value).replace(r"\$", "\0")) == [value.replace("$", "\0")]


@given(text)
def test_any_text_is_one_cell(value):
    assert not re.search(r"(?<!\\)\||[\r\n]", rendering._cell(value))


def test_an_awkward_model_name_reaches_every_file_whole():
    spec, made = spec_and_plan("question-answering")
    files = render(spec, made, schema("question-answering"), model_id=AWKWARD, model_version="0123456789ab")
    assert yaml.safe_load(files["deployment.yml"])["tags"]["model"] == AWKWARD
    assert yaml.safe_load(files["model.yml"])["tags"]["model"] == AWKWARD
    assert json.loads(files["code/deployment.json"])["model"]["id"] == AWKWARD
    assert AWKWARD in json.loads(files["code/swagger3.json"])["info"]["description"]


def test_a_forgotten_value_is_an_error():
    with pytest.raises(jinja2.UndefinedError):
        rendering._environment().from_string("{{ forgotten }}").render({})


def test_every_template_is_used():
    image = {"image": "mine.azurecr.io/qa"}
    kinds = [{"kind": "batch", "compute": "cluster"}, {"max_instances": 2}]
    kinds += [{"kind": "template", "registry": "shared", **image}, {"kind": "kaito", **image}]
    specs = [spec_and_plan("fill-mask", **options)[0] for options in ({}, *kinds)]
    used = {"Dockerfile.j2", "model.yml.j2", "deployment-template.yml.j2"}
    for make in (rendering.endpoint_kinds.texts, rendering.endpoint_kinds.code):
        used |= {template for spec in specs for template in make(spec).values()}
    included = re.findall(r'{% include "(.*?)" %}', "".join((TEMPLATES / name).read_text() for name in used))
    assert {path.name for path in TEMPLATES.glob("*.j2")} == used | set(included)


def test_nothing_rendered_names_a_place_on_this_machine():
    for task in TASKS:
        for path, content in rendered(task).items():
            assert not re.search(r"/(?:home|work|tmp/\w|root/\w|Users)\b(?!/scoring)", content), path


def test_the_version_follows_the_content():
    first = content_hash({"a": "1" * 64, "b": "2" * 64})
    assert re.fullmatch("[0-9a-f]{12}", first)
    assert first == content_hash({"b": "2" * 64, "a": "1" * 64})
    assert first != content_hash({"a": "1" * 64, "b": "3" * 64})
    assert first != content_hash({"a": "1" * 64, "c": "2" * 64})


@pytest.mark.parametrize("line", images())
def test_every_device_line_has_a_lock_a_date_and_a_source(line):
    image = images()[line]
    for lock in ("lock", "batch_lock"):
        assert (TEMPLATES / "locks" / image[lock]).read_text().count("--hash=sha256:") > 50
    assert re.fullmatch(r"\d{4}-\d\d-\d\d", image["date"])
    assert image["source"]
    assert image["image"].startswith("mcr.microsoft.com/azureml/")


def instructions(dockerfile: str) -> list[tuple[str, str]]:
    lines = re.sub(r"^#.*\n", "", dockerfile, flags=re.MULTILINE).replace("\\\n", "").splitlines()
    return [(line.split(None, 1)[0], line.split(None, 1)[1]) for line in lines if line.strip()]


BATCH = {"kind": "batch", "compute": "cluster"}


@pytest.mark.parametrize("asked", [{}, BATCH], ids=["online", "batch"])
@pytest.mark.parametrize(("device", "capability"), [("cpu", None), ("t4", "7.5"), ("a100", "8.0")])
def test_the_image(device, capability, asked):
    files = rendered("fill-mask", device, **asked)
    steps = instructions(files["environment/Dockerfile"])
    assert {name for name, _ in steps} <= {"FROM", "USER", "RUN", "WORKDIR", "COPY", "ENV", "EXPOSE", "CMD"}
    image = images()["cpu" if device == "cpu" else "cuda13"]
    base = image["image"]
    assert [value for name, value in steps if name == "FROM"] == [f"{base} AS builder", base]
    assert steps[0][0] == "FROM"
    venv = "/opt/mii-azure/venv"
    assert [value for name, value in steps if name == "COPY"] == [
        "requirements.lock .",
        f"--from=builder {venv} {venv}",
    ]
    for name, value in steps:
        if name == "RUN":
            subprocess.run(["sh", "-n", "-c", value], check=True)
    variables = dict(pair.split("=", 1) for name, value in steps if name == "ENV" for pair in shlex.split(value))
    assert variables.get("TORCH_CUDA_ARCH_LIST") == capability
    assert variables["DS_ACCELERATOR"] == ("cpu" if device == "cpu" else "cuda")
    assert variables["PATH"].startswith(f"{venv}/bin:")
    lock = (TEMPLATES / "locks" / image["batch_lock" if asked else "lock"]).read_text()
    lock += (TEMPLATES / "locks/openvino.lock").read_text() if device == "cpu" else ""
    assert files["environment/requirements.lock"] == lock
    _starts(steps, variables, batch=bool(asked))


def _starts(steps, variables, batch):
    """Azure ML starts a batch script itself, as root and with its inputs mounted by fuse; a server starts alone."""
    final = steps[max(number for number, (name, _) in enumerate(steps) if name == "FROM") :]
    installs = [value for name, value in final if name == "RUN" and "apt-get install" in value]
    assert any(re.search(r"\bfuse\b", value) for value in installs) == batch
    assert [value for name, value in steps if name == "USER"] == ["root", "root", *([] if batch else ["10001"])]
    assert (steps[-1][0] == "CMD", ("EXPOSE", "5001") in steps) == (not batch, not batch)
    assert variables.get("WORKER_COUNT") == (None if batch else "1")


@pytest.mark.parametrize(
    ("task", "device", "asked", "capability"),
    [
        ("fill-mask", "t4", {}, "7.5"),
        ("fill-mask", "a100", {"optimisations": "public"}, "8.0"),
        ("fill-mask", "a100", {}, None),  # another pass has kernels of its own there
        ("text-generation", "t4", {}, None),
        ("fill-mask", "cpu", {}, None),
        ("fill-mask", "t4", BATCH, "7.5"),
    ],
)
def test_the_image_compiles_deepspeeds_kernels_where_the_plan_takes_them(task, device, asked, capability):
    (install,) = (line for line in _runs(task, device, asked) if "venv/bin/pip" in line)
    assert ("DS_BUILD_TRANSFORMER_INFERENCE" in install) == bool(capability)
    if capability:
        first, then = install.split("DS_BUILD_TRANSFORMER_INFERENCE")
        assert "-r before.lock" in first
        assert f'TORCH_CUDA_ARCH_LIST="{capability}"' in then
        builder = rendered(task, device, **asked)["environment/Dockerfile"].rsplit("FROM ", 1)[0]
        assert "g++" in builder  # beside the image's nvcc


@pytest.mark.parametrize("asked", [{}, BATCH], ids=["online", "batch"])
def test_torch_is_installed_before_what_is_compiled_against_it(asked, tmp_path):
    """The lock that the Dockerfile's own awk leaves for the first step is all of it but deepspeed."""
    files = rendered("fill-mask", "t4", **asked)
    (install,) = (line for line in _runs("fill-mask", "t4", asked) if "venv/bin/pip" in line)
    (cut,) = (part for part in install.split("&&") if "before.lock" in part and "awk" in part)
    (tmp_path / "requirements.lock").write_text(files["environment/requirements.lock"])
    subprocess.run(["sh", "-c", cut], check=True, cwd=tmp_path)
    whole, before = (
        [pin.name for pin in pins(text)]
        for text in (files["environment/requirements.lock"], (tmp_path / "before.lock").read_text())
    )
    assert before == [name for name in whole if name != "deepspeed"]
    assert {"torch", "deepspeed"} <= set(whole)


def _runs(task, device, asked):
    dockerfile = rendered(task, device, **asked)["environment/Dockerfile"]
    return [value for name, value in instructions(dockerfile) if name == "RUN"]


def test_the_image_gives_the_server_the_script_that_azure_names(tmp_path):
    """azmlinfsrv takes its script from an argument only, and exits without one."""
    command = json.loads(instructions(rendered("fill-mask")["environment/Dockerfile"])[-1][1])
    stub = tmp_path / "bin" / "azmlinfsrv"
    stub.parent.mkdir()
    stub.write_text('#!/bin/sh\npwd\nprintf "%s\\n" "$@"\n')
    stub.chmod(0o755)
    (tmp_path / "app code").mkdir()
    variables = {"AML_APP_ROOT": f"{tmp_path}/app code/", "AZUREML_ENTRY_SCRIPT": "score.py"}
    environment = {"PATH": f"{stub.parent}:/usr/bin:/bin", **variables}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert done.stdout.splitlines() == [f"{tmp_path}/app code", "--port", "5001", "--entry_script", "score.py"]


def test_a_digest_pins_the_base_image(monkeypatch):
    pinned = {"cpu": images()["cpu"] | {"digest": "sha256:" + "0" * 64}}
    monkeypatch.setattr(rendering, "images", lambda: pinned)
    assert f"FROM {pinned['cpu']['image']}@sha256:{'0' * 64}\n" in rendered("fill-mask")["environment/Dockerfile"]


@pytest.mark.parametrize("asked", [{}, BATCH], ids=["online", "batch"])
@pytest.mark.parametrize("device", ["cpu", "t4"])
def test_both_stages_start_from_the_digest_that_the_spec_gives(device, asked):
    digest = "sha256:" + "1" * 64
    dockerfile = rendered("fill-mask", device, image_digest=digest, **asked)["environment/Dockerfile"]
    assert [f"@{digest}" in value for name, value in instructions(dockerfile) if name == "FROM"] == [True, True]


def test_a_compiler_is_in_the_image_only_where_a_pass_needs_one():
    compilers = ("g++", "gcc", "-dev", "build-essential", "clang")
    for line, image in images().items():
        final = [name for name in image["packages"] if any(part in name for part in compilers)]
        assert bool(final) == bool(image.get("packages_reason")), line
    final_stage = rendered("fill-mask")["environment/Dockerfile"].rsplit("FROM ", 1)[1]
    assert "apt-get" not in final_stage
    assert "pip" not in final_stage


@pytest.mark.parametrize("device", SKUS)
def test_the_server_has_threads_for_the_probes_and_time_for_the_request(device):
    _, made = spec_and_plan("text-generation", device)
    settings = servers.settings("azmlinfsrv", made.max_concurrent_requests)
    threads = int(settings["GUNICORN_CMD_ARGS"].rsplit(" ", 1)[1])
    assert threads >= made.max_concurrent_requests + 2
    assert int(settings["WORKER_TIMEOUT"]) * 1000 > made.request_timeout_ms


def test_the_image_alone_serves_as_the_deployment_does(make_bundle):
    bundle = make_bundle()
    inspected = Inspected(bundle)
    (bundle / "deployment.yml").write_text("{}\n")
    alone = Inspected(bundle).server
    assert {name: alone[name] for name in inspected.server} == inspected.server


def test_the_summary_of_the_plan_gives_every_reason():
    _, made = spec_and_plan("text-generation", "t4")
    written = rendered("text-generation", "t4")["plan.md"]
    rows = [line for line in written.splitlines() if line.startswith("| ")][1:]
    *own, of_image = rows
    assert of_image.startswith("| base image |")
    for row, decision in zip(own, made.decisions, strict=True):
        assert row == f"| {decision.what} | {decision.shown} | {decision.reason} |"


SERVER = """
import json, sys
from azureml_inference_server_http.server.swagger import Swagger
from azureml_inference_server_http.server.user_script import UserScript
script = UserScript("score.py")
script.load_script(sys.argv[1])
swagger = Swagger(sys.argv[1], "", script)
import scoring
print(json.dumps([scoring.__file__, swagger.supported_versions, swagger.get_swagger("3.1")["info"]["title"]]))
"""


def test_the_inference_server_takes_the_script_and_its_openapi(make_bundle, tmp_path):
    code = make_bundle() / "code"
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SERVER, str(code)], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, versions, title = json.loads(done.stdout.splitlines()[-1])
    assert Path(found) == code / "scoring" / "__init__.py"
    assert versions == ["2", "3", "3.1"]
    assert title == "My-qa"


def test_a_recorded_model_can_be_planned_for_and_rendered():
    made = plan("text-generation", "gpt2", instance_type="Standard_F8s_v2")
    spec, _ = spec_and_plan("text-generation")
    files = render(spec, made, schema("text-generation"), model_id="gpt2", model_version="0123456789ab")
    assert "GPT2LMHeadModel" in files["plan.md"]


def test_a_base_image_by_digest_is_told_with_what_it_costs():
    digest = f"sha256:{'a1' * 32}"
    files = rendered("fill-mask", image_digest=digest)
    assert f"@{digest}" in files["environment/Dockerfile"]
    assert "gets no patches" in files["plan.md"]
    unpinned = rendered("fill-mask")["plan.md"]
    assert "gets no patches" not in unpinned
    assert "newest with its patches" in unpinned
