"""`python -m tools.screenshots`: the pictures in README, of real small models, written anew to docs/images/.

Needs Chromium. Models come out of packages, as for `make demo`.
"""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from PIL import Image

import mii_azure
from local_runner.process.launch import Runner
from mii_azure.model.packaged import packaged_model
from tests.browser import Browser

FOLDER = Path(__file__).parent.parent / "docs" / "images"
_COLOURS = 255  # of a picture: text and flat areas need no more
_SKU = "Standard_F8s_v2"
_DONE = "!document.querySelector('#send').disabled && document.querySelector('#times').childElementCount"
_TEXTS = (
    "A man is eating food.\nA man is eating a piece of bread.\nThe girl is carrying a baby.\n"
    "A woman is playing the violin.\nSomeone eats a sandwich."
)


def main() -> None:
    """Write all pictures."""
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch, Browser(1240, 800) as browser:
        chat = mii_azure.generate(
            "conversational", str(packaged_model("smollm2")), "smollm2", output=f"{scratch}/chat", instance_type=_SKU
        )
        vectors = mii_azure.generate(
            "sentence-embeddings",
            str(packaged_model("minilm")),
            "minilm",
            output=f"{scratch}/vectors",
            instance_type=_SKU,
        )
        _page(browser, chat, "What is the capital of France, and what is it known for?", "page-chat")
        _page(browser, vectors, _TEXTS, "page-embeddings")
        report = Path(scratch) / "plan.html"
        (Path(scratch) / "smollm2").symlink_to(packaged_model("smollm2"))
        words = ("plan", "--task", "conversational", "--model", "./smollm2", "--report", str(report))
        command = [sys.executable, "-m", "mii_azure.cli.app", *words, "--instance-type", "Standard_NC24ads_A100_v4"]
        subprocess.run(command, check=True, cwd=scratch, env={**os.environ, "PYTHONPATH": str(FOLDER.parent.parent)})
        browser.resize(1000, 1120)
        browser.open(report.as_uri())
        browser.wait("document.querySelector('svg')")
        _keep(browser, "report-plan", whole=False)


def _page(browser: Browser, bundle: Path, text: str, name: str) -> None:
    with Runner(bundle) as runner:
        browser.resize(1240, 800)
        browser.open(f"http://127.0.0.1:{runner.http_port}/")
        browser.wait("document.querySelector('#send')")
        browser.run("document.querySelector('#f-text').select(); document.querySelector('#f-text').focus()")
        browser.type(text)
        browser.run("document.querySelector('[value=openai]').click(); document.querySelector('#send').click()")
        browser.wait(_DONE)
        browser.run("document.activeElement.blur()")
        _keep(browser, name)


def _keep(browser: Browser, name: str, whole: bool = True) -> None:
    with tempfile.NamedTemporaryFile(suffix=".png") as shot:
        browser.shot(Path(shot.name), whole)
        picture = Image.open(io.BytesIO(Path(shot.name).read_bytes())).convert("RGB").quantize(_COLOURS)
    picture.save(FOLDER / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
