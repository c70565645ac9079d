"""deploy through Microsoft's own client against the fake cloud: what is sent, in what order, and once."""

from mii_azure.azure.deploy import deploy


def test_deploy(cloud, client, bundle):
    said = []
    done = deploy(bundle, client, say=said.append)
    assert done.traffic == {"blue": 100}
