"""MiniLM behind LitServe, as its documentation has it for a batch of embeddings: `... MODEL_FOLDER PORT`."""

import sys

import litserve
import torch
from transformers import AutoModel, AutoTokenizer

# `python -m benchmarks.peers --tune` tries others.
MAX_BATCH_SIZE = 32
BATCH_TIMEOUT_S = 0.002


class Embedder(litserve.LitAPI):
    """Texts in, normalised means of the last hidden states out."""

    def __init__(self, folder: str, max_batch_size: int, batch_timeout: float) -> None:
        super().__init__(max_batch_size=max_batch_size, batch_timeout=batch_timeout, api_path="/score")
        self._folder = folder

    def setup(self, device: str) -> None:
        self._tokenizer = AutoTokenizer.from_pretrained(self._folder)
        self._model = AutoModel.from_pretrained(self._folder).eval().to(device)
        self._device = device

    def decode_request(self, request):  # FastAPI would read an annotation
        return request["inputs"]

    def batch(self, inputs: list[str]) -> list[str]:
        return list(inputs)

    @torch.inference_mode()
    def predict(self, texts: list[str]) -> torch.Tensor:
        encoded = self._tokenizer(texts, padding=True, truncation=True, return_tensors="pt").to(self._device)
        hidden = self._model(**encoded).last_hidden_state
        mask = encoded["attention_mask"].unsqueeze(-1).to(hidden.dtype)
        return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)

    def unbatch(self, output: torch.Tensor) -> list[torch.Tensor]:
        return list(output)

    def encode_response(self, output: torch.Tensor) -> list[float]:
        return output.tolist()


def main() -> None:
    folder, port, *tuned = sys.argv[1:]
    size, wait = (int(tuned[0]), float(tuned[1])) if tuned else (MAX_BATCH_SIZE, BATCH_TIMEOUT_S)
    server = litserve.LitServer(Embedder(folder, size, wait), accelerator="cpu", fast_queue=True)
    server.run(host="127.0.0.1", port=int(port), log_level="warning", generate_client_file=False, access_log=False)


if __name__ == "__main__":
    main()
