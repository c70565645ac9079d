"""Verb generate: from a task, a model and a name to a bundle on disk."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mii_azure.bundle.bundle_view import LOCK
from mii_azure.bundle.folders import refuse_existing, refuse_overlap, refuse_place
from mii_azure.bundle.licences import model_licence, package_licences
from mii_azure.bundle.render import base_image, content_hash, reference_version, render
from mii_azure.bundle.sbom import SBOM, ModelFacts, make_sbom
from mii_azure.bundle.secret_scan import refuse_secrets
from mii_azure.bundle.writer import Progress, write
from mii_azure.model.folder import files_to_copy, require_vocabulary
from mii_azure.model.languages import with_languages
from mii_azure.model.remote_code import refuse_foreign_code
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import plan_spec
from mii_azure.planning.quantization import QuantizationJob
from mii_azure.spec import Spec, make_spec
from mii_azure.version import __version__
from scoring.schema.registry import schema


def generate(
    task: str,
    model: str,
    deployment_name: str,
    *,
    output: Path | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    **preferences: Any,
) -> Path:
    """Write the bundle of a model and return its folder, `output` or ./NAME; `preferences` are further fields of Spec.

    Raises the SpecError, ModelError and BundleError branches of the error tree; on any error nothing is left behind.
    """
    spec = make_spec(task=task, model=model, name=deployment_name, **preferences)
    target = Path(output or spec.name).expanduser().resolve()
    refuse_place(target)
    refuse_existing(target, force)
    plan = plan_spec(spec)
    plan.require_fit()
    folder = _model_folder(spec, plan)
    if folder:
        refuse_overlap(target, folder)
    files = files_to_copy(folder, spec.allow_pickle, spec.trust_remote_code) if folder else []
    if folder:
        require_vocabulary(files, folder, spec.model)
    if folder and spec.trust_remote_code:
        refuse_foreign_code(folder)
    model_id = folder.resolve().name if plan.profile.source == "folder" and folder else plan.profile.model
    sources = {f"model/{path.as_posix()}": folder / path for path in files} if folder else {}
    job = QuantizationJob(folder, plan) if folder and spec.quantise == "int8" else None
    weights = {path: source for path, source in sources.items() if not (job and job.makes(path))}

    def render_files(hashes: Mapping[str, str]) -> dict[str, str]:
        version = content_hash(hashes) if folder else reference_version(spec.model)
        settled = job.settled() if job else plan
        task_schema = with_languages(schema(plan.task), spec, folder)
        texts = render(spec, settled, task_schema, model_id=model_id, model_version=version)
        licence = model_licence(folder) if folder else None
        facts = ModelFacts(
            model_id,
            plan.profile.source in ("hub", "recorded"),
            plan.profile.revision,
            version if folder else None,
            licence,
            hashes,
        )
        texts[SBOM] = make_sbom(
            spec.azure_name, __version__, texts[LOCK], base_image(spec, plan), facts, package_licences()
        )
        refuse_secrets(texts, sources)
        return texts

    return write(
        target,
        render_files=render_files,
        weights=weights,
        making=job,
        server=spec.server,
        force=force,
        progress=progress,
    )


def _model_folder(spec: Spec, plan: Plan) -> Path | None:
    """Folder of the model's files, downloaded if need be; None for an azureml: reference."""
    if plan.profile.source == "reference":
        return None
    if plan.profile.source == "folder":
        return Path(spec.model).expanduser()
    from mii_azure.model.hub import download

    return download(spec.model, plan.profile.revision, spec.allow_pickle, spec.trust_remote_code)
