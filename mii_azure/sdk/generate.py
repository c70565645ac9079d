"""Verb generate: from a task, a model and a name to a bundle on disk."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Unpack

from mii_azure.bundle.bundle_view import LOCK
from mii_azure.bundle.folders import refuse_existing, refuse_overlap, refuse_place
from mii_azure.bundle.handler import read_handler
from mii_azure.bundle.licences import model_licence, package_licences
from mii_azure.bundle.render import base_image, content_hash, reference_version, render
from mii_azure.bundle.sbom import SBOM, ModelFacts, make_sbom
from mii_azure.bundle.secret_scan import refuse_secrets
from mii_azure.bundle.writer import Progress, write
from mii_azure.hardware.described import unfamiliar
from mii_azure.model.adapters import merged_adapter, served_adapter, targets
from mii_azure.model.draft import FOLDER as DRAFT_FOLDER
from mii_azure.model.draft import draft_folder, require_same_vocabulary
from mii_azure.model.folder import files_to_copy, require_vocabulary, stored_tensors
from mii_azure.model.languages import with_languages
from mii_azure.model.remote_code import refuse_foreign_code
from mii_azure.model.source import local_folder
from mii_azure.planning.merging import MergeJob
from mii_azure.planning.plan import Plan
from mii_azure.planning.planner import plan_spec
from mii_azure.planning.quantization import QuantizationJob
from mii_azure.platform.paths import expanded
from mii_azure.spec import Preferences, Spec, make_spec, one_name
from mii_azure.version import __version__
from scoring.api.hooks import FILE as HANDLER
from scoring.schema.registry import schema


def generate(
    task: str,
    model: str,
    name: str | None = None,
    *,
    output: Path | str | None = None,
    force: bool = False,
    progress: Progress | None = None,
    deployment_name: str | None = None,
    **preferences: Unpack[Preferences],
) -> Path:
    """Write the bundle of a model and return its folder, `output` or ./NAME; `preferences` are further fields of Spec.

    `deployment_name` is MII's word for `name`. `progress` is called with bytes written and bytes in all.
    Raises the SpecError, ModelError and BundleError branches of the error tree; on any error nothing is left behind.
    Warns of an instance type of which only the name is known.
    """
    spec = make_spec(task=task, model=model, name=one_name(name, deployment_name), **preferences)
    if unknown := unfamiliar(spec.instance_type, spec.describes):
        warnings.warn(f"{unknown.message} {unknown.hint}", stacklevel=2)
    return write_bundle(spec, output=output, force=force, progress=progress)[0]


def write_bundle(
    spec: Spec, *, output: Path | str | None = None, force: bool = False, progress: Progress | None = None
) -> tuple[Path, Plan]:
    """Write the bundle of a spec; return its folder, and the plan that it was written by. Raises what generate does."""
    target = expanded(output or spec.name).resolve()
    refuse_place(target)
    refuse_existing(target, force)
    if spec.handler:
        read_handler(spec.handler)  # refused before anything takes time
    plan = plan_spec(spec)
    plan.require_fit()
    folder = _model_folder(spec, plan)
    if folder:
        refuse_overlap(target, folder)
        if spec.draft_model:
            refuse_overlap(target, draft_folder(spec.draft_model))
    sources = _sources(spec, folder) | _adapter_files(spec, plan, folder) if folder else {}
    parts = _Parts(spec, plan, folder, sources)
    written = write(
        target,
        render_files=parts.texts,
        weights=parts.copied,
        making=parts.job,
        server=spec.server,
        force=force,
        progress=progress,
    )
    return written, plan


@dataclass
class _Parts:
    """Parts of a bundle: files of the model, and texts that name their hashes."""

    spec: Spec
    plan: Plan
    folder: Path | None
    sources: dict[str, Path]  # path in the bundle: file of the model

    def __post_init__(self) -> None:
        self.job = _job(self.spec, self.plan, self.folder) if self.folder else None

    @property
    def copied(self) -> dict[str, Path]:
        """Files of the model that are copied as they are."""
        return {path: source for path, source in self.sources.items() if not (self.job and self.job.makes(path))}

    def texts(self, hashes: Mapping[str, str]) -> dict[str, str]:
        """Every file that is rendered, once the hashes of the model's files are known; raises SecretFound."""
        spec, plan = self.spec, self.plan
        facts = self._facts(hashes)
        version = facts.version or reference_version(spec.model)
        settled = self.job.settled() if self.job else plan
        task_schema = with_languages(schema(plan.task), spec, self.folder)
        own = {f"code/{HANDLER}": read_handler(spec.handler)} if spec.handler else {}
        texts = render(spec, settled, task_schema, model_id=facts.id, model_version=version, own=own)
        texts[SBOM] = make_sbom(
            spec.azure_name, __version__, texts[LOCK], base_image(spec, plan), facts, package_licences()
        )
        refuse_secrets(texts, self.sources)
        return texts

    def _facts(self, hashes: Mapping[str, str]) -> ModelFacts:
        profile, folder = self.plan.profile, self.folder
        return ModelFacts(
            expanded(profile.model).resolve().name if profile.source == "folder" else profile.model,
            profile.source in ("hub", "recorded"),
            profile.revision,
            content_hash(hashes) if folder else None,
            model_licence(folder) if folder else None,
            hashes,
        )


def _job(spec: Spec, plan: Plan, folder: Path) -> QuantizationJob | MergeJob | None:
    """Maker of the weight files that are not copied, if any; raises AdapterUnusable."""
    if spec.adapter:
        return MergeJob(folder, plan, merged_adapter(spec.adapter))
    return QuantizationJob(folder, plan, spec.quantise) if spec.quantise != "none" else None


def _sources(spec: Spec, folder: Path) -> dict[str, Path]:
    """The model's files by their paths in the bundle; raises the ModelError branch for a folder that is not whole."""
    files = files_to_copy(folder, spec.allow_pickle, spec.trust_remote_code)
    require_vocabulary(files, folder, spec.model)
    if spec.trust_remote_code:
        refuse_foreign_code(folder)
    found = {f"model/{path.as_posix()}": folder / path for path in files}
    if spec.draft_model:
        draft = draft_folder(spec.draft_model)
        require_same_vocabulary(folder, draft)
        found |= {f"model/{DRAFT_FOLDER}/{path.as_posix()}": draft / path for path in files_to_copy(draft)}
    return found


def _adapter_files(spec: Spec, plan: Plan, folder: Path) -> dict[str, Path]:
    """Files of adapters served beside the model, by their paths in the bundle; raises AdapterUnusable."""
    files, stored = dict[str, Path](), stored_tensors(folder) if spec.adapters else {}
    for adapter in map(served_adapter, spec.adapters):
        targets(adapter, stored, plan.profile.family)
        files |= {f"model/adapters/{adapter.name}/{name}": path for name, path in adapter.files.items()}
    return files


def _model_folder(spec: Spec, plan: Plan) -> Path | None:
    """Folder of the model's files, downloaded if need be; None for an azureml: reference."""
    if plan.profile.source == "reference":
        return None
    if plan.profile.source == "folder":
        return local_folder(spec.model)
    from mii_azure.model.hub import download

    return download(spec.model, plan.profile.revision, spec.allow_pickle, spec.trust_remote_code)
