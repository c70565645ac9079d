"""Versions of the packages that compute the answers."""


def versions() -> dict[str, str]:
    """Versions of the packages that compute the answers."""
    import platform
    from importlib import metadata

    found = {"python": platform.python_version()}
    for package in (
        "torch",
        "transformers",
        "tokenizers",
        "safetensors",
        "deepspeed",
        "diffusers",
        "pillow",
        "openvino",
    ):
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            found[package] = "absent"
    return found
