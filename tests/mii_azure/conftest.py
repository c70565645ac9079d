"""Fixtures of all that is decided and written: folders of models, and bundles."""

from tests.mii_azure.bundles import make_bundle as make_bundle
from tests.mii_azure.model_folders import folder as folder
