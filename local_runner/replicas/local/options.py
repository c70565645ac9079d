"""Options of `--replicas`, and each replica's share of the machine. Standard library only."""

import argparse
import re
from dataclasses import dataclass

#: Tells the scoring package how many processes share the cores that it may use.
_SHARERS = "MII_AZURE_SHARERS"
MOST = 64


@dataclass(frozen=True)
class ReplicaOptions:
    """Checked options for several replicas on this machine."""

    count: int
    sticky: str = ""  # header, or gRPC metadata, in lower case, whose value pins a session to one replica
    verbose: bool = False
    log_format: str = "text"


def read(parser: argparse.ArgumentParser, options: argparse.Namespace) -> ReplicaOptions | None:
    """Read the options for more than one replica, None for one; exits 2 for invalid combinations."""
    if not 1 <= options.replicas <= MOST:
        parser.error(f"--replicas {options.replicas}: 1 to {MOST}")
    if options.sticky and not re.fullmatch(r"[A-Za-z0-9-]+", options.sticky):
        parser.error(f"--sticky {options.sticky!r} is not the name of a header")
    if options.replicas == 1:
        return None
    if options.engine != "local":
        parser.error("--replicas is for one machine; with --engine ray give --min-replicas")
    return ReplicaOptions(options.replicas, (options.sticky or "").lower(), options.verbose, options.log_format)


def shares(count: int, group: int, visible: list[str]) -> list[dict[str, str]]:
    """Environment of each of `count` replicas: `group` GPUs each, or a share of the cores without GPUs.

    Raises ValueError, with a sentence, if there are too few GPUs.
    """
    if visible:
        if count * group > len(visible):
            each = f"{group} GPUs each" if group > 1 else "a GPU each"
            raise ValueError(f"{count} replicas with {each} need {count * group} GPUs; {len(visible)} are visible.")
        parts = [visible[at * group : (at + 1) * group] for at in range(count)]
        return [{"CUDA_VISIBLE_DEVICES": ",".join(part)} for part in parts]
    return [{_SHARERS: str(count)} for _ in range(count)]
