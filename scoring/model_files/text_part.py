"""Types whose whole model needs a library that bundles do not have, and is loaded as the text part of it alone.

A text is answered by that part; the weights of towers for images and sound stay in their files.
"""

from typing import Any

#: Changes of the weights' names for the text part's own class, by type. The towers of Gemma 3n need timm.
RENAMED = {"gemma3n": {r"^model\.language_model\.": "model."}}


def text_part(config: Any) -> Any:
    """Configuration that the served model has: of the text part where that is all that is loaded."""
    return config.get_text_config(decoder=True) if config.model_type in RENAMED else config


def text_options(config: Any) -> dict[str, Any]:
    """Options that load the text part from the files of the whole; none for other types."""
    renamed = RENAMED.get(config.model_type)
    return {"config": text_part(config), "key_mapping": renamed} if renamed else {}
