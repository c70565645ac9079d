"""Checks a bundle, or YAML alone, for things that Azure ML would refuse, or accept and then fail on: rules in order."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from mii_azure.bundle.bundle_view import Inspected, Problem, is_bundle
from mii_azure.bundle.findings import Finding, Findings, Severity
from mii_azure.bundle.standalone_yaml import views
from mii_azure.checks import (
    azure_loaders,
    code,
    files,
    kaito,
    kinds,
    refusals,
    safety,
    serving,
    templates,
    yaml_rules,
)
from mii_azure.checks.refusals import placeholder_in


class Rule(NamedTuple):
    """Check on a bundle; `find` yields a problem for each place that breaks the rule."""

    id: str
    severity: Severity
    limit: str  # the limit or contract that it enforces, and its source
    find: Callable[[Inspected], Iterator[Problem]]
    alone: bool = False  # True if it can judge YAML without a bundle


# In order: a later rule's problem at a place where an earlier one has reported is left out.
RULES: tuple[Rule, ...] = (
    Rule("MII001", "error", "The manifest: SHA-256 of every file", files.edited),
    Rule("MII002", "error", "The manifest, and what a bundle must hold", files.missing),
    Rule("MII003", "error", "az ml uploads the whole folder", files.added_to_what_is_uploaded),
    Rule("MII004", "warning", "The manifest", files.added_elsewhere),
    Rule("MII005", "warning", "One scoring package on every host", files.scoring_of_another_version),
    Rule("MII006", "error", "No secret in a file", files.secrets),
    Rule("MII120", "warning", "Templates of YAML", refusals.placeholders, alone=True),
    Rule("MII101", "error", "YAML 1.1, a mapping", yaml_rules.malformed, alone=True),
    Rule("MII132", "warning", "YAML 1.2: a mapping's keys are unique", yaml_rules.repeated_keys, alone=True),
    Rule("MII102", "error", "Azure: names of 3 to 32 characters", yaml_rules.names, alone=True),
    Rule("MII103", "warning", "Azure lower-cases deployment names", yaml_rules.deployment_name_in_capitals, alone=True),
    Rule("MII104", "error", "A deployment belongs to one endpoint", yaml_rules.another_endpoint, alone=True),
    Rule("MII105", "error", "The folder's own assets", yaml_rules.references),
    Rule("MII106", "error", "A registered version never changes", yaml_rules.stale_versions),
    Rule(
        "MII107",
        "error",
        "ARM: environmentVariables are strings",
        yaml_rules.variables_that_are_not_strings,
        alone=True,
    ),
    Rule("MII108", "error", "Paths are relative to the file", yaml_rules.paths, alone=True),
    Rule("MII109", "error", "Where the server in the image answers, on 5001", yaml_rules.routes),
    Rule("MII110", "error", "Azure: traffic 0 or 100 %, one mirror of at most 50 %", yaml_rules.traffic, alone=True),
    Rule(
        "MII111",
        "error",
        "Azure: a conda file is installed into an image",
        safety.conda_without_image,
        alone=True,
    ),
    Rule("MII112", "error", "ARM: asset names of 1 to 255 characters", safety.asset_names, alone=True),
    Rule("MII113", "warning", "azure-ai-ml: REGISTRY_VERSION_PATTERN", safety.registry_labels, alone=True),
    Rule("MII114", "error", "Azure lower-cases deployment names", safety.traffic_in_capitals, alone=True),
    Rule("MII115", "error", "Azure ML secret injection: secrets by reference", safety.literal_secrets, alone=True),
    Rule("MII116", "error", "ARM: userAssignedIdentities by resource id", safety.identity, alone=True),
    Rule(
        "MII117",
        "error",
        "Azure ML secret injection: enforce_access_to_default_secret_stores",
        safety.unreadable_connections,
        alone=True,
    ),
    Rule("MII118", "info", "Files that deploy to more than one workspace", safety.tied_to_a_workspace, alone=True),
    Rule(
        "MII119",
        "error",
        "azure-ai-ml: a model by name and version",
        yaml_rules.model_by_its_files,
        alone=True,
    ),
    Rule("MII121", "error", "Azure: assets by kind, name and version", refusals.unversioned, alone=True),
    Rule("MII122", "error", "Azure: only MLflow models bring an environment", refusals.no_environment, alone=True),
    Rule(
        "MII123", "error", "Azure: an image or a build; Docker: names of images", refusals.built_and_named, alone=True
    ),
    Rule("MII124", "error", "Azure: traffic goes to deployments that exist", refusals.shares_of_no_slot, alone=True),
    Rule("MII125", "error", "ARM: routes of a path and a port", refusals.routes, alone=True),
    Rule("MII126", "error", "az ml uploads the code's folder only", refusals.script_outside, alone=True),
    Rule("MII127", "error", "Azure ML's own variables; Kubernetes: their names", refusals.variables, alone=True),
    Rule("MII128", "error", "Azure ML: modelMountPath", refusals.mount_path, alone=True),
    Rule("MII129", "error", "ARM: 50 tags of 512 and 256 characters", refusals.tags, alone=True),
    Rule("MII131", "warning", "Flags of az ml", refusals.left_to_flags, alone=True),
    Rule("MII130", "error", "Azure ML: names of computes and instance types", refusals.computes, alone=True),
    Rule(
        "MII201",
        "error",
        "Azure ML: managed inference instance types",
        serving.unknown_instance_type,
        alone=True,
    ),
    Rule("MII202", "error", "Azure ML: retired series", serving.retired_instance_type, alone=True),
    Rule("MII203", "error", "Memory and local disk of the instance type", serving.model_does_not_fit),
    Rule("MII204", "error", "Azure: 1 to 50 instances", serving.instance_count, alone=True),
    Rule(
        "MII205",
        "error",
        "Azure: probe numbers from 1, one success of liveness",
        serving.probe_numbers,
        alone=True,
    ),
    Rule(
        "MII212",
        "warning",
        "ARM's default probes: 10 s, then 30 failures every 10 s",
        serving.missing_probes,
        alone=True,
    ),
    Rule("MII206", "error", "The probes outlast the start", serving.probes_before_the_model_is_loaded, alone=True),
    Rule("MII207", "error", "Azure: 180 s a request, 150 s on Kubernetes", serving.request_timeout, alone=True),
    Rule("MII208", "error", "ARM's default: one request at a time", serving.concurrency, alone=True),
    Rule("MII216", "warning", "ARM's defaults: 5 s a request, one request at a time", serving.left_to_arm, alone=True),
    Rule("MII209", "error", "gunicorn: WORKER_TIMEOUT", serving.worker_timeout, alone=True),
    Rule("MII210", "error", "gunicorn: every worker is a process", serving.workers),
    Rule("MII211", "warning", "gunicorn: a thread for each request and probe", serving.threads),
    Rule(
        "MII213",
        "warning",
        "ARM: maxQueueWait, deprecated for managed endpoints",
        serving.queue_wait,
        alone=True,
    ),
    Rule("MII214", "warning", "Azure: 5 MB/s an endpoint", serving.payload),
    Rule("MII215", "warning", "Uploads by the client: azure-cli#12651", serving.large_upload, alone=True),
    Rule("MII301", "error", "Python", code.script_does_not_compile),
    Rule("MII302", "error", "azureml-inference-server-http: init() and run(data)", code.entry_points),
    Rule(
        "MII303",
        "error",
        "azureml-inference-server-http: its own settings files",
        code.server_settings_beside_the_script,
    ),
    Rule("MII304", "error", "The plan", code.deployment_settings),
    Rule("MII305", "error", "The task's request", code.sample),
    Rule("MII306", "error", "azureml-inference-server-http: swagger files", code.openapi),
    Rule("MII307", "error", "AZUREML_MODEL_DIR: the folder or one above it", code.model_layout),
    Rule("MII308", "error", "The lock: all that the image installs", code.imports_past_the_lock),
    Rule("MII309", "error", "Only transformers' own model code", code.own_code),
    Rule("MII401", "error", "pip --require-hashes", files.lock_without_hashes),
    Rule("MII402", "error", "pip --require-hashes", files.image_without_the_lock),
    Rule("MII406", "error", "The image starts the bundle's own server", files.image_without_the_host),
    Rule("MII403", "warning", "Tags move", safety.floating_image, alone=True),
    Rule("MII407", "info", "A digest never changes", safety.image_without_patches, alone=True),
    Rule("MII404", "warning", "Azure ML: image builds time out", safety.conda, alone=True),
    Rule("MII405", "error", "NVIDIA: CUDA 13 on older drivers needs cuda-compat", safety.newer_than_the_driver),
    Rule("MII601", "error", "Kubernetes quantities, as text", kinds.quantities, alone=True),
    Rule(
        "MII602",
        "error",
        "Kubernetes: requests no higher than limits, GPUs equal",
        kinds.requests_above_limits,
        alone=True,
    ),
    Rule("MII603", "error", "Azure: both names 6 to 62 characters", kinds.names_together, alone=True),
    Rule("MII604", "error", "Azure: a Kubernetes endpoint names its cluster", kinds.cluster, alone=True),
    Rule("MII605", "error", "Azure: scale settings", kinds.scale, alone=True),
    Rule("MII606", "error", "Azure: Kubernetes endpoints, keys and no mirror", refusals.on_kubernetes, alone=True),
    Rule("MII701", "error", "ARM: ranges of a batch deployment", kinds.batch_numbers, alone=True),
    Rule("MII702", "error", "Azure: a batch deployment runs on a cluster", kinds.batch_compute, alone=True),
    Rule("MII703", "error", "An endpoint's default is one of its deployments", kinds.batch_default),
    Rule("MII704", "error", "Azure: warning, info or debug", kinds.batch_logging, alone=True),
    Rule("MII705", "error", "Azure: what runs a batch script", kinds.batch_packages),
    Rule("MII706", "error", "Azure: batch endpoints sign in by Microsoft Entra", kinds.batch_sign_in, alone=True),
    Rule("MII901", "error", "Azure: templates of managed endpoints", templates.kind_of_template, alone=True),
    Rule("MII902", "error", "Azure: what a deployment template must say", templates.needed, alone=True),
    Rule("MII903", "error", "Azure: a template's environment is a registry's", templates.environment, alone=True),
    Rule("MII904", "error", "Azure: a template's allowed_instance_types", templates.instance_types, alone=True),
    Rule("MII905", "error", "Azure: a template's scoring path and port", templates.scoring_route, alone=True),
    Rule("MII906", "error", "Azure: what a template's probes ask", templates.probe_targets, alone=True),
    Rule("MII907", "error", "azure-ai-ml: AcceleratorMapSchema", templates.accelerators, alone=True),
    Rule("MII908", "error", "Azure: a model's default template by its version", templates.default_of_model, alone=True),
    Rule("MII909", "error", "Azure: a model's other templates by label", templates.allowed_of_model, alone=True),
    Rule("MII910", "error", "The folder's own assets, in one registry", templates.assets_that_disagree),
    Rule("MII911", "error", "Azure: a version of a template never changes", templates.stale),
    Rule("MII912", "warning", "Azure: a template's settings come first", templates.ignored),
    Rule("MII921", "error", "KAITO: the form of a Workspace", kaito.form, alone=True),
    Rule("MII922", "error", "KAITO: nodes and labels", kaito.resource, alone=True),
    Rule("MII923", "error", "KAITO: PortInferenceServer", kaito.port, alone=True),
    Rule("MII924", "error", "Kubernetes: probes that outlast the start", kaito.probes, alone=True),
    Rule("MII925", "error", "Kubernetes: quantities, requests no higher than limits", kaito.amounts, alone=True),
    Rule("MII926", "error", "Kubernetes: variables are strings", kaito.variables, alone=True),
    Rule("MII927", "error", "The tag of an image is its content's hash", kaito.stale_image),
    Rule("MII501", "error", "azure-ai-ml: its loaders and conversions", azure_loaders.refused_by_azure, alone=True),
)


def check(target: Path | str, *, ml_client: Any = None, slot: str | None = None) -> Findings:
    """List every finding on a bundle, a YAML file or a folder of those, in the order of the rules.

    With `ml_client`, answers of its workspace follow, as `OnlineFinding`s; `slot` is the deployment to be made.
    Raises NotABundle for anything else.
    """
    root = Path(target)
    folder = root if root.is_dir() else root.parent
    found: dict[tuple[str, str, int | None, str], Finding] = {}
    for inspected, rule, problem in problems(root):
        file = inspected.path(problem.file).relative_to(folder).as_posix()
        line = problem.line or inspected.line(problem.file, problem.keys)
        finding = Finding(
            id=rule.id,
            severity="warning" if problem.doubtful else rule.severity,
            message=problem.message,
            remedy=problem.remedy,
            file=file,
            line=line,
            limit=rule.limit,
            fixable=bool(problem.fixes),
        )
        # An endpoint is checked with each of its deployments; duplicate findings are reported once.
        found.setdefault((finding.id, finding.file, finding.line, finding.message), finding)
    if ml_client is None:
        return Findings(found.values())
    from mii_azure.preflight.preflight import online

    return Findings([*found.values(), *online(root, ml_client, slot)])


def problems(target: Path) -> Iterator[tuple[Inspected, Rule, Problem]]:
    """Yield each problem with its rule and the view it was found in; raises NotABundle."""
    bundled = is_bundle(target)
    for inspected in [Inspected(target)] if bundled else views(target):
        places: set[tuple[str, tuple[str, ...]]] = set()
        templates = {file for file in inspected.yamls if placeholder_in(inspected, file)}
        for rule in RULES:
            if not bundled and not rule.alone:
                continue
            for problem in list(rule.find(inspected)):
                if problem.file in templates and rule.find is not refusals.placeholders:
                    continue
                place = (problem.file, problem.keys)
                if problem.keys and place in places:
                    continue
                if rule.severity != "info":  # a remark hides no refusal
                    places.add(place)
                yield inspected, rule, problem
