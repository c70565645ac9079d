"""Renders a spec and a plan to the text of every file that is written, not copied: pure, no I/O but the templates."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

import jinja2
import yaml

from local_runner.bundle.manifest import bundle_digest
from mii_azure.bundle import endpoint_kinds, openapi, own_image
from mii_azure.bundle.carried import carried_code
from mii_azure.model.draft import FOLDER as DRAFT_FOLDER
from mii_azure.model.source import names_files
from mii_azure.planning.plan import Plan
from mii_azure.planning.rationale import Decision
from mii_azure.platform import servers
from mii_azure.spec import Spec
from scoring.config import Limits
from scoring.passes.families import CPU_STACK
from scoring.schema.registry import task_schema

TEMPLATES = Path(__file__).resolve().parents[2] / "templates"
OPENVINO_LOCK = "openvino.lock"  # of what runs such encoders on a CPU


def render(
    spec: Spec,
    plan: Plan,
    schema: Mapping[str, Any],
    *,
    model_id: str,
    model_version: str | None,
    own: Mapping[str, str] = MappingProxyType({}),
) -> dict[str, str]:
    """Return {path in the bundle: text}, sorted by path; `own` are texts of the user's in code/.

    `schema` is the task's `{"request", "response", "sample", "summary"}`. `model_version` is the content hash of the
    copied weights, that of a reference to files, or None for a registered model, which needs neither model.yml nor a
    folder.
    """
    own_image.require(spec, plan, model_version)
    plan = endpoint_kinds.adapt(spec, plan)
    chosen = [*_of_server(spec), *_of_base_image(spec, plan)]
    plan = plan.model_copy(update={"decisions": (*plan.decisions, *chosen)})
    context = _context(spec, plan, schema, model_id, model_version) | endpoint_kinds.context(spec, plan)
    context |= servers.context(spec.server) | own_image.context(spec, plan)
    files = _environment_files(spec, plan, context) | _code_files(spec, plan, schema, model_id, context)
    files |= own
    version = _image_version(spec, files, model_version)
    context |= {
        "environment_version": version,
        "environment_reference": f"azureml:{context['environment_name']}:{version}",
        "image_reference": f"{spec.image}:{version}",
    }
    if spec.kind == "template":
        text = fill("deployment-template.yml.j2", context | {"template_version": ""})
        context["template_version"] = template_version(text)
        files["deployment-template.yml"] = fill("deployment-template.yml.j2", context)
    files |= {path: fill(template, context) for path, template in endpoint_kinds.texts(spec).items()}
    if model_version and spec.kind != "kaito":
        files["model.yml"] = fill("model.yml.j2", context)
    files["requests/sample.json"] = as_json(schema["sample"])
    return dict(sorted(files.items()))


def _of_server(spec: Spec) -> list[Decision]:
    """Decision on the server, if it is not Azure's own."""
    reason = servers.why(spec.server)
    return [Decision(what="server", value=spec.server, reason=reason)] if reason else []


def _of_base_image(spec: Spec, plan: Plan) -> list[Decision]:
    """Decision on the base image: whether a digest pins it, and what that means for patches."""
    named, _, digest = base_image(spec, plan).partition("@")
    reason = f"{named}, and no other: every build is of the same base, which gets no patches. For those give a newer"
    reason += " digest from time to time, and deploy the bundle that it makes."
    if not digest:
        reason = f"{named}: every build takes the newest with its patches, so that two may differ. --image-digest pins"
        reason += " one."
    return [Decision(what="base image", value=digest[:19] or "the newest of its tag", reason=reason)]


def _environment_files(spec: Spec, plan: Plan, context: Mapping[str, Any]) -> dict[str, str]:
    """Files of environment/: the Dockerfile and the lock."""
    image = images()[plan.image]
    if plan.takes("weight_only"):
        image = image | {"packages": image["packages"] + image.get("narrow_packages", [])}
    own = {
        "image": image,
        "base_image": base_image(spec, plan),
        "image_variables": image["environment"] | _gpu_variables(plan) | _group_variables(plan),
        "kernels": _kernels(plan, image),
    }
    return {
        "environment/Dockerfile": fill("Dockerfile.j2", {**context, **own}),
        "environment/requirements.lock": _lock(spec, plan, image["batch_lock" if spec.kind == "batch" else "lock"]),
    }


def _code_files(
    spec: Spec, plan: Plan, schema: Mapping[str, Any], model_id: str, context: Mapping[str, Any]
) -> dict[str, str]:
    """Files of code/ that are rendered and not carried."""
    found = {path: fill(template, context) for path, template in endpoint_kinds.code(spec).items()}
    found["code/deployment.json"] = as_json(deployment_settings(spec, plan, model_id))
    for name, document in openapi.documents(schema, title=spec.name, model=model_id).items():
        found[f"code/{name}"] = as_json(document)
    return found


def _image_version(spec: Spec, files: Mapping[str, str], model_version: str | None) -> str:
    """Content hash of what the image is built of: environment/, and what a bundle of its kind has it carry."""
    carried = own_image.carried(spec)
    hashes = {path: _sha256(text) for path, text in files.items() if path.startswith(("environment/", *carried))}
    if "code" in carried:
        sources = carried_code(spec.server).items()
        hashes |= {path: hashlib.sha256(source.read_bytes()).hexdigest() for path, source in sources}
    return image_version(hashes, model_version if "model" in carried else None)


def image_version(hashes: Mapping[str, str], model_version: str | None = None) -> str:
    """Version of an image by the hashes of its files, and by that of the weights if it carries them."""
    return content_hash({**hashes, **({"model": model_version} if model_version else {})})


def template_version(text: str) -> str:
    """Version of a deployment template, whose text has none: Azure changes no template that exists."""
    return content_hash({"deployment-template.yml": _sha256(text)})


def content_hash(hashes: Mapping[str, str]) -> str:
    """First 12 hex digits over {path: SHA-256}: an asset version that changes if and only if the content does."""
    return bundle_digest(dict(hashes))[:12]


def reference_version(model: str) -> str | None:
    """Version under which to register the files that an azureml: reference names; None for a registered model."""
    return content_hash({"reference": _sha256(model)}) if names_files(model) else None


def deployment_settings(spec: Spec, plan: Plan, model_id: str) -> dict[str, Any]:
    """Content of code/deployment.json; `scoring.config.Deployment` reads it."""
    sliced = plan.tensor_parallel > 1
    cache = {"kv_cache_tokens": plan.kv_cache_tokens, "memory_share": spec.memory_share or 0.0}
    cache = (cache if plan.kv_cache_tokens else {}) | _forms(spec)
    quantised = {"quantisation": plan.quantisation.model_dump()} if plan.quantisation else {}
    adapters = {"adapters": [each.model_dump() for each in plan.adapters]} if plan.adapters else {}
    asked = {"handler": bool(spec.handler), "served_names": list(spec.served_name)}
    return {
        "schema": 1,
        "name": spec.name,
        **{name: value for name, value in asked.items() if value},
        "task": plan.task,
        "task_options": plan.task_options,
        "model": {
            "id": model_id,
            "revision": plan.profile.revision,
            "architecture": plan.profile.architecture,
            "family": plan.profile.family,
        },
        "dtype": plan.dtype,
        **quantised,
        **adapters,
        "allow_pickle": spec.allow_pickle,
        "trust_remote_code": spec.trust_remote_code,
        "instance_type": plan.instance_type,
        "limits": {
            "max_batch_tokens": plan.max_batch_tokens,
            "max_batch_size": plan.max_batch_size,
            "slots": plan.slots,
            **cache,
            "queue_size": plan.queue_size,
            "max_payload_bytes": plan.max_payload_bytes,
            "max_answer_bytes": Limits.max_answer_bytes,
            "request_timeout_s": plan.request_timeout_ms / 1000,
            "context_length": plan.context_length,
            "prefix_reuse": spec.prefix_reuse,
            "speculation": spec.speculation,
            **({"draft_model": DRAFT_FOLDER} if spec.draft_model else {}),
        },
        "optimisation": {
            "objective": spec.objective,
            "profile": spec.optimisations,
            # Planned slicing is forced: a server without its GPUs reports that instead of running out of memory.
            "on": sorted({*spec.passes_on, *(["tensor_slicing"] if sliced else [])}),
            "off": list(spec.passes_off),
            "tensor_parallel": plan.tensor_parallel if sliced else 0,
            "planned": [asdict(each) for each in plan.passes],
        },
    }


def _forms(spec: Spec) -> dict[str, Any]:
    """Limits that change numbers, where they are asked for."""
    asked = {"batch_invariant": spec.batch_invariant, "kv_cache_dtype": spec.kv_cache_dtype}
    return {name: value for name, value in asked.items() if value != getattr(Limits, name)}


def _lock(spec: Spec, plan: Plan, device_line: str) -> str:
    """Lock of everything that the image installs: a device line's, and what of this bundle's own comes with it."""
    names = [device_line]
    names += [servers.HTTP_LOCK] if spec.server == "http" else []
    names += [OPENVINO_LOCK] if plan.takes("cpu") and plan.profile.family in CPU_STACK else []
    names += [servers.SPEECH_LOCK] if task_schema(spec.task).hears else []
    return "".join((TEMPLATES / "locks" / name).read_text(encoding="utf-8") for name in names)


@cache
def images() -> dict[str, Any]:
    """Base images by device line, from templates/images.json."""
    data: dict[str, Any] = json.loads((TEMPLATES / "images.json").read_text(encoding="utf-8"))
    return data


def as_json(value: Any) -> str:
    """JSON for a file: indented, keys in the given order, text not escaped."""
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _context(
    spec: Spec, plan: Plan, schema: Mapping[str, Any], model_id: str, model_version: str | None
) -> dict[str, Any]:
    model_name = f"{spec.azure_name}-model"
    return {
        "name": spec.azure_name,
        "deployment": spec.azure_name.lower(),  # Azure silently lower-cases deployment names
        "title": f"{plan.task} with {model_id}.",
        "task": plan.task,
        "summary": schema["summary"],
        "sample": json.dumps(schema["sample"], indent=2, ensure_ascii=False),
        "plan": plan,
        "auth_mode": spec.auth_mode,
        "instance_count": spec.instance_count,
        "server": servers.settings(spec.server, plan.max_concurrent_requests),
        "probes": {"liveness_probe": plan.liveness, "readiness_probe": plan.readiness},
        "model_id": model_id,
        "model_name": model_name,
        "model_version": model_version,
        "model_path": spec.model if names_files(spec.model) else "model",
        "model_reference": f"azureml:{model_name}:{model_version}" if model_version else spec.model,
        "environment_name": f"{spec.azure_name}-env",
    }


def _gpu_variables(plan: Plan) -> dict[str, str]:
    """Environment variables for DeepSpeed's compiled operators: the architecture of the plan's GPU."""
    sku = plan.sku
    if not sku.gpu or plan.device != "cuda":
        return {}
    later = "+PTX" if sku.assumed_like else ""  # of an unknown GPU the driver compiles it then
    return {"TORCH_CUDA_ARCH_LIST": f"{sku.gpu.compute_capability:.1f}{later}"}


def _group_variables(plan: Plan) -> dict[str, str]:
    """Environment variables of GPUs that share a model: Azure's containers have 64 MB of /dev/shm, too few for NCCL.

    Without it NCCL goes from GPU to GPU, or where the machine has no way between them over the loopback interface.
    """
    return {"NCCL_SHM_DISABLE": "1"} if plan.tensor_parallel > 1 and plan.device == "cuda" else {}


def _kernels(plan: Plan, image: Mapping[str, Any]) -> dict[str, str]:
    """Settings of DeepSpeed's setup for compiling its kernels for the plan's GPU; none if no pass uses them."""
    if not plan.takes("deepspeed_kernels"):
        return {}
    asked = {
        "DS_BUILD_TRANSFORMER_INFERENCE": "1",
        "DS_SKIP_CUDA_CHECK": "1",
        "CUDA_HOME": image["environment"]["CUDA_HOME"],
    }
    return asked | {"DS_ACCELERATOR": image["environment"]["DS_ACCELERATOR"]} | _gpu_variables(plan)


def base_image(spec: Spec, plan: Plan) -> str:
    """Base image as the Dockerfile names it, by digest if the spec or images.json gives one."""
    image = images()[plan.image]
    digest = spec.image_digest or image["digest"]
    return f"{image['image']}@{digest}" if digest else str(image["image"])


def fill(template: str, context: Mapping[str, Any]) -> str:
    """Render a template; a variable missing from the context is an error."""
    return _environment().get_template(template).render(context)


@cache
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES),
        undefined=jinja2.StrictUndefined,
        autoescape=False,  # noqa: S701  (YAML, shell and Python, not HTML: each has its own filter)
        keep_trailing_newline=True,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(yaml=_yaml, docker=_docker, docstring=_docstring, cell=_cell, json=json.dumps)
    return environment


def _yaml(value: str | int | float | bool) -> str:
    """YAML scalar; a string is always quoted, so that no version or name turns into a number."""
    if not isinstance(value, str):
        return json.dumps(value)
    return yaml.dump(value, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")


def _docker(value: str) -> str:
    """Quoted value for ENV in a Dockerfile, with no expansion."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("$", "\\$")
    return f'"{escaped}"'


def _docstring(value: str) -> str:
    """Text escaped for a triple-quoted string."""
    return value.replace("\\", "\\\\").replace('"""', '\\"\\"\\"')


def _cell(value: str) -> str:
    """Text escaped for a Markdown table."""
    return " ".join(value.split()).replace("|", "\\|")


def _sha256(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
