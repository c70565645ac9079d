"""Stable Diffusion 1.4 at 512 x 512 in 50 steps on one GPU, fp16, random weights of the real shapes.

`python -m benchmarks.diffusion [--out FOLDER]` prints the table and writes diffusion.json. Each row is a whole answer:
a prompt in, a PNG in base64 out. Eager and compiled are diffusers' own pipeline; ours is the service with its pass.
"""

import base64
import io
import json
import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks.command_line import Parser
from benchmarks.common import call_ms, ceilings, provenance, table, write
from scoring.api.service import Service
from scoring.config import Deployment, Optimisation
from scoring.diffusion.pipeline import StableDiffusion
from scoring.diffusion.verify import draw, reference, verify_images
from scoring.model.info import facts_of
from scoring.model.loaded import Loaded
from scoring.passes.base import Hardware
from scoring.passes.diffusion import Diffusion
from scoring.passes.runner import choose
from scoring.tasks.text_to_image import TextToImage
from tests.tiny_pipelines import clip_tokenizer

STEPS, SIZE = 50, 512
PROMPT = "A photo of an astronaut riding a horse on Mars."
BAR_MS, OVER_STOCK = 600.0, 1.2
COLUMNS = ("work", "eager", "compile", "ours", "ours/compile", "floor", "step", "decode")


def pipeline() -> Any:
    """Stable Diffusion 1.4's shapes with random weights, as diffusers' own pipeline on the GPU."""
    import diffusers
    import transformers

    torch.manual_seed(0)
    with torch.device("cuda"):
        text = transformers.CLIPTextModel(
            transformers.CLIPTextConfig(
                vocab_size=49408, hidden_size=768, intermediate_size=3072, num_hidden_layers=12, num_attention_heads=12
            )
        )
        unet = diffusers.UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8)
        vae = diffusers.AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=SIZE,
        )
    scheduler = diffusers.PNDMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", skip_prk_steps=True, steps_offset=1
    )
    made = diffusers.StableDiffusionPipeline(
        vae=vae.half().eval(),
        text_encoder=text.half().eval(),
        tokenizer=clip_tokenizer(),
        unet=unet.half().eval(),
        scheduler=scheduler,
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def stock(made: Any) -> Callable[[], str]:
    """A whole answer by diffusers' own pipeline."""

    def answer() -> str:
        image = made(PROMPT, num_inference_steps=STEPS, generator=torch.Generator().manual_seed(7)).images[0]
        target = io.BytesIO()
        image.save(target, "PNG")
        return base64.b64encode(target.getvalue()).decode()

    return answer


def served(model: StableDiffusion, tokenizer: Any, passes: list[Any]) -> Service:
    """The service of this process, with the pass chosen, verified and warmed on its inference thread."""
    deployment = Deployment("bench", "text-to-image", dtype="float16")
    loaded = Loaded(model, tokenizer, model.device, 77, {})
    service = Service(deployment, loaded, TextToImage(loaded, "text-to-image"), {})
    service.start(choose(passes, facts_of(model, True), Hardware.here(), Optimisation()))
    return service


def floor_ms(made: Any, card: dict[str, float]) -> float:
    """The arithmetic of all UNet calls and of the decoder, at the card's rate; counted, not estimated."""
    from torch.utils.flop_counter import FlopCounterMode

    latents = torch.zeros(2, 4, SIZE // 8, SIZE // 8, device="cuda", dtype=torch.float16)
    prompt = torch.zeros(2, 77, 768, device="cuda", dtype=torch.float16)
    work = []
    with torch.inference_mode():
        for call in (
            lambda: made.unet(latents, 1, encoder_hidden_states=prompt),
            lambda: made.vae.decode(latents[:1]),
        ):
            with FlopCounterMode(display=False) as counter:
                call()
            work.append(counter.get_total_flops())
    return 1e3 * ((STEPS + 1) * work[0] + work[1]) / card["peak"]


def run() -> dict[str, Any]:
    """Measure and return everything, with its provenance."""
    result = provenance()
    card = ceilings()
    torch.cuda.empty_cache()
    made = pipeline()
    row: dict[str, Any] = {"work": f"Stable Diffusion 1.4, {SIZE} x {SIZE}, {STEPS} steps", "errors": {}}
    row["floor"] = floor_ms(made, card)
    row["eager"] = call_ms(stock(made), 2, 1)
    model = StableDiffusion({name: getattr(made, name) for name in ("text_encoder", "unet", "vae", "scheduler")})
    told = reference(model)
    row["errors"]["eager"] = told().plain_error
    _compiled(made, row)
    applied = Diffusion().apply(model)  # on this thread, for the step and the error
    row["detail"] = applied.detail
    row["errors"]["ours"] = verify_images(model, told())
    row["step"] = _step_ms(model)
    latents = torch.zeros(1, 4, SIZE // 8, SIZE // 8, device="cuda")
    with torch.inference_mode():
        row["decode"] = call_ms(lambda: model.decode(latents), 20)
    applied.undo()
    service = served(model, made.tokenizer, [Diffusion()])
    body = json.dumps({"inputs": PROMPT, "parameters": {"num_inference_steps": STEPS, "seed": 7}})
    try:
        reply = service.answer(body)
        if reply.status != 200:
            raise RuntimeError(f"the service answered {reply.status}: {reply.body!r}")
        row["ours"] = call_ms(lambda: service.answer(body), 7, 2)
        row["passes"] = service.metadata()["passes"]
    finally:
        service.drain(5)
    row["ours/compile"] = row["compile"] / row["ours"]
    row["bars"] = {
        f"{BAR_MS:g} ms": row["ours"] <= BAR_MS,
        f"{OVER_STOCK} x compiled": row["ours/compile"] >= OVER_STOCK,
        "no further from fp32 than half as much again as eager": row["errors"]["ours"] <= Diffusion().bound(told),
    }
    return result | {"card": card, "rows": [row]}


def _compiled(made: Any, row: dict[str, Any]) -> None:
    """What a careful user gets of diffusers and torch alone: channels last, UNet and decoder compiled, in graphs."""
    plain_unet, plain_decode = made.unet.forward, made.vae.decode
    began = time.perf_counter()
    for part in (made.unet, made.vae):
        part.to(memory_format=torch.channels_last)
    made.unet.forward = torch.compile(plain_unet, mode="reduce-overhead", fullgraph=True)
    made.vae.decode = torch.compile(plain_decode, mode="reduce-overhead", fullgraph=True)
    answer = stock(made)
    answer()
    row["compile_seconds"] = time.perf_counter() - began
    row["compile"] = call_ms(answer, 5, 2)
    del made.unet.forward, made.vae.decode
    torch.compiler.reset()
    for part in (made.unet, made.vae):
        part.to(memory_format=torch.contiguous_format)


def _step_ms(model: StableDiffusion) -> float:
    """One step of the loop: the difference between 50 and 10 of them, over 40."""
    ids = torch.randint(0, 512, (2, 77), generator=torch.Generator().manual_seed(1))
    times = []
    for steps in (10, 50):
        probe = (ids, steps, (SIZE, SIZE), torch.tensor([7.5]))
        times.append(call_ms(lambda probe=probe: draw(model, probe), 5, 1))
    return (times[1] - times[0]) / 40


def main() -> None:
    """Measure, print, write."""
    out = Parser(__doc__, gpus=1).parse_args().out
    result = run()
    print(table(COLUMNS, result["rows"]))
    print(json.dumps(result["rows"], indent=1))
    print(write("diffusion", result, out))


if __name__ == "__main__":
    main()
