"""What will be done and why."""

from pydantic import BaseModel, ConfigDict

from mii_azure.profile import Profile


class Decision(BaseModel):
    """One choice with its reason."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    what: str  # e.g. "precision", "instance type", "readiness probe"
    value: str
    reason: str


class Memory(BaseModel):
    """Memory budget in bytes on the device that holds the weights."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weights: int
    kv_cache: int
    activations: int
    context: int  # CUDA context and libraries, or the Python process on CPU
    available: int

    @property
    def needed(self) -> int:
        return self.weights + self.kv_cache + self.activations + self.context


class Probe(BaseModel):
    """An Azure ML probe; seconds and counts."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    initial_delay: int
    period: int
    timeout: int
    success_threshold: int
    failure_threshold: int


class Plan(BaseModel):
    """Every setting of a deployment, each derived, each with its reason in `decisions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    task_options: dict[str, str | bool | int]  # the task's own defaults, e.g. {"pooling": "mean"}
    profile: Profile
    instance_type: str
    quota_family: str  # Azure's name of the family whose core quota the deployment draws on
    quota_cores: int
    device: str  # "cpu" or "cuda"
    image: str  # key of templates/images.json, which is also the lock's name
    dtype: str
    tensor_parallel: int  # GPUs that share one copy of the weights; 1 on CPU
    memory: Memory
    fits: bool  # False when only tensor slicing, which this version does not serve, could hold the model
    context_length: int  # tokens of one request, prompt and answer; at most the model's own
    max_batch_tokens: int
    max_batch_size: int
    max_wait_ms: int  # how long the first request of a batch waits for company
    queue_size: int  # requests that may wait; one more is answered 429
    max_payload_bytes: int
    max_concurrent_requests: int
    request_timeout_ms: int
    readiness: Probe
    liveness: Probe
    decisions: tuple[Decision, ...]
