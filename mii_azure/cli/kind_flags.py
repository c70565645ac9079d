"""Flags of `generate` that only Azure or the scoring script reads."""

from typing import Annotated

from mii_azure.cli.shared import flag
from mii_azure.errors import SpecError

Kind = Annotated[str, flag("kind", "managed, kubernetes or batch.")]
Compute = Annotated[str | None, flag("compute", "Name of the cluster, for kubernetes and batch.")]
PublicAccess = Annotated[str, flag("public-network-access", "enabled or disabled, of a managed endpoint.")]
Egress = Annotated[str, flag("egress", "enabled or disabled: whether a managed deployment reaches the internet.")]
Identities = Annotated[str, flag("identities", "Comma-separated resource ids of user-assigned identities.")]
Secrets = Annotated[str, flag("secrets", "Comma-separated NAME=REFERENCE of secrets in the environment.")]
Server = Annotated[str, flag("server", "azmlinfsrv: Azure's; http: our own in the container, with streams and /v1/*.")]
MaxInstances = Annotated[int | None, flag("max-instances", "Write autoscale rules, up to so many instances.")]
NoPrefixReuse = Annotated[
    bool, flag("no-prefix-reuse", "Compute every prompt whole: nothing of another caller's is reused.")
]
SourceLanguage = Annotated[str | None, flag("src-lang", "Of translation: the texts' language, unless a request says.")]
TargetLanguage = Annotated[
    str | None, flag("tgt-lang", "Of translation: the answers' language, unless a request says.")
]


def read_secrets(pairs: list[str]) -> dict[str, str]:
    """Parse NAME=REFERENCE pairs; raises SpecError, which never repeats a value."""
    found = dict(pair.partition("=")[::2] for pair in pairs)
    if not all(found) or not all(found.values()):
        raise SpecError("--secrets takes NAME=REFERENCE pairs.", "Secrets are given by reference, never as they are.")
    return found
