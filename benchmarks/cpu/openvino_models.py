"""An encoder in OpenVINO, quantised by NNCF on real text as its documentation has it; neither is a dependency."""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.onnx_models import OUTPUT
from scoring.encoder.real_text import calibration

_FEED = ("input_ids", "attention_mask")


def quantised(model: Any, exported: Path, threads: int) -> dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """A callable that takes a batch and answers as the model does; empty without `pip install openvino nncf`."""
    if not (importlib.util.find_spec("openvino") and importlib.util.find_spec("nncf")):
        return {}
    import nncf
    import openvino

    core = openvino.Core()
    texts = nncf.Dataset(calibration(model), lambda row: {name: row[name].numpy() for name in _FEED})
    kind = nncf.ModelType.TRANSFORMER
    whole = nncf.quantize(core.read_model(exported), texts, model_type=kind)
    # What is not in int8 is as OpenVINO has it by itself: in bfloat16 where the processor multiplies that.
    settings = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    request = core.compile_model(whole, "CPU", settings).create_infer_request()
    output = OUTPUT[hasattr(model, "classifier")]

    def call(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return {output: torch.from_numpy(request.infer({name: batch[name].numpy() for name in _FEED})[0])}

    return {"OpenVINO int8": call}
