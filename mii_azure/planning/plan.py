"""Plan: every setting of a deployment, derived by planning and read by all later stages."""

from pydantic import BaseModel, ConfigDict

from mii_azure import notebook
from mii_azure.errors import DoesNotFit
from mii_azure.hardware.skus import Sku, find_sku
from mii_azure.model.families import Options
from mii_azure.model.profile import Profile
from mii_azure.planning.budget import Memory
from mii_azure.planning.expected import Outlook
from mii_azure.planning.latency import Probe
from mii_azure.planning.rationale import Decision
from mii_azure.platform.limits import GB
from scoring.config import PassDecision
from scoring.quantization.layout import Made


class Quantization(BaseModel):
    """Result of quantising a model's weights, with its error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scheme: Made = "int8"
    products: int  # matrices that are quantised
    weight_error: float  # relative, 2-norms over all of them
    output_error: float | None  # relative, against the original in float32; None if it was not measured
    note: str = ""  # reason why it was not measured

    def sentence(self) -> str:
        """Sentence that describes it to a person."""
        told = f"{self.products} products: weights differ by {self.weight_error:.2%}"
        if self.output_error is None:
            return f"{told}; answers were not compared: {self.note}."
        return f"{told}, answers by {self.output_error:.2%} from the original in float32."


class AdapterPlan(BaseModel):
    """A LoRA adapter of the deployment."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    sha256: str  # over its config and weights
    rank: int  # the largest of its products
    products: int
    parameters: int
    merged: bool  # into the weights; else served beside them

    def decision(self) -> Decision:
        """Decision for the plan."""
        how = "Merged into the weights" if self.merged else "Served beside the base, by requests that name it"
        return Decision(
            what="adapter",
            value=f"{self.name}, rank {self.rank}, {self.parameters:,} parameters",
            reason=f"{how}: {self.products} products. SHA-256 {self.sha256}.",
        )


class Plan(BaseModel):
    """Settings of a deployment, all derived, each with its reason in `decisions`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    task: str
    task_options: Options  # the task's own defaults, e.g. {"pooling": "mean"}
    profile: Profile
    instance_type: str
    machine: Sku | None = None  # as described, or assumed by its name; None if the data know the instance type
    quota_family: str  # Azure's name of the family whose core quota the deployment uses
    quota_cores: int
    device: str  # "cpu" or "cuda"
    image: str  # key of templates/images.json, which is also the lock's name
    dtype: str
    tensor_parallel: int  # GPUs that share one copy of the weights; 1 on CPU
    memory: Memory
    fits: bool | None  # False if only slices could hold it, and its family has none; None if the machine is not known
    context_length: int  # tokens of one request, prompt and answer; 0 if the model's config is not known here
    max_batch_tokens: int
    max_batch_size: int
    slots: int  # sequences that a decoder on a GPU advances at once; 0 if batches run
    kv_cache_tokens: int = 0  # of all sequences together, in a paged cache on each GPU; 0 if batches run
    at_once: tuple[tuple[int, int], ...] = ()  # (tokens of a request, requests of that length that the cache holds)
    queue_size: int  # rows that may wait; one more is answered 429
    max_payload_bytes: int
    max_concurrent_requests: int
    request_timeout_ms: int
    outlook: Outlook | None = None  # speed that is expected; None if the model is not known here
    readiness: Probe
    liveness: Probe
    passes: tuple[PassDecision, ...]  # empty if the model is not known here
    decisions: tuple[Decision, ...]
    adapters: tuple[AdapterPlan, ...] = ()
    quantisation: Quantization | None = None  # known once the weights are quantised

    def __repr__(self) -> str:
        return f"Plan({self.headline()})"

    __str__ = __repr__

    def headline(self) -> str:
        """Summary in one line: whether it fits, on which instance type, and the expected speed."""
        if self.fits is None:
            needed = f"{self.memory.needed / GB:.1f} GB"
            return f"{self.profile.model} for {self.task}: fit unknown on {self.instance_type}, it needs {needed}"
        memory = f"{self.memory.needed / GB:.1f} of {self.memory.available / GB:.1f} GB"
        fits = f"fits {self.instance_type} in {self.dtype}, {memory}" if self.fits else f"fits no {self.instance_type}"
        told = f"{self.profile.model} for {self.task}: {fits}"
        if self.outlook is None:
            return told
        return f"{told}, about {self.outlook.per_second:,.0f} {self.outlook.request.unit}/s"

    def _repr_html_(self) -> str:
        rows = [(each.what, each.shown, each.reason) for each in self.decisions]
        return notebook.page(self.headline(), notebook.table(("what", "chosen", "why"), rows))

    def takes(self, name: str) -> bool:
        """True if the plan relies on a pass."""
        return any(each.name == name and each.take for each in self.passes)

    @property
    def sku(self) -> Sku:
        """Facts of the instance type."""
        return self.machine or find_sku(self.instance_type)

    def require_fit(self) -> None:
        """Raise DoesNotFit if the planned deployment cannot be served."""
        if self.fits is False:
            raise DoesNotFit(
                f"{self.profile.model} fits {self.instance_type} only sliced over {self.tensor_parallel} GPUs,"
                f" and DeepSpeed does not slice {self.profile.family} correctly.",
                "Use a smaller model of the family.",
            )
