"""Verb deploy: environment, model, endpoint, deployment in a slot, smoke request, traffic; safe to run again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mii_azure.azure import assets, batch, endpoints
from mii_azure.azure.autoscale import FILE, ensure_autoscale
from mii_azure.azure.client import Say
from mii_azure.azure.live import Live, smoke
from mii_azure.bundle.bundle_view import refuse_own_image
from mii_azure.errors import BundleEdited, InvalidName, SpecError
from mii_azure.operations.steps import Journal
from mii_azure.platform.paths import expanded
from mii_azure.spec import NAME_LENGTH, NAME_PATTERN

AGAIN = "The same command"


def silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class AzureDeployment:
    """Deployment in a slot of an endpoint, answering; for a batch endpoint, the default's traffic is given as 100."""

    endpoint: str
    slot: str
    scoring_uri: str
    traffic: dict[str, int]
    environment: str
    model: str
    bundle_hash: str
    answer: Any = field(compare=False)  # to the bundle's sample request; None from a batch endpoint


def deploy(
    bundle: Path | str, client: Any, slot: str = "blue", traffic: int | None = None, say: Say = silent
) -> AzureDeployment:
    """Bring a bundle into a slot of its endpoint and return the result with its answer.

    `traffic` is the slot's percentage, the rest stays with the slot that has most; None gives it all if no other slot
    has any, and none otherwise. Raises BundleError, SpecError, and AzureError with the resources that exist by then.
    """
    folder, digest = expanded(bundle).resolve(), intact(bundle)
    check_slot(slot)
    if traffic is not None and not 0 <= traffic <= 100:
        raise SpecError(f"traffic: {traffic} is no percentage.", "Give 0 to 100.")
    journal = Journal(say, AGAIN)
    if batch.is_batch(folder):
        return _deploy_batch(folder, client, slot, digest, traffic, journal)
    deployed, model, environment = place(folder, client, slot, digest, journal)
    name = deployed.endpoint_name
    with journal.step(f"smoke request to {slot}"):
        live = Live(client, name, slot)
        try:
            answer = smoke(live, folder)
        finally:
            live.close()
    with journal.step("traffic"):
        now = endpoints.nonzero(client.online_endpoints.get(name).traffic)
        wanted = _shares(now, slot, traffic)
        mirror = endpoints.nonzero(client.online_endpoints.get(name).mirror_traffic)
        mirror = {} if wanted.get(slot) else mirror
        endpoints.set_traffic(client, name, wanted, mirror, say)
    if (folder / FILE).is_file():
        with journal.step("autoscale"):
            ensure_autoscale(client, folder, name, slot)
    if slot not in endpoints.nonzero(wanted):
        say(f"{slot} takes no traffic; {wanted} stays. `mii-azure rollout` moves it over, `--traffic` at once.")
    return AzureDeployment(name, slot, live.uri, endpoints.nonzero(wanted), environment, model, digest, answer)


def place(folder: Path, client: Any, slot: str, digest: str, journal: Journal) -> tuple[Any, str, str]:
    """Bring up a ready deployment in `slot`, without traffic: (deployment, model, environment)."""
    environment, model = _register(folder, client, journal)
    with journal.step("endpoint"):
        endpoint = endpoints.ensure_endpoint(client, folder, journal.say)
    with journal.step(f"deployment {slot}"):
        deployed = endpoints.ensure_deployment(client, folder, endpoint.name, slot, digest, journal.say)
    return deployed, model or str(deployed.model), environment


def _register(folder: Path, client: Any, journal: Journal) -> tuple[str, str | None]:
    with journal.step("environment"):
        environment = assets.ensure_environment(client, folder)
    with journal.step("model"):
        return environment, assets.ensure_model(client, folder)


def _deploy_batch(
    folder: Path, client: Any, slot: str, digest: str, traffic: int | None, journal: Journal
) -> AzureDeployment:
    """Deploy as `deploy` does, without the smoke request: a job would start the cluster."""
    if traffic not in (None, 0, 100):
        raise SpecError("Jobs of a batch endpoint go to one deployment.", "Give --traffic 100, or 0 for none yet.")
    environment, model = _register(folder, client, journal)
    with journal.step("endpoint"):
        endpoint = batch.ensure_endpoint(client, folder, journal.say)
    with journal.step(f"deployment {slot}"):
        deployed = batch.ensure_deployment(client, folder, endpoint.name, slot, digest, journal.say)
    with journal.step("default"):
        now = batch.default_of(client.batch_endpoints.get(endpoint.name))
        default = slot if traffic == 100 or (traffic is None and now is None) else now
        if default == slot:
            batch.set_default(client, endpoint.name, slot, journal.say)
    if default != slot:
        journal.say(f"Jobs go to {default or 'no deployment yet'}; `--traffic 100` sends them to {slot}.")
    uri = str(client.batch_endpoints.get(endpoint.name).scoring_uri or "")
    shares = {default: 100} if default else {}
    return AzureDeployment(endpoint.name, slot, uri, shares, environment, model or str(deployed.model), digest, None)


def intact(bundle: Path | str) -> str:
    """Hash of the bundle; raises NotABundle, SpecError, and BundleEdited if a file is not as generated."""
    from mii_azure.bundle.manifest import find_mismatches, load_manifest, restoring

    folder = expanded(bundle)
    manifest = load_manifest(folder)
    refuse_own_image(folder)
    if changed := find_mismatches(folder):
        remedy = f"{restoring(folder, manifest, changed)} `mii-azure check` lists every file."
        raise BundleEdited(f"{changed[0].path} is {changed[0].kind}.", remedy)
    return str(manifest["bundle"])


def check_slot(slot: str) -> None:
    """Raise InvalidName unless Azure keeps the slot's name unchanged."""
    low, high = NAME_LENGTH
    if not (low <= len(slot) <= high and NAME_PATTERN.fullmatch(slot) and slot == slot.lower()):
        raise InvalidName(f"Azure refuses the slot {slot!r}.", f"{low} to {high} small letters, digits and hyphens.")


def _shares(now: dict[str, int], slot: str, traffic: int | None) -> dict[str, int]:
    others = {name: share for name, share in now.items() if name != slot}
    if traffic is None:
        return {slot: 100} if not others else now
    if not others:
        return {slot: 100} if traffic else {}
    main = max(others, key=lambda name: others[name])
    return {name: share for name, share in {main: 100 - traffic, slot: traffic}.items() if share}
