"""The verb deploy: environment, model, endpoint, deployment in a slot, smoke request, traffic; safe to run again."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mii_azure.azure import assets, endpoints
from mii_azure.azure.client import Say
from mii_azure.azure.journal import Journal
from mii_azure.azure.live import Live, smoke
from mii_azure.errors import BundleEdited, InvalidName, NotAvailable, SpecError
from mii_azure.spec import NAME_LENGTH, NAME_PATTERN

AGAIN = "The same command"


def silent(text: str) -> None:
    """Say nothing."""


@dataclass(frozen=True)
class AzureDeployment:
    """A deployment in a slot of an endpoint, answering."""

    endpoint: str
    slot: str
    scoring_uri: str
    traffic: dict[str, int]
    environment: str
    model: str
    bundle_hash: str
    answer: Any = field(compare=False)  # to the bundle's sample request


def deploy(
    bundle: Path | str, client: Any, slot: str = "blue", traffic: int | None = None, say: Say = silent
) -> AzureDeployment:
    """Bring a bundle into a slot of its endpoint and return how it answered.

    `traffic` is the slot's percentage, the rest stays with the slot that has most; None gives it all if no other slot
    has any, and none otherwise. Raises BundleError, SpecError, and AzureError with what exists by then.
    """
    folder, digest = Path(bundle).expanduser().resolve(), intact(bundle)
    check_slot(slot)
    if traffic is not None and not 0 <= traffic <= 100:
        raise SpecError(f"traffic: {traffic} is no percentage.", "Give 0 to 100.")
    journal = Journal(say, AGAIN)
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
    if slot not in endpoints.nonzero(wanted):
        say(f"{slot} takes no traffic; {wanted} stays. `mii-azure rollout` moves it over, `--traffic` at once.")
    return AzureDeployment(name, slot, live.uri, endpoints.nonzero(wanted), environment, model, digest, answer)


def place(folder: Path, client: Any, slot: str, digest: str, journal: Journal) -> tuple[Any, str, str]:
    """Everything up to a deployment that is ready in `slot`, without traffic: (deployment, model, environment)."""
    with journal.step("environment"):
        environment = assets.ensure_environment(client, folder)
    with journal.step("model"):
        model = assets.ensure_model(client, folder)
    with journal.step("endpoint"):
        endpoint = endpoints.ensure_endpoint(client, folder, journal.say)
    with journal.step(f"deployment {slot}"):
        deployed = endpoints.ensure_deployment(client, folder, endpoint.name, slot, digest, journal.say)
    return deployed, model or str(deployed.model), environment


def intact(bundle: Path | str) -> str:
    """The bundle's hash; raises NotABundle, BundleEdited when a file is not as generated, NotAvailable for batch."""
    from mii_azure.manifest import load_manifest, verify

    folder = Path(bundle).expanduser()
    digest = str(load_manifest(folder)["bundle"])
    changed = verify(folder)
    if changed:
        raise BundleEdited(
            f"{changed[0].path} is {changed[0].kind}.", "Generate the bundle again; `mii-azure check` lists every file."
        )
    if "batch" in (folder / "endpoint.yml").read_text(encoding="utf-8").partition("\n")[0].lower():
        raise NotAvailable("This verb deploys online endpoints, not batch ones.", "Run the bundle's deploy.sh.")
    return digest


def check_slot(slot: str) -> None:
    """Raise InvalidName unless Azure keeps the slot's name as it is."""
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
