"""A fake of the parts of Azure that a deployment touches: ARM, blobs, and endpoints that run a real azmlinfsrv."""

from tests.mii_azure.azure.fake_arm.cloud import Cloud, Fault

__all__ = ["Cloud", "Fault"]
