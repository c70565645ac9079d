"""text-to-image with Stable Diffusion: one row per image; PNG in base64."""

import base64
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import torch

from scoring.config import Limits
from scoring.engine.row import Between, Row, nothing
from scoring.errors import InvalidParameter
from scoring.schema.requests import PromptPair, TextToImageParameters
from scoring.strict_json.body import text_bytes
from scoring.tasks.base import Task

#: Bytes of a PNG beside its pixels, and of an image's JSON beside the PNG and the prompt.
_PNG_BYTES, _JSON_BYTES = 256, 160
_SEEDS = 2**63


@dataclass(frozen=True)
class Drawing:
    """Parameters of one image beside its prompt's tokens."""

    seed: int
    height: int
    width: int
    steps: int
    guidance: float

    @property
    def guided(self) -> bool:
        return self.guidance > 1


class TextToImage(Task):
    """Prompts with equal sizes and steps share a batch; guidance, seed and negative prompt are each row's own."""

    unit = "positions of text and image"
    smaller = "Ask for fewer images at once, or smaller ones."

    def size(self, parameters: TextToImageParameters) -> tuple[int, int]:
        """Height and width, pixels: the request's, else the model's own."""
        height, width = self.model.native_size
        return parameters.height or height, parameters.width or width

    def answer_bytes(self, value: Any, parameters: Any, rows: Sequence[Row]) -> int:
        """Most bytes of the answers, as if no image could be compressed."""
        height, width = self.size(parameters)
        return len(rows) * (reply_bytes(height, width) + text_bytes(prompt(value)))

    def most_bytes(self, limits: Limits) -> int:
        return limits.max_payload_bytes

    def encode(self, value: Any, parameters: Any, item: int) -> list[Row]:
        if parameters.num_inference_steps > self.model.most_steps:
            raise InvalidParameter(
                f"The model was trained over {self.model.most_steps} steps; {parameters.num_inference_steps} are more.",
                where="parameters.num_inference_steps",
            )
        try:
            self.model.denoiser.table(parameters.num_inference_steps)
        except Exception as error:  # some schedulers need a minimum number of steps
            name = type(self.model.denoiser.scheduler).__name__
            raise InvalidParameter(
                f"{name} cannot run in {parameters.num_inference_steps} steps.",
                "Ask for more.",
                where="parameters.num_inference_steps",
            ) from error
        own = value.negative_prompt if isinstance(value, PromptPair) else None
        negative = own if own is not None else parameters.negative_prompt or ""
        features = {
            "input_ids": self._tokens(prompt(value), parameters, item),
            "negative_ids": self._tokens(negative, parameters, item),
        }
        height, width = self.size(parameters)
        first = secrets.randbelow(_SEEDS) if parameters.seed in (None, -1) else parameters.seed
        rows = []
        for number in range(parameters.num_images_per_prompt):
            drawing = Drawing(
                (first + number) % _SEEDS, height, width, parameters.num_inference_steps, parameters.guidance_scale
            )
            key = (height, width, drawing.steps, drawing.guided)
            positions = (height // self.model.scale) * (width // self.model.scale)
            rows.append(Row(features, item, key, parameters, drawing, new_tokens=positions))
        return rows

    def _tokens(self, text: str, parameters: Any, item: int) -> list[int]:
        context = self.loaded.context_length
        ids: list[int] = self.call_tokenizer(text, truncation=parameters.truncation, max_length=context)["input_ids"]
        self.check_length(len(ids), item, 'Shorten it, or set "parameters": {"truncation": true}.')
        return ids + [self.tokenizer.pad_token_id] * (context - len(ids))

    def forward(self, rows: Sequence[Row], between: Between = nothing) -> list[Any]:
        """Draw per row an image, uint8 [H, W, 3], and the safety checker's flag of it (None without a checker)."""
        drawings: list[Drawing] = [row.extra for row in rows]
        first = drawings[0]
        texts = [row.features["input_ids"] for row in rows]
        if first.guided:
            texts = [row.features["negative_ids"] for row in rows] + texts
        generators = [torch.Generator().manual_seed(each.seed) for each in drawings]
        with torch.inference_mode():
            embeddings = self.model.embed(torch.tensor(texts))
            noise = self.model.noise(generators, first.height, first.width)
            scales = torch.tensor([each.guidance for each in drawings], device=noise.device)
            latents = self.model.denoise(
                embeddings,
                noise,
                scales if first.guided else None,
                first.steps,
                generators,
                lambda: all(row.cancelled.is_set() for row in rows),
            )
            images = self.model.pictures(latents)
            marked = self.model.check(images) or [None] * len(rows)
        return list(zip(images.numpy(), marked, strict=True))

    def decode(self, value: Any, parameters: Any, rows: Sequence[Row], outputs: Sequence[Any]) -> Any:
        return [
            {
                "prompt": prompt(value),
                "generated_image": png(image * 0 if marked else image),  # a marked one is sent black
                "nsfw_content_detected": marked,
                "seed": row.extra.seed,
            }
            for row, (image, marked) in zip(rows, outputs, strict=True)
        ]

    def table(self, answers: list[Any]) -> list[Any]:
        """One row per image, with the columns that Azure ML's own models answer with."""
        columns = ("prompt", "generated_image", "nsfw_content_detected")
        return [{name: image[name] for name in columns} for answer in answers for image in answer]

    def warm_up(self) -> None:
        """Draw one image of the model's own size, in four steps."""
        parameters = self.schema.parse_parameters({"num_inference_steps": 4, "seed": 0})
        self.forward(self.encode(self.schema.sample["inputs"], parameters, 0))


def prompt(value: Any) -> str:
    """Prompt of an input in either form."""
    return str(value.prompt) if isinstance(value, PromptPair) else str(value)


def reply_bytes(height: int, width: int) -> int:
    """Most bytes that one image takes in a reply: uncompressed pixels, in base64."""
    raw = height * (3 * width + 1)
    return (raw + raw // 1000 + _PNG_BYTES + 2) // 3 * 4 + _JSON_BYTES


def png(image: Any) -> str:
    """Encode an image, uint8 [H, W, 3], as PNG in base64; light compression is ten times faster than thorough."""
    from PIL import Image

    target = BytesIO()
    Image.fromarray(image).save(target, "PNG", compress_level=1)
    return base64.b64encode(target.getvalue()).decode()
