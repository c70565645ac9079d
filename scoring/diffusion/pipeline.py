"""Loads a diffusers folder (model_index.json, a sub-folder per part) and holds its parts as one model."""

import importlib
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from scoring.config import DIFFUSERS_INDEX, Deployment
from scoring.diffusion.linear_scheduler import Denoiser
from scoring.errors import HeadMissing, InternalError, LoadError, WeightsUnreadable
from scoring.model.loaded import Loaded
from scoring.model_files.shards import refuse_outside
from scoring.strict_json.files import read_object

logger = logging.getLogger("mii_azure.loader")

PIPELINES = ("StableDiffusionPipeline",)
#: Parts with weights, and the libraries of their classes; any other library is refused.
_PARTS = {
    "text_encoder": ("transformers", "CLIPTextModel"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "vae": ("diffusers", "AutoencoderKL"),
}
_CHECKER = "diffusers.pipelines.stable_diffusion"


class _Config:
    """Names and sizes that are read from any model's config, here the UNet's."""

    model_type = "stable-diffusion"
    is_encoder_decoder = False
    _attn_implementation = "sdpa"

    def __init__(self, unet: Any) -> None:
        heads = unet.attention_head_dim  # diffusers' name for the number of heads, an early mistake of its own
        self.num_attention_heads = heads if isinstance(heads, int) else heads[0]
        self.hidden_size = unet.block_out_channels[0]
        self.num_hidden_layers = len(unet.down_block_types) + len(unet.up_block_types) + 1

    def get_text_config(self) -> "_Config":
        """Return the config itself, as a transformers config without parts does."""
        return self


class StableDiffusion:
    """A text encoder, a UNet, a VAE, a scheduler and, where the folder ships one, a safety checker."""

    kind = "diffusion"

    def __init__(self, parts: dict[str, Any], checker: Any = None, processor: Any = None) -> None:
        self.text_encoder = parts["text_encoder"]
        self.unet = parts["unet"]
        self.vae = parts["vae"]
        self.denoiser = Denoiser(parts["scheduler"])
        self.checker = checker
        self.processor = processor
        self.config = _Config(self.unet.config)
        # Passes put a faster form of the whole loop here, with the signature of `denoise`.
        self.denoise: Callable[..., Tensor] = self.denoise_plainly

    def parameters(self) -> Iterator[Tensor]:
        """Parameters of the parts that make an image."""
        return chain.from_iterable(part.parameters() for part in (self.text_encoder, self.unet, self.vae))

    @property
    def device(self) -> torch.device:
        return torch.device(self.unet.device)

    @property
    def dtype(self) -> torch.dtype:
        return self.unet.dtype  # type: ignore[no-any-return]

    @property
    def scale(self) -> int:
        """Pixels per latent position, in height and in width."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def native_size(self) -> tuple[int, int]:
        """Height and width, pixels, that the model was trained for."""
        size = self.unet.config.sample_size
        height, width = (size, size) if isinstance(size, int) else size
        return height * self.scale, width * self.scale

    @property
    def most_steps(self) -> int:
        return int(self.denoiser.scheduler.config.num_train_timesteps)

    def widened(self) -> "StableDiffusion":
        """A copy in float32."""
        parts = {name: deepcopy(getattr(self, name)).float() for name in _PARTS}
        return StableDiffusion({**parts, "scheduler": self.denoiser.scheduler})

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids [B, S]: [B, S, D]."""
        return self.text_encoder(ids.to(self.device))[0]  # type: ignore[no-any-return]

    def noise(self, generators: Sequence[torch.Generator], height: int, width: int) -> Tensor:
        """Initial noise, float32 [B, C, h, w]; drawn on the CPU, so that a seed gives the same on every device."""
        shape = (self.unet.config.in_channels, height // self.scale, width // self.scale)
        return torch.stack([torch.randn(shape, generator=each) for each in generators]).to(self.device)

    def denoise_plainly(
        self,
        embeddings: Tensor,
        noise: Tensor,
        guidance: Tensor | None,
        steps: int,
        generators: Sequence[torch.Generator],
        stopped: Callable[[], bool] = lambda: False,
    ) -> Tensor:
        """Latents, float32 [B, C, h, w].

        With guidance [B], embeddings are [2 B, S, D], the negative prompts' first, and both halves run as one batch.
        """

        def predict(latents: Tensor, timestep: Tensor) -> Tensor:
            given = latents if guidance is None else torch.cat([latents, latents])
            output = self.unet(given.to(self.dtype), timestep, encoder_hidden_states=embeddings, return_dict=False)
            return guided(output[0].float(), guidance)

        return self.denoiser(predict, noise, steps, generators, stopped)

    def pictures(self, latents: Tensor) -> Tensor:
        """Decode latents [B, C, h, w] to images, uint8 [B, H, W, 3] on the CPU; one at a time, which bounds memory."""
        images = torch.cat([self.decode(each[None]) for each in latents])
        if not bool(torch.isfinite(images).all()):
            raise InternalError(
                "The model computed a picture that is not finite.",
                "Serve it in a wider precision: generate with --dtype float32 or bfloat16.",
            )
        return images.mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu()

    def decode(self, latents: Tensor) -> Tensor:
        """Decode latents to float32 images [B, 3, H, W] between 0 and 1."""
        scaled = (latents / self.vae.config.scaling_factor).to(self.vae.dtype)
        image: Tensor = self.vae.decode(scaled, return_dict=False)[0].float()
        return (image / 2 + 0.5).clamp(0, 1)

    def check(self, images: Tensor) -> list[bool] | None:
        """Flags of the uint8 images [B, H, W, 3] that the safety checker marks; None without a checker."""
        if self.checker is None:
            return None
        pixels = self.processor(list(images.numpy()), return_tensors="pt").pixel_values
        given = images.float().div(255).numpy()
        _, flags = self.checker(images=given, clip_input=pixels.to(self.device, self.checker.dtype))
        return [bool(each) for each in flags]


def guided(noise: Tensor, guidance: Tensor | None) -> Tensor:
    """Classifier-free guidance over [2 B, ...], the unconditional half first; `noise` itself without guidance."""
    if guidance is None:
        return noise
    away, towards = noise.chunk(2)
    return away + guidance.view(-1, 1, 1, 1) * (towards - away)


def load_diffusion(deployment: Deployment, folder: Path, device: torch.device) -> Loaded:
    """Load every part in the deployment's precision; raises HeadMissing for a folder that makes no images."""
    index = _index(folder)
    try:
        import diffusers
        import transformers
    except ImportError as error:
        raise LoadError("diffusers is not installed.", "Install it: pip install mii-azure[diffusion].") from error
    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    began = time.perf_counter()
    parts = {name: _part(name, *source, deployment, folder) for name, source in _PARTS.items()}
    parts["scheduler"] = _scheduler(index, folder)
    _refuse_other_unets(parts["unet"], parts["vae"])
    checker = processor = None
    if (folder / "safety_checker" / "config.json").is_file():
        checker = _part("safety_checker", _CHECKER, "StableDiffusionSafetyChecker", deployment, folder)
        processor = transformers.CLIPImageProcessorPil.from_pretrained(folder / "feature_extractor")
    model = StableDiffusion(parts, checker, processor)
    for module in (*(parts[name] for name in _PARTS), checker):
        if module is not None:
            module.to(device).eval()
    tokenizer = _tokenizer(transformers, folder)
    context = min(int(parts["text_encoder"].config.max_position_embeddings), int(tokenizer.model_max_length))
    seconds = time.perf_counter() - began
    logger.info("loaded %s as %s on %s in %.1f s", index["_class_name"], deployment.dtype, device, seconds)
    return Loaded(model, tokenizer, device, context, deployment.task_options)


def _index(folder: Path) -> dict[str, Any]:
    path = folder / DIFFUSERS_INDEX
    if not path.is_file():
        raise HeadMissing(
            f"The model folder has no {DIFFUSERS_INDEX}, so it is no diffusers pipeline and makes no images.",
            "Choose the task that the model was trained for.",
        )
    index = read_object(path)
    name = index.get("_class_name")
    if name not in PIPELINES:
        raise HeadMissing(
            f"{name} is not served; served are: {', '.join(PIPELINES)}.", "Use a Stable Diffusion 1 or 2."
        )
    return index


def _part(name: str, module: str, attribute: str, deployment: Deployment, folder: Path) -> Any:
    """Load one part; none of its weights may be missing from the files."""
    cls = getattr(importlib.import_module(module), attribute)
    dtype = "dtype" if module == "transformers" or name == "safety_checker" else "torch_dtype"
    refuse_outside(folder / name)
    try:
        model, report = cls.from_pretrained(
            folder / name,
            local_files_only=True,
            use_safetensors=None if deployment.allow_pickle else True,
            output_loading_info=True,
            **{dtype: getattr(torch, deployment.dtype)},
        )
    except Exception as error:
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise WeightsUnreadable(
            f"The pipeline's {name} cannot be loaded: {lines[0].rstrip('.')[:300]}.",
            "Copy the model again; the file may be cut short, or be there as a pickle only.",
        ) from error
    missing = sorted(key for key in report["missing_keys"] if "position_ids" not in key)
    if missing:
        raise HeadMissing(
            f"The pipeline's {name} has no weights for {', '.join(missing[:3])}, which would be random.",
            "Copy the model again, or use another checkpoint.",
        )
    return model


def _scheduler(index: dict[str, Any], folder: Path) -> Any:
    import diffusers

    name = str((index.get("scheduler") or ["", ""])[1])
    cls = getattr(diffusers, name, None) if name.endswith("Scheduler") else None
    if cls is None:
        raise LoadError(f"{DIFFUSERS_INDEX} names the scheduler {name!r}, which diffusers has not.")
    try:
        config = dict(cls.load_config(folder / "scheduler", local_files_only=True))
        # Mistakes in the first Stable Diffusion folders, which diffusers' own pipeline corrects in the same way.
        config |= {"steps_offset": 1} if "steps_offset" in config else {}
        config |= {"clip_sample": False} if "clip_sample" in config else {}
        return cls.from_config(config)
    except Exception as error:
        raise LoadError(f"The scheduler cannot be read: {error}.", "Copy scheduler/ again.") from error


def _refuse_other_unets(unet: Any, vae: Any) -> None:
    if unet.config.in_channels != vae.config.latent_channels:
        raise HeadMissing(
            f"The UNet takes {unet.config.in_channels} channels and the VAE has {vae.config.latent_channels}: "
            "it fills in or changes images, it does not make them from text.",
            "Use the text-to-image checkpoint of the same model.",
        )
    if unet.config.time_cond_proj_dim or unet.config.addition_embed_type or unet.config.class_embed_type:
        raise HeadMissing("The UNet takes conditions other than a text, which are not served.")


def _tokenizer(transformers: Any, folder: Path) -> Any:
    try:
        return transformers.CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)
    except Exception as error:
        raise LoadError(f"The pipeline's tokenizer cannot be loaded: {error}.", "Copy tokenizer/ again.") from error
