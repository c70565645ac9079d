"""Verb rollout: the new bundle beside the old one, gate by gate; a failed gate restores the traffic, as `undo` does."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mii_azure.azure import batch, endpoints
from mii_azure.azure.autoscale import FILE, drop_autoscale, ensure_autoscale
from mii_azure.azure.client import Say, wait
from mii_azure.azure.errors import translate
from mii_azure.azure.live import ENTRA_SCOPE, Live, smoke
from mii_azure.azure.sign_in import kept_by
from mii_azure.errors import AzureError, MiiAzureError, NotAvailable, RolloutFailed
from mii_azure.operations.deploy import AGAIN, deploy, intact, place, silent
from mii_azure.operations.metrics_gate import Allowed, MetricsGate, worse
from mii_azure.operations.steps import Journal
from mii_azure.platform.paths import expanded

SHARES = (10, 50, 100)
MIRROR_PERCENT = 10  # Azure allows up to 50
SLOTS = ("blue", "green")


@dataclass(frozen=True)
class Rollout:
    """Result of a rollout."""

    endpoint: str
    slot: str
    replaced: str | None
    gates: tuple[str, ...]
    bundle_hash: str


def rollout(
    bundle: Path | str,
    client: Any,
    *,
    hold_s: float = 60.0,
    shares: tuple[int, ...] = SHARES,
    parity: bool = True,
    keep_old: bool = False,
    watch: Allowed | None = None,
    tokens: int = 0,
    require: Path | None = None,
    say: Say = silent,
) -> Rollout:
    """Replace the bundle that an endpoint serves: 0 %, smoke, parity, mirror, then `shares`; remove the old slot.

    Each stage lasts `hold_s` seconds while the new slot is sent requests; with `watch`, its Azure Monitor metrics must
    also be no worse than the old slot's by more than that. With `tokens`, the parity gate has so many judged. `require`
    is a verdict's file, which must be a yes on this bundle. Resumes where an interrupted rollout stopped.
    Raises RolloutFailed naming the gate, once the traffic is restored.
    """
    folder, digest = expanded(bundle).resolve(), intact(bundle)
    if batch.is_batch(folder):
        raise NotAvailable("A batch endpoint has no traffic to roll over.", "Run `deploy --slot green --traffic 100`.")
    if tokens and not parity:
        raise NotAvailable("Tokens are judged by the parity gate, which is skipped.", "Leave one of the two out.")
    if require:
        from mii_azure.verdict.verdict_file import require_verdict

        require_verdict(require, digest)
    name = _endpoint_name(folder)
    journal = Journal(say, AGAIN)
    with journal.step("looking at the endpoint"):
        old, new = _slots(client, name, digest)
    if kept := kept_by(client):
        kept.prepare(ENTRA_SCOPE)  # for the requests of a later gate, by which time the sign-in may have ended
    if old is None:
        done = deploy(folder, client, new, 100, say)
        return Rollout(name, done.slot, None, ("deployment", "smoke"), digest)
    run = _Run(client, folder, name, old, new, hold_s, journal)
    with run.watching(watch):
        run.go(digest, shares, parity, tokens)
    run.settle(keep_old)
    return Rollout(name, new, old, tuple(run.passed), digest)


def undo(bundle: Path | str, client: Any, say: Say = silent) -> dict[str, int]:
    """Give all traffic back to the slot that a rollout of this bundle was to replace; return the traffic.

    Changes nothing on an endpoint that no other bundle serves. Raises NotAvailable for batch endpoints.
    """
    folder, digest = expanded(bundle).resolve(), intact(bundle)
    if batch.is_batch(folder):
        raise NotAvailable("A batch endpoint has no traffic to give back.", "Run `deploy --slot NAME --traffic 100`.")
    name = _endpoint_name(folder)
    with Journal(say, AGAIN).step("undoing"):
        old, new = _slots(client, name, digest)
        if old is None:
            say(f"nothing to undo: no other bundle serves {name}")
            return {new: 100}
        endpoints.set_traffic(client, name, {old: 100}, {}, say)
    return {old: 100}


class _Run:
    """Rollout in progress, from `old` to `new`."""

    def __init__(
        self, client: Any, folder: Path, name: str, old: str, new: str, hold_s: float, journal: Journal
    ) -> None:
        self.client, self.folder, self.name, self.old, self.new = client, folder, name, old, new
        self.hold_s, self.journal = hold_s, journal
        self.tokens = kept_by(client)
        self.passed: list[str] = []
        self.watch: MetricsGate | None = None

    @contextmanager
    def watching(self, allowed: Allowed | None) -> Iterator[None]:
        """Let gates inside the block also read Azure Monitor; permission to read is checked before anything starts."""
        if allowed:
            with self.journal.step("reading Azure Monitor"):
                self.watch = MetricsGate(self.client, self.name, allowed)
        try:
            yield
        finally:
            if self.watch:
                self.watch.close()

    def settle(self, keep_old: bool) -> None:
        """Finish once the new slot has all traffic: apply its autoscale rules, and remove the old slot."""
        if (self.folder / FILE).is_file():
            with self.journal.step("autoscale"):
                ensure_autoscale(self.client, self.folder, self.name, self.new)
        if not keep_old:
            with self.journal.step(f"removing {self.old}"):
                drop_autoscale(self.client, self.name, self.old)
                poller = self.client.online_deployments.begin_delete(self.old, self.name)
                wait(poller, self.journal.say, f"deployment {self.old}")

    def go(self, digest: str, shares: tuple[int, ...], parity: bool, tokens: int) -> None:
        """Run every gate in order."""
        endpoint = self.client.online_endpoints.get(self.name)
        share = endpoints.nonzero(endpoint.traffic).get(self.new, 0)
        with self._gate("deployment"):
            place(self.folder, self.client, self.new, digest, self.journal)
        with self._gate("smoke"):
            self._ask(self.new)
        if parity:
            with self._gate("parity"):
                self._parity(tokens)
        if not share and not getattr(endpoint, "compute", None):  # Kubernetes endpoints do not support mirroring
            with self._gate("mirror"):
                self._set({self.old: 100}, {self.new: MIRROR_PERCENT})
                self._hold()
        for step in shares:
            if step < share:
                continue  # an interrupted run had passed it
            with self._gate(f"{step} %"):
                self._set({self.old: 100 - step, self.new: step}, {})
                self._hold()
            if self.watch and step < 100:  # at 100 % the old slot has no traffic to compare with
                with self._gate(f"metrics at {step} %"):
                    self._compare(self.watch)

    @contextmanager
    def _gate(self, gate: str) -> Iterator[None]:
        try:
            with self.journal.step(f"gate {gate}"):
                self._still_signed_in()
                yield
        except (AzureError, MiiAzureError) as error:
            if error.exit_code == 130:
                raise
            raise self._rolled_back(gate, error) from error
        self.passed.append(gate)

    def _rolled_back(self, gate: str, error: MiiAzureError) -> RolloutFailed:
        from azure.core import exceptions

        try:
            self._set({self.old: 100}, {})
            where = f"All traffic is with {self.old} again; {self.new} is kept at 0 % for its log."
        except Exception as second:  # report the first reason, whatever else went wrong
            told = translate(second).message if isinstance(second, exceptions.AzureError) else str(second)
            where = f"ROLLING BACK FAILED TOO ({told}): give {self.old} 100 % by hand."
        return RolloutFailed(
            f"The gate {gate!r} failed: {error.message.rstrip('.')}. {where}",
            f"{error.hint} `mii-azure logs {self.name} --slot {self.new}` tells more.".strip(),
            azure_code=getattr(error, "azure_code", ""),
            request_id=getattr(error, "request_id", ""),
        )

    def _still_signed_in(self) -> None:
        """Fail the gate while there is a token left to give the traffic back with."""
        if self.tokens:
            self.tokens.check()

    def _set(self, shares: dict[str, int], mirror: dict[str, int]) -> None:
        endpoints.set_traffic(self.client, self.name, shares, mirror, self.journal.say)

    def _ask(self, slot: str | None) -> None:
        live = Live(self.client, self.name, slot)
        try:
            smoke(live, self.folder)
        finally:
            live.close()

    def _compare(self, watch: MetricsGate) -> None:
        """Compare the slots' metrics; Azure Monitor lags by minutes, and a stage without metrics yet is not judged."""
        new, old = watch.numbers(self.new), watch.numbers(self.old)
        if not new.requests:
            self.journal.say(f"Azure Monitor knows of no requests to {self.new} yet; a longer --hold lets it judge")
        elif reason := worse(new, old, watch.allowed):
            raise RolloutFailed(f"{self.new} does worse than {self.old}: {reason}")

    def _hold(self) -> None:
        """Send requests to the new slot by its header, and to the endpoint by its traffic, for the whole stage."""
        if self.watch:
            self.watch.restart()
        until = time.monotonic() + self.hold_s
        while True:
            self._still_signed_in()
            self._ask(self.new)
            self._ask(None)
            left = until - time.monotonic()
            if left <= 0:
                return
            time.sleep(min(5.0, left))

    def _parity(self, tokens: int) -> None:
        from mii_azure.platform.target_names import ENDPOINT
        from mii_azure.verdict.parity import parity

        verdict = parity(
            self.folder,
            ["grpc", f"{ENDPOINT}{self.name}/{self.new}"],
            progress=self.journal.say,
            ml_client=self.client,
            tokens=tokens,
        )
        for judged in verdict.tokens:
            if not judged.agree:
                raise RolloutFailed(f"{self.new} generates other tokens than its model: {judged.cause}.")
        if not verdict.agree:
            bad = next(entry for entry in verdict.comparisons if entry.grade in ("scores", "different"))
            raise RolloutFailed(f"{self.new} answers {bad.request} unlike the local runner: {bad.difference}.")


def _endpoint_name(folder: Path) -> str:
    from azure.ai.ml import load_online_endpoint

    return str(load_online_endpoint(folder / "endpoint.yml").name)


def _slots(client: Any, name: str, digest: str) -> tuple[str | None, str]:
    """Slot to replace, None on a first deployment, and slot to fill."""
    from mii_azure.azure.assets import exists

    endpoint = exists(lambda: client.online_endpoints.get(name))
    traffic = endpoints.nonzero(endpoint.traffic) if endpoint else {}
    if not traffic:
        return None, SLOTS[0]
    tags = {slot: _digest(client, name, slot) for slot in traffic}
    behind = {slot: share for slot, share in traffic.items() if tags[slot] != digest}
    if not behind:
        return _leftover(client, name, max(traffic, key=lambda slot: traffic[slot]), digest)
    old = max(behind, key=lambda slot: behind[slot])
    begun = [slot for slot in traffic if tags[slot] == digest]
    return old, begun[0] if begun else next(slot for slot in SLOTS if slot != old)


def _leftover(client: Any, name: str, live: str, digest: str) -> tuple[str | None, str]:
    """Slots once the bundle has all traffic: the old slot that an interrupted run left, if any, and the live one."""
    others = [
        entry.name for entry in client.online_deployments.list(name) if entry.name in SLOTS and entry.name != live
    ]
    return (others[0] if others else None), live


def _digest(client: Any, name: str, slot: str) -> str:
    return str((client.online_deployments.get(slot, name).tags or {}).get(endpoints.TAG, ""))
