"""Checks a bundle for what Azure ML would refuse, or accept and then fail on: an ordered list of rules."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Literal, NamedTuple

from pydantic import BaseModel, ConfigDict

from mii_azure import checks_azure, checks_code, checks_files, checks_serving, checks_yaml
from mii_azure.inspection import Inspected, Problem

Severity = Literal["error", "warning", "info"]


class Finding(BaseModel):
    """What a check says."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    id: str
    severity: Severity
    message: str
    remedy: str
    file: str  # relative to the bundle
    line: int | None = None


class Rule(NamedTuple):
    """One check; `find` yields a problem for each place that breaks it."""

    id: str
    severity: Severity
    find: Callable[[Inspected], Iterator[Problem]]


# In order: what a later rule says about a place where an earlier one has spoken is left out.
RULES: tuple[Rule, ...] = (
    Rule("MII001", "error", checks_files.edited),
    Rule("MII002", "error", checks_files.missing),
    Rule("MII003", "error", checks_files.added_to_what_is_uploaded),
    Rule("MII004", "warning", checks_files.added_elsewhere),
    Rule("MII005", "warning", checks_files.scoring_of_another_version),
    Rule("MII006", "error", checks_files.secrets),
    Rule("MII101", "error", checks_yaml.malformed),
    Rule("MII102", "error", checks_yaml.names),
    Rule("MII103", "warning", checks_yaml.deployment_name_in_capitals),
    Rule("MII104", "error", checks_yaml.another_endpoint),
    Rule("MII105", "error", checks_yaml.references),
    Rule("MII106", "error", checks_yaml.stale_versions),
    Rule("MII107", "error", checks_yaml.variables_that_are_not_strings),
    Rule("MII108", "error", checks_yaml.paths),
    Rule("MII109", "error", checks_yaml.routes),
    Rule("MII110", "error", checks_yaml.traffic),
    Rule("MII201", "error", checks_serving.unknown_instance_type),
    Rule("MII202", "error", checks_serving.retired_instance_type),
    Rule("MII203", "error", checks_serving.model_does_not_fit),
    Rule("MII204", "error", checks_serving.instance_count),
    Rule("MII205", "error", checks_serving.probe_numbers),
    Rule("MII206", "error", checks_serving.probes_before_the_model_is_loaded),
    Rule("MII207", "error", checks_serving.request_timeout),
    Rule("MII208", "error", checks_serving.concurrency),
    Rule("MII209", "error", checks_serving.worker_timeout),
    Rule("MII210", "error", checks_serving.workers),
    Rule("MII211", "warning", checks_serving.threads),
    Rule("MII301", "error", checks_code.script_does_not_compile),
    Rule("MII302", "error", checks_code.entry_points),
    Rule("MII303", "error", checks_code.server_settings_beside_the_script),
    Rule("MII304", "error", checks_code.deployment_settings),
    Rule("MII305", "error", checks_code.sample),
    Rule("MII306", "error", checks_code.openapi),
    Rule("MII401", "error", checks_files.lock_without_hashes),
    Rule("MII402", "error", checks_files.image_without_the_lock),
    Rule("MII501", "error", checks_azure.refused_by_azure),
)


def check(bundle: Path | str) -> list[Finding]:
    """Return every finding on the bundle, in the order of the rules; raises NotABundle."""
    inspected = Inspected(Path(bundle))
    found: list[Finding] = []
    places: set[tuple[str, tuple[str, ...]]] = set()
    for rule in RULES:
        for problem in list(rule.find(inspected)):
            place = (problem.file, problem.keys)
            if problem.keys and place in places:
                continue
            places.add(place)
            line = problem.line or inspected.line(problem.file, problem.keys)
            found.append(
                Finding(
                    id=rule.id,
                    severity=rule.severity,
                    message=problem.message,
                    remedy=problem.remedy,
                    file=problem.file,
                    line=line,
                )
            )
    return found
