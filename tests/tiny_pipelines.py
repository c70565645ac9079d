"""A tiny random Stable Diffusion pipeline, written as a complete diffusers folder.

Its VAE shrinks by 8 as the real one does and its native size is 64 x 64 pixels; the tokenizer is CLIP's own class over
single bytes, with a context of 77 tokens.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPConfig,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTokenizer,
    PreTrainedTokenizerBase,
)

SEED = 20221102
CONTEXT = 77
SIZE = 64


def clip_tokenizer() -> PreTrainedTokenizerBase:
    """CLIP's class with no merges: every byte is a token, inside a word or at its end."""
    from tokenizers.pre_tokenizers import ByteLevel

    alphabet = sorted(ByteLevel.alphabet())
    entries = [*alphabet, *(f"{each}</w>" for each in alphabet), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = {entry: number for number, entry in enumerate(entries)}
    return CLIPTokenizer(vocab=vocabulary, merges=[], model_max_length=CONTEXT)


def tiny_pipeline(folder: Path | str, scheduler: str = "PNDMScheduler", safety: bool = False, **changes: Any) -> Path:
    """Write the pipeline with the scheduler of that name (`changes` are its settings), and with a safety checker."""
    import diffusers

    tokenizer = clip_tokenizer()
    settings = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
    if scheduler == "PNDMScheduler":
        settings["skip_prk_steps"] = True
    if scheduler == "DDIMScheduler":
        settings["clip_sample"] = False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        text = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=32,
                intermediate_size=37,
                num_hidden_layers=2,
                num_attention_heads=4,
                max_position_embeddings=CONTEXT,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                initializer_factor=8.0,
            )
        )
        unet = diffusers.UNet2DConditionModel(
            sample_size=SIZE // 8,
            block_out_channels=(32, 64),
            layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
            cross_attention_dim=32,
            attention_head_dim=4,
            norm_num_groups=8,
        )
        vae = diffusers.AutoencoderKL(
            block_out_channels=(8, 8, 16, 16),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            latent_channels=4,
            norm_num_groups=4,
            sample_size=SIZE,
        )
        checker = _safety_checker() if safety else None
    pipeline = diffusers.StableDiffusionPipeline(
        vae=vae.eval(),
        text_encoder=text.eval(),
        tokenizer=tokenizer,
        unet=unet.eval(),
        scheduler=getattr(diffusers, scheduler)(**(settings | changes)),
        safety_checker=checker,
        feature_extractor=_image_processor() if safety else None,
        requires_safety_checker=safety,
    )
    pipeline.save_pretrained(folder)
    return Path(folder)


def _image_processor() -> Any:
    from transformers import CLIPImageProcessorPil

    return CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})


def _safety_checker() -> Any:
    """A checker whose concepts are random: it marks some images and passes others."""
    from diffusers.pipelines.stable_diffusion import StableDiffusionSafetyChecker

    vision = {
        "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "image_size": 32, "patch_size": 8,
    }  # fmt: skip
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    checker = StableDiffusionSafetyChecker(CLIPConfig(vision_config=vision, text_config=text, projection_dim=16))
    for name in ("concept_embeds", "special_care_embeds"):
        getattr(checker, name).data.normal_()
    for name in ("concept_embeds_weights", "special_care_embeds_weights"):
        getattr(checker, name).data.fill_(0.4)
    return checker.eval()
