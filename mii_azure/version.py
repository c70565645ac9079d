"""The version of mii_azure, as pyproject.toml states it."""

__version__ = "0.1.0"
