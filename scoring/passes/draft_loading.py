"""Loads a draft model from its folder within the model's, as a decoder that follows few sequences."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from scoring.errors import LoadError
from scoring.limits.memory_shares import DRAFT_CACHE_TOKENS
from scoring.passes.families import NO_DRAFTS

if TYPE_CHECKING:
    from scoring.decoder.decoder import Decoder


def draft_decoder(hf_model: Any, name: str, length: int, share: float) -> "Decoder":
    """Decoder of the draft model in the folder `name` of a loaded model, in its type and on its device.

    Its sequences have up to `length` tokens. Raises LoadError.
    """
    import transformers

    from scoring.decoder.decoder import Decoder
    from scoring.decoder.drafts import SIZES, SLOTS
    from scoring.quantization.loading import from_pretrained

    folder = Path(hf_model.name_or_path) / name
    try:
        loaded = from_pretrained(
            transformers.AutoModelForCausalLM,
            folder,
            dtype=hf_model.dtype,
            device_map={"": str(hf_model.device)},
            local_files_only=True,
            use_safetensors=True,
        ).eval()
    except Exception as error:
        raise LoadError(
            f"The draft model in {name} cannot be loaded: {type(error).__name__}.", "Generate the bundle again."
        ) from error
    most, tokens = min(length, DRAFT_CACHE_TOKENS), DRAFT_CACHE_TOKENS
    # Sequences are wound back to the first wrong token of a draft.
    made = Decoder(loaded, SLOTS, most, tokens=tokens, share=share, rewinds=SIZES[-1])
    if made.recurrent is not None:
        raise LoadError(f"The draft model in {name} cannot draft: {NO_DRAFTS}.", "Generate the bundle with another.")
    return made


def cost_of(draft: "Decoder", decoder: "Decoder") -> float:
    """Time of a draft model's step in steps of a decoder, as both are bound by the weights that they read."""
    return draft.model.step_bytes() / max(1, decoder.model.step_bytes())
