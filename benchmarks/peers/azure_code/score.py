"""MiniLM behind Azure's own server, as a scoring script is usually written: plain transformers, no batching."""

import json
import os

import torch
from transformers import AutoModel, AutoTokenizer


def init() -> None:
    """Load."""
    global tokenizer, model
    folder = os.environ["AZUREML_MODEL_DIR"]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModel.from_pretrained(folder).eval()


@torch.inference_mode()
def run(raw: str) -> list[float]:
    """The embedding of one text."""
    encoded = tokenizer(json.loads(raw)["inputs"], truncation=True, return_tensors="pt")
    hidden = model(**encoded).last_hidden_state
    return torch.nn.functional.normalize(hidden.mean(1), dim=-1)[0].tolist()
