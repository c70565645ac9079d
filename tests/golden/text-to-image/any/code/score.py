"""Draws what a text describes.

A request:

    {
      "inputs": "A photo of an astronaut riding a horse on Mars.",
      "parameters": {
        "num_inference_steps": 20,
        "seed": 7
      }
    }

The same file runs on Azure ML and on the local runner; the work is done by the package `scoring` beside it.
"""

import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from scoring import entry  # this folder's, and no other


def init() -> None:
    """Load the model; called once, before the first request."""
    entry.init()


def run(raw: str) -> Any:
    """Answer one request body; a bad request is answered with its status, never raised."""
    return entry.run(raw)
