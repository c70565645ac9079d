"""Conversions of a model package's contents into an ordinary Hugging Face folder; see packaged.py.

Each function takes the package's unpacked folder and an empty folder to fill. torch, transformers and the readers of
foreign formats are imported only when a conversion runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

# The atoms, bonds and marks of SMILES as RXNMapper cuts them (rxnmapper.smiles_utils, MIT).
SMILES_PIECE = r"\[[^\]]+]|Br?|Cl?|N|O|S|P|F|I|b|c|n|o|s|p|\(|\)|\.|=|#|-|\+|\\|\/|:|~|@|\?|>>?|\*|\$|\%[0-9]{2}|[0-9]"


def minilm(source: Path, target: Path) -> None:
    """Copy the model as it is, with sentence-transformers' pooling; the card and the training data's list stay out."""
    (target / "1_Pooling").mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
        "modules.json",
        "sentence_bert_config.json",
        "1_Pooling/config.json",
    ):
        shutil.copyfile(source / name, target / name)


def smollm2(source: Path, target: Path) -> None:
    """Widen the 4-bit blocks of the GGUF file to bfloat16, which SmolLM2 was published in."""
    from mii_azure.model.gguf import read_checkpoint
    from mii_azure.model.gguf_conversion import write_folder

    (file,) = source.glob("*.gguf")
    write_folder(read_checkpoint(file), target)


def flan_t5(source: Path, target: Path) -> None:
    """Undo the int8 of both ONNX graphs and write float32.

    The head was trained apart from the embedding. The weights go to the file as they are, because a model built in
    memory ties the two again, whatever its configuration says; one loaded from the folder does not.
    """
    import onnx
    from transformers import T5Config

    config = T5Config(
        vocab_size=32128,
        d_model=512,
        d_kv=64,
        d_ff=1024,
        num_layers=8,
        num_decoder_layers=8,
        num_heads=6,
        feed_forward_proj="gated-gelu",
        tie_word_embeddings=False,
        decoder_start_token_id=0,
        architectures=["T5ForConditionalGeneration"],
        dtype="float32",
    )
    state = _onnx_weights(onnx.load(source / "encoder.onnx").graph, "enc.", "encoder.")
    state |= _onnx_weights(onnx.load(source / "decoder.onnx").graph, "m.", "")
    del state["encoder.embed_tokens.weight"]  # equal to shared.weight, which stays
    _write_model(target, config, state)
    saved = json.loads((target / "config.json").read_text(encoding="utf-8"))
    _write_json(target / "config.json", saved | {"tie_word_embeddings": False})  # T5Config saves true regardless
    tokenizer = json.loads((source / "tokenizer.json").read_text(encoding="utf-8"))
    _write_json(target / "tokenizer.json", tokenizer | {"truncation": None, "padding": None})  # 48 tokens there
    settings = {"tokenizer_class": "T5Tokenizer", "model_max_length": 512, "extra_ids": 100}
    names = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>"}
    _write_json(target / "tokenizer_config.json", settings | names)


def _onnx_weights(graph: Any, prefix: str, instead: str) -> dict[str, Any]:
    """The graph's weights by their PyTorch names.

    A matrix in a product has lost its name and is stored transposed: the node that uses it tells which it is. The
    others (embeddings, norms) keep their names.
    """
    import torch
    from onnx.numpy_helper import to_array

    arrays = {tensor.name: torch.from_numpy(to_array(tensor).copy()) for tensor in graph.initializer}

    def plain(quantized: str) -> Any:
        stem = quantized.removesuffix("_quantized")
        zero = arrays[f"{stem}_zero_point"].to(torch.float32)
        return (arrays[quantized].to(torch.float32) - zero) * arrays[f"{stem}_scale"]

    weights: dict[str, Any] = {}
    for node in graph.node:
        if node.op_type == "MatMulInteger":
            path = node.name.removesuffix("/MatMul_quant").strip("/").replace("/", ".")
            weights[f"{path}.weight"] = plain(node.input[1]).T
    for name, array in arrays.items():
        if name.startswith(prefix) and name.endswith(".weight"):
            weights[name] = array
        elif name.startswith(prefix) and name.endswith(".weight_quantized"):
            weights[name.removesuffix("_quantized")] = plain(name)
    return {instead + name.removeprefix(prefix): weight for name, weight in weights.items()}


def smiles_albert(source: Path, target: Path) -> None:
    """Write the pickled weights as safetensors, and a tokenizer that cuts SMILES at its atoms, bonds and marks."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors
    from transformers import AlbertForMaskedLM, PreTrainedTokenizerFast

    entries = (source / "vocab.txt").read_text(encoding="utf-8").splitlines()
    vocabulary = {entry: index for index, entry in enumerate(entries)}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))  # noqa: S106
    core.pre_tokenizer = pre_tokenizers.Split(Regex(SMILES_PIECE), behavior="removed", invert=True)
    core.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, vocabulary[token]) for token in ("[CLS]", "[SEP]")],
    )
    core.decoder = decoders.Fuse()
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("unk", "sep", "pad", "cls", "mask")}
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=core, model_max_length=512, **names)
    model = AlbertForMaskedLM.from_pretrained(source, local_files_only=True)
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)


def _write_model(target: Path, config: Any, state: dict[str, Any]) -> None:
    from safetensors.torch import save_file
    from transformers import GenerationConfig

    contiguous = {name: weight.contiguous() for name, weight in state.items()}
    save_file(contiguous, target / "model.safetensors", metadata={"format": "pt"})
    config.save_pretrained(target)
    GenerationConfig.from_model_config(config).save_pretrained(target)


def _write_json(file: Path, content: dict[str, Any]) -> None:
    file.write_text(json.dumps(content, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")
