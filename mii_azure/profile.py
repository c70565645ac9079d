"""Facts of a model, read from `config.json` and safetensors headers, never from weights."""

from pydantic import BaseModel, ConfigDict


class Profile(BaseModel):
    """What is known of a model before any weight is loaded."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    model: str  # what the user typed: a folder, a hub id, an azureml: reference
    revision: str | None  # hub commit, 40 hex digits
    architecture: str  # first entry of config.json's "architectures", e.g. "BertForQuestionAnswering"
    family: str  # config.json's "model_type", e.g. "bert"
    kind: str  # "encoder", "decoder" or "encoder-decoder"
    parameters: int
    weight_bytes: int
    dtype: str  # as stored: float32, float16, bfloat16
    layers: int
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    context_length: int  # tokens
    kv_bytes_per_token: int  # at the stored dtype; 0 for encoders
    source: str  # where the facts come from: "folder", "hub" or "recorded"
