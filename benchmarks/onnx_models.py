"""An encoder in ONNX Runtime, as a careful user would have it: exported, its layers fused, its weights in int8."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

OUTPUT = {True: "logits", False: "last_hidden_state"}  # by whether the model has a head


class _Bare(nn.Module):
    def __init__(self, model: Any, output: str) -> None:
        super().__init__()
        self.model, self.output = model, output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        return self.model(input_ids=input_ids, attention_mask=attention_mask)[self.output]


def sessions(model: Any, folder: Path, threads: int) -> dict[str, Callable[[dict[str, Tensor]], dict[str, Tensor]]]:
    """Callables that take a batch and answer as the model does: "ORT", its layers fused, and "ORT int8"."""
    from onnxruntime.quantization import QuantType, quantize_dynamic
    from onnxruntime.transformers import optimizer

    output = OUTPUT[hasattr(model, "classifier")]
    plain, fused, whole = (folder / f"{name}.onnx" for name in ("plain", "fused", "int8"))
    ids = torch.randint(5, 1000, (2, 16))
    axes = {0: "batch", 1: "length"}
    torch.onnx.export(
        _Bare(model, output).eval(),
        (ids, torch.ones_like(ids)),
        str(plain),
        input_names=["input_ids", "attention_mask"],
        output_names=[output],
        dynamic_shapes={"input_ids": axes, "attention_mask": axes},
        dynamo=True,
        verbose=False,
    )
    config = model.config
    optimizer.optimize_model(
        str(plain), "bert", num_heads=config.num_attention_heads, hidden_size=config.hidden_size, opt_level=1
    ).save_model_to_file(str(fused))
    quantize_dynamic(str(fused), str(whole), weight_type=QuantType.QInt8, per_channel=True)
    paths = {"ORT": fused, "ORT int8": whole}
    return {name: _session(path, output, threads) for name, path in paths.items()}


def _session(path: Path, output: str, threads: int) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    # Its threads would otherwise spin on, and take the cores from whatever runs after it.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def call(batch: dict[str, Tensor]) -> dict[str, Tensor]:
        feed = {name: value.numpy() for name, value in batch.items()}
        return {output: torch.from_numpy(session.run([output], feed)[0])}

    return call
