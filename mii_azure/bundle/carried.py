"""Python that bundles carry, copied byte for byte from this installation."""

from pathlib import Path

from mii_azure.platform.servers import HOST, HOST_FILES, HOST_FOLDER, Server

SCORING = Path(__file__).resolve().parents[2] / "scoring"


def scoring_files() -> list[str]:
    """Files of the package `scoring` that every bundle carries, relative to it, sorted."""
    found = [path for path in SCORING.rglob("*") if path.suffix in (".py", ".c") or path.name == "py.typed"]
    return sorted(path.relative_to(SCORING).as_posix() for path in found)


def carried_code(server: Server) -> dict[str, Path]:
    """Python files that every bundle with that server carries: {path in the bundle: file of this installation}."""
    found = {f"code/scoring/{relative}": SCORING / relative for relative in scoring_files()}
    return found | ({HOST_FOLDER + name: HOST / name for name in HOST_FILES} if server == "http" else {})
