"""Options of `--engine ray`: number of replicas, their resources, and the cluster. Standard library only."""

import argparse
from dataclasses import dataclass


@dataclass(frozen=True)
class RayOptions:
    """Checked options; `None` and 0 mean the bundle's own values."""

    min_replicas: int = 1
    max_replicas: int = 1
    target_ongoing: float = 0.0  # requests per replica that autoscaling targets; 0: the bundle's max_batch_size
    cpus: float = 1.0  # per replica; also torch's threads
    gpus: float | None = None  # per replica
    address: str | None = None  # GCS of the cluster, HOST:PORT
    start_s: float = 600.0


def read(parser: argparse.ArgumentParser, options: argparse.Namespace) -> RayOptions | None:
    """Read the options of `--engine ray`, None for another engine; exits 2 for invalid numbers."""
    if options.engine != "ray":
        return None
    given = {
        "min_replicas": options.min_replicas,
        "max_replicas": options.min_replicas if options.max_replicas is None else options.max_replicas,
        "target_ongoing": options.target_ongoing,
        "cpus": options.replica_cpus,
        "gpus": options.replica_gpus,
        "address": options.ray_address,
        "start_s": options.start_seconds,
    }
    asked = RayOptions(**{name: value for name, value in given.items() if value is not None})
    least, most = asked.min_replicas, asked.max_replicas
    if least < 1 or most < least:
        parser.error(f"--min-replicas {least}, --max-replicas {most}: they go from 1 upwards, in order")
    if (asked.address or "").startswith("ray://"):
        parser.error("--ray-address takes the HOST:PORT of the head, not a ray:// address; run this on a node of it")
    return asked
