"""Secrets by reference: the forms that Azure ML injects, and variable names that indicate a secret.

Source: MicrosoftDocs/azure-ai-docs, how-to-deploy-online-endpoint-with-secret-injection.md.
"""

import re

_CONNECTION = re.compile(r"\$\{\{azureml://connections/[^/}]+(?:/target|/(?:credentials|metadata)/[^/}]+)?\}\}")
_KEY_VAULT = re.compile(r"\$\{\{keyvault:https://[^/}]+/secrets/[^/}]+/[^/}]+\}\}")
_NAME = re.compile(r"(^|_)(TOKEN|KEY|SECRET|PASSWORD|PASSWD|PWD|CREDENTIALS?|CONNECTION_STRING|SAS)$", re.IGNORECASE)

#: Role that reads a workspace's connections.
CONNECTION_ROLE = "Azure Machine Learning Workspace Connection Secrets Reader"
FORMS = "${{azureml://connections/NAME/credentials/KEY}} or ${{keyvault:https://VAULT.vault.azure.net/secrets/NAME/VERSION}}"


def is_reference(value: str) -> bool:
    """True if Azure replaces the value by a secret when the container starts."""
    return bool(_CONNECTION.fullmatch(value) or _KEY_VAULT.fullmatch(value))


def uses_connection(value: str) -> bool:
    """True if the value is read from a workspace connection."""
    return bool(_CONNECTION.fullmatch(value))


def names_a_secret(name: str) -> bool:
    """True if a variable of that name usually holds a secret, e.g. HF_TOKEN or OPENAI_API_KEY."""
    return bool(_NAME.search(name))
