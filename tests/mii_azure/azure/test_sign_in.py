"""Sign-in of a workflow: assertions are fetched anew, and a rollout whose sign-in ends gives the traffic back."""

import io
import logging

import pytest
from azure.core.exceptions import ClientAuthenticationError

from mii_azure import errors
from mii_azure.azure.client import connect as client_of
from mii_azure.azure.sign_in import GITHUB, PIPELINES, KeptTokens, credential
from mii_azure.operations.deploy import deploy
from mii_azure.operations.rollout import rollout, undo
from tests.mii_azure.azure.conftest import Credential
from tests.mii_azure.azure.fake_arm import Fault

ACTIONS = "https://actions.fakeazure.test/token?api-version=2"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr("mii_azure.azure.live.PAUSE_S", 0.01)


@pytest.fixture
def github(cloud, monkeypatch):
    """A job of GitHub, signed in at the fake Entra."""
    values = zip(GITHUB, (ACTIONS, "job", "11111111-0000-0000-0000-000000000000", "tenant"), strict=True)
    for name, value in (*values, ("AZURE_AUTHORITY_HOST", "https://login.fakeazure.test")):
        monkeypatch.setenv(name, value)
    return credential()


def traffic(cloud) -> dict[str, int]:
    return {slot: share for slot, share in cloud.arm.endpoint("my-qa")["properties"]["traffic"].items() if share}


def test_a_workflow_asks_for_another_assertion_whenever_a_token_ends(cloud, github, connect, bundle, monkeypatch):
    # azure-identity asks at most every 30 s for a token that is about to end.
    monkeypatch.setattr("azure.identity._internal.utils.DEFAULT_TOKEN_REFRESH_RETRY_DELAY", 0)
    assert deploy(bundle, connect(KeptTokens(github))).traffic == {"blue": 100}
    assert len(cloud.login.asserted) > 2  # each is good once, and no token lives as long as the rollout
    assert len(cloud.login.good) == 0


def test_nothing_is_printed_of_the_credentials_that_were_tried(monkeypatch):
    """Where no handler listens, as in a command, logging prints warnings by its last resort."""
    printed = io.StringIO()
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging, "lastResort", logging.StreamHandler(printed))
    monkeypatch.setattr(logging.getLogger("azure.identity"), "handlers", [])
    logging.getLogger("azure.identity._credentials.chained").warning("before")
    credential()
    logging.getLogger("azure.identity._credentials.chained").warning("Attempted credentials: ...")
    assert printed.getvalue() == "before\n"


def test_who_signs_in_where(monkeypatch):
    from azure import identity

    assert type(credential()) is identity.DefaultAzureCredential
    for name in (*PIPELINES.values(), "SYSTEM_OIDCREQUESTURI"):
        monkeypatch.setenv(name, "tenant")
    assert type(credential()) is identity.AzurePipelinesCredential


class OneAssertion(Credential):
    """What `az login` with a federated token comes to: once its assertion has `ended`, there is no new token."""

    ended = False

    def get_token(self, *scopes, **options):
        if self.ended:
            raise ClientAuthenticationError("AADSTS700024: Client assertion is not within its valid time range.")
        return super().get_token(*scopes, **options)


@pytest.mark.parametrize("share", [10, 50])
def test_a_sign_in_that_ends_midway_gives_the_traffic_back(share, cloud, connect, client, bundle, second):
    deploy(bundle, client)
    who = OneAssertion(lifetime_s=200)  # azure-core asks for a new one this close to its end

    def end(request):
        if traffic(cloud).get("green") == share:
            who.ended = True

    cloud.faults.append(Fault("POST", r"\.inference\.", end, times=10**6))
    with pytest.raises(
        errors.RolloutFailed, match=r"could not be renewed.*AADSTS700024.*All traffic is with blue again"
    ):
        rollout(second, connect(KeptTokens(who)), hold_s=0, parity=False)
    assert traffic(cloud) == {"blue": 100}
    cloud.faults.clear()
    assert rollout(second, client, hold_s=0, parity=False).slot == "green"


def test_a_dead_token_is_refused_by_the_stand_in_and_told(cloud, github, connect, bundle):
    client = connect(KeptTokens(github))
    deploy(bundle, client)
    cloud.login.open = False
    later = cloud.arm.clock() + 1000
    cloud.arm.clock = lambda: later
    with pytest.raises(errors.NotSignedIn):
        deploy(bundle, client, slot="green")


def test_undo_gives_back_what_an_interrupted_rollout_left(cloud, client, bundle, second, mii):
    deploy(bundle, client)
    assert undo(bundle, client) == {"blue": 100}  # nothing to undo
    deploy(second, client, slot="green", traffic=50)
    assert traffic(cloud) == {"blue": 50, "green": 50}
    count = len(cloud.sent("PUT", "."))
    assert mii("rollout", second, "--undo")[0] == 0
    assert traffic(cloud) == {"blue": 100}
    assert undo(second, client) == {"blue": 100}
    assert len(cloud.sent("PUT", ".")) == count + 1


def test_what_a_later_gate_needs_is_fetched_while_the_sign_in_is_fresh(cloud, connect):
    who = OneAssertion(lifetime_s=3600)
    kept = KeptTokens(who)
    kept.prepare("https://ml.azure.com/.default")
    who.ended = True
    assert kept.get_token("https://ml.azure.com/.default").token == "aad"
    kept.check()
    with pytest.raises(ClientAuthenticationError):
        kept.get_token("https://ml.azure.com/.default", claims="revoked")


@pytest.mark.parametrize(
    ("cloud_name", "address"),
    [("AzureUSGovernment", "management.usgovcloudapi.net"), ("AzureChinaCloud", "management.chinacloudapi.cn")],
)
def test_a_workspace_of_a_sovereign_cloud_is_asked_there(cloud_name, address, monkeypatch):
    monkeypatch.setenv("AZUREML_CURRENT_CLOUD", cloud_name)
    client = client_of("s", "g", "w")
    assert address in str(client._base_url)
