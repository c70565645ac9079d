"""Flags of serve for running a bundle's replicas in a Ray cluster."""

from typing import Annotated

from mii_azure.cli.shared import flag

Engine = Annotated[str, flag("engine", "local: in this process; ray: replicas in a Ray cluster.")]
MinReplicas = Annotated[int | None, flag("min-replicas", "ray: replicas that always run; 1 when absent.")]
MaxReplicas = Annotated[int | None, flag("max-replicas", "ray: replicas that autoscaling may reach.")]
TargetOngoing = Annotated[
    float | None, flag("target-ongoing", "ray: requests per replica to scale at; the bundle's batch size when absent.")
]
ReplicaCpus = Annotated[float | None, flag("replica-cpus", "ray: CPUs of a replica, and its threads; 1 when absent.")]
ReplicaGpus = Annotated[float | None, flag("replica-gpus", "ray: GPUs of a replica; as planned when absent.")]
RayAddress = Annotated[
    str | None, flag("ray-address", "ray: HOST:PORT of the cluster's head; this machine's cluster when absent.")
]
StartSeconds = Annotated[float | None, flag("start-seconds", "ray: how long the first replica may take to answer.")]
