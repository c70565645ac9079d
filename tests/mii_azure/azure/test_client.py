"""`mii_azure.client` of live endpoints: every auth mode, a token that ran out, slots, and the model's own errors."""

import pytest

import mii_azure
from mii_azure.operations.deploy import deploy
from mii_azure.sdk.generate import generate
from scoring.errors import InvalidParameter
from tests.mii_azure.azure.conftest import lightened, serve

QUESTION = {"inputs": {"question": "Who?", "context": "It was Ann."}}


@pytest.mark.parametrize("mode", ["key", "aml_token", "aad_token"])
def test_every_auth_mode(cloud, client, tiny, tmp_path, mode):
    model = str(tiny("bert", "question-answering"))
    whole = generate("question-answering", model, "My-qa", output=tmp_path / "bundle", auth_mode=mode)
    bundle = lightened(whole)
    serve(cloud, bundle, whole)
    deploy(bundle, client)
    with mii_azure.client("endpoint:my-qa", ml_client=client) as asked:
        assert asked.query(QUESTION)["answer"]
        cloud.arm.tokens += 1  # what was handed out before is refused from now on, where it is a token
        assert asked.query(QUESTION)["answer"]
        assert asked.metadata()["task"] == "question-answering"
        assert asked.ready()


def test_slots_and_the_models_own_refusal(cloud, client, bundle, second):
    deploy(bundle, client)
    deploy(second, client, slot="green", traffic=0)
    served = dict(cloud.scoring.served)
    with mii_azure.client("endpoint:my-qa/green", ml_client=client) as asked:
        assert asked.query(QUESTION)["answer"]
        with pytest.raises(InvalidParameter, match="topk"):  # 424 outside, the model's own 400 inside
            asked.query({**QUESTION, "parameters": {"topk": 1}})
    assert cloud.scoring.served["green"] == served["green"] + 2
