"""Options of `--engine ray`: number of replicas, their resources, and the cluster. Standard library only."""

import argparse
import os
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


ENGINES = ("local", "ray")


def add(parser: argparse.ArgumentParser) -> None:
    """Add the options to the runner's parser, each with its environment variable."""
    group = parser.add_argument_group("Ray Serve (--engine ray)")

    def option(name: str, kind: type, default: str | None, text: str) -> None:
        twin = os.environ.get(f"MII_AZURE_{name.upper().replace('-', '_')}") or default
        group.add_argument(f"--{name}", type=kind, default=twin, help=text)

    group.add_argument(
        "--engine",
        choices=ENGINES,
        default=os.environ.get("MII_AZURE_ENGINE", ENGINES[0]),
        help="local: in this process; ray: replicas in a Ray cluster (%(default)s)",
    )
    option("min-replicas", int, "1", "replicas that always run (%(default)s)")
    option("max-replicas", int, None, "replicas that autoscaling may reach; as many as --min-replicas when absent")
    option("target-ongoing", float, "0", "requests per replica that autoscaling aims at; 0: the bundle's batch size")
    option("replica-cpus", float, "1", "CPUs that Ray sets aside for a replica, and torch's threads (%(default)s)")
    option("replica-gpus", float, None, "GPUs of a replica; what the bundle was planned for when absent")
    option(
        "ray-address", str, None, "HOST:PORT of the cluster's head; this machine's cluster, or a new one, when absent"
    )
    option("start-seconds", float, "600", "how long the first replica may take to answer (%(default)s)")


def read(parser: argparse.ArgumentParser, options: argparse.Namespace) -> RayOptions | None:
    """Read the options of `--engine ray`, None for another engine; exits 2 for invalid numbers."""
    if options.engine != "ray":
        return None
    most = options.min_replicas if options.max_replicas is None else options.max_replicas
    if options.min_replicas < 1 or most < options.min_replicas:
        parser.error(f"--min-replicas {options.min_replicas}, --max-replicas {most}: they go from 1 upwards, in order")
    if options.replica_cpus < 0 or (options.replica_gpus or 0) < 0 or options.target_ongoing < 0:
        parser.error("--replica-cpus, --replica-gpus and --target-ongoing are not negative")
    if (options.ray_address or "").startswith("ray://"):
        parser.error("--ray-address takes the HOST:PORT of the head, not a ray:// address; run this on a node of it")
    return RayOptions(
        options.min_replicas,
        most,
        options.target_ongoing,
        options.replica_cpus,
        options.replica_gpus,
        options.ray_address,
        options.start_seconds,
    )
