"""Deployment of one bundle on Ray Serve: connect, deploy, look, stop. Blocking; Ray is imported only here.

Ray Serve's own HTTP proxy stays off: `replicas.frontend` speaks every protocol, and calls replicas by a handle.
"""

import json
import logging
import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from local_runner.errors import ClusterTooSmall, RayMissing, RunnerFailed
from local_runner.protocol.errors import error_from_body
from local_runner.replicas.ray import bundle_actor, bundle_copy
from local_runner.replicas.ray.options import RayOptions
from local_runner.replicas.ray.worker import RayReplica, failure
from scoring.host_api import Deployment

logger = logging.getLogger(__name__)

NAMESPACE = "mii-azure"
_MODEL_DIR = "AZUREML_MODEL_DIR"
_HEALTH_PERIOD_S = 2.0
_HEALTH_TIMEOUT_S = 30.0
# Ray Serve's default of 30 s would let a growing queue wait that long.
_UPSCALE_DELAY_S = 5.0
_METRICS_S = 2.0
_CONSTRUCTOR_RETRIES = 2
_TELL_TIMEOUT_S = 2.0
_REACH_S = 5.0
_GPU_SERIES = "Standard_N"  # Azure's prefix of instance types with GPUs


@dataclass(frozen=True)
class Replicas:
    """Number of replicas by their Ray Serve state, and Ray Serve's message on the deployment."""

    running: int = 0
    states: Mapping[str, int] | None = None
    failed: bool = False
    message: str = ""
    statistics: dict[str, Any] = field(default_factory=dict)  # summed

    @property
    def starting(self) -> int:
        return sum((self.states or {}).get(state, 0) for state in ("STARTING", "PENDING_MIGRATION", "RECOVERING"))


class Cluster:
    """One bundle's application in one Ray cluster."""

    def __init__(self, bundle: Path, deployment: Deployment, options: RayOptions) -> None:
        self._bundle = bundle
        self._deployment = deployment
        self._options = options
        self.name = f"mii-azure-{deployment.name}"
        self._serve: Any = None
        self._started = False  # False also if another front started the replicas, and ends them

    def deploy(self, slots: int) -> Any:
        """Start the replicas without waiting for them; return the handle. `slots`: concurrent requests per replica.

        If another front has already started them from the same bundle, join it. Raises RunnerFailed
        if it serves another bundle.
        """
        ray, self._serve = _import()
        self._needs = {"CPU": self._options.cpus, "GPU": self._gpus(ray)}
        reference = bundle_copy.reference(self._bundle, f"{self.name}-desk")
        self._serve.start(proxy_location="Disabled")
        if other := _find(ray, reference.desk):
            if ray.get(other.digest.remote()) != reference.digest:
                raise RunnerFailed(
                    f"Another front serves a different bundle as {self._deployment.name} in this cluster.",
                    "Stop it first, or generate under another name.",
                )
            self._desk = other
            return self._serve.get_app_handle(self.name)
        self._desk, self._started = _desk(ray, self._bundle, reference.desk), True
        deployment = self._serve.deployment(RayReplica, name="replica", **self._settings(slots))
        arguments = (reference, NAMESPACE)
        target = self._serve.RunTarget(deployment.bind(*arguments), name=self.name, route_prefix=None)
        return self._serve.run_many([target], wait_for_applications_running=False)[0]

    def look(self) -> Replicas:
        """State of the replicas now, from Ray Serve."""
        application = self._serve.status().applications.get(self.name)
        if application is None:
            return Replicas(message="the application is gone")
        deployments = list(application.deployments.values())
        states = {str(state): count for one in deployments for state, count in one.replica_states.items()}
        message = " ".join(one.message for one in deployments if one.message) or application.message
        # Ray Serve would retry; the error that the replica reports would occur again.
        failed = application.status == "DEPLOY_FAILED" or failure(message) is not None
        return Replicas(states.get("RUNNING", 0), states, failed, message, self._sum())

    def _sum(self) -> dict[str, Any]:
        import ray

        try:
            statistics: dict[str, Any] = ray.get(self._desk.total.remote(), timeout=_TELL_TIMEOUT_S)
        except ray.exceptions.RayError:
            return {}
        return statistics

    def why_not(self, replicas: Replicas) -> Exception:
        """Error of a deployment that failed, or did not answer in time."""
        if body := failure(replicas.message):
            return error_from_body(json.dumps(body).encode(), 503)
        return self.too_small() or RunnerFailed(
            f"No replica answers: {replicas.message.strip().splitlines()[-1] if replicas.message else 'none started'}.",
            "See the logs of Ray Serve's replicas, or give --start-seconds more.",
        )

    def too_small(self) -> ClusterTooSmall | None:
        """Error if no node of the cluster could ever hold a replica; None if one could."""
        import ray

        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        if any(all(node.get(kind, 0) >= wanted for kind, wanted in self._needs.items()) for node in nodes):
            return None
        wanted = " and ".join(f"{count:g} {kind}" for kind, count in self._needs.items() if count)
        most = {kind: max((node.get(kind, 0) for node in nodes), default=0) for kind in self._needs}
        largest = ", ".join(f"{count:g} {kind}" for kind, count in most.items())
        return ClusterTooSmall(
            f"A replica needs {wanted} on one node; of the cluster's {len(nodes)} nodes the largest have {largest}.",
            "Add a node, or ask for less with --replica-cpus and --replica-gpus.",
        )

    def stop(self, wait: bool = True) -> None:
        """Stop the application if this front started it, letting replicas finish their work, and leave the cluster."""
        import ray

        if not ray.is_initialized():
            return
        if self._started:
            self._serve.delete(self.name, _blocking=wait)
        ray.shutdown()

    def _settings(self, slots: int) -> dict[str, Any]:
        asked, limits = self._options, self._deployment.limits
        actor: dict[str, Any] = {"num_cpus": self._needs["CPU"], "num_gpus": self._needs["GPU"]}
        if model := os.environ.get(_MODEL_DIR):  # for a bundle whose model is a reference
            actor["runtime_env"] = {"env_vars": {_MODEL_DIR: model}}
        settings: dict[str, Any] = {
            "ray_actor_options": actor,
            "max_ongoing_requests": slots,
            "health_check_period_s": _HEALTH_PERIOD_S,
            "health_check_timeout_s": _HEALTH_TIMEOUT_S,
            "graceful_shutdown_timeout_s": limits.request_timeout_s,
            "max_constructor_retry_count": _CONSTRUCTOR_RETRIES,
            "logging_config": {"enable_access_log": False},
        }
        if asked.max_replicas == asked.min_replicas:
            return {**settings, "num_replicas": asked.min_replicas}
        scaling = {
            "min_replicas": asked.min_replicas,
            "max_replicas": asked.max_replicas,
            "target_ongoing_requests": asked.target_ongoing or limits.max_batch_size,
            "upscale_delay_s": _UPSCALE_DELAY_S,
            "metrics_interval_s": _METRICS_S,
        }
        return {**settings, "autoscaling_config": scaling}

    def _gpus(self, ray: Any) -> float:
        if self._options.gpus is not None:
            return self._options.gpus
        if not self._deployment.instance_type.startswith(_GPU_SERIES):
            return 0.0
        if not any(node["Resources"].get("GPU") for node in ray.nodes() if node["Alive"]):
            logger.warning("The bundle was planned for a GPU; the cluster has none, so replicas run on CPUs.")
            return 0.0
        return float(max(1, self._deployment.optimisation.tensor_parallel))


def _import() -> tuple[Any, Any]:
    # No usage statistics of this cluster are sent unless its owner wants that.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
        from ray import serve
    except ImportError as error:
        raise RayMissing(
            f"--engine ray needs Ray Serve: {error.msg}.", "Install it: pip install 'mii-azure[ray]'."
        ) from error
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    return ray, serve


def connect(address: str | None) -> None:
    """Join the cluster at `address`, or this machine's, or start one here; raises RayMissing, RunnerFailed.

    Call it before any gRPC server or event loop: a cluster starts by forking, which their threads do not survive.
    """
    ray, _ = _import()
    address = address or os.environ.get("RAY_ADDRESS")
    if address:
        _reach(address)
    options = {"namespace": NAMESPACE, "log_to_driver": False, "logging_level": logging.WARNING}
    try:
        ray.init(address=address or "auto", **options)
        return
    except Exception as error:  # Ray raises many classes, plain Exception among them
        if address or not isinstance(error, ConnectionError):
            raise RunnerFailed(
                f"No Ray cluster to join at {address or 'this machine'}: {_first_line(error)}",
                "This machine must be a node of it: `ray start --address HEAD:6379`, with the same Ray and Python.",
            ) from error
    try:
        ray.init(address="local", include_dashboard=False, **options)
    except Exception as error:
        raise RunnerFailed(
            f"No Ray cluster started on this machine: {_first_line(error)}",
            "Its logs are in /tmp/ray/session_latest/logs.",
        ) from error


def _reach(address: str) -> None:
    """Raise RunnerFailed if nothing listens; Ray would try for minutes."""
    host, _, port = address.rpartition(":")
    if not port.isdigit():  # "auto", "local"
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), _REACH_S).close()
    except OSError as error:
        raise RunnerFailed(
            f"Nothing answers at {address}, where the head of the Ray cluster should be: {error.strerror or error}.",
            "Start it there with `ray start --head`, or name another with --ray-address.",
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _find(ray: Any, name: str) -> Any:
    """Find the actor of a front that lives; None without one."""
    try:
        return ray.get_actor(name, NAMESPACE)
    except ValueError:
        return None


def _desk(ray: Any, bundle: Path, name: str) -> Any:
    """Start the actor that serves the bundle's files, on this node; it ends with this process."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    kept = {"num_cpus": 0, "scheduling_strategy": here, "max_concurrency": 4}
    return ray.remote(bundle_actor.BundleActor).options(name=name, namespace=NAMESPACE, **kept).remote(str(bundle))
