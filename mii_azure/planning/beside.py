"""Companions of a model that a spec names: adapters and a draft model, compared with it as far as it is on disk."""

from collections.abc import Iterable

from mii_azure.errors import NotAvailable
from mii_azure.model.adapters import Adapter, merged_adapter, require_base, served_adapter, targets
from mii_azure.model.draft import draft_folder, read_draft, require_same_vocabulary
from mii_azure.model.folder import stored_tensors
from mii_azure.model.profile import Profile
from mii_azure.model.resolved import Model
from mii_azure.spec import Spec


def adapters_of(spec: Spec, found: Model, facts: Profile) -> list[Adapter]:
    """Adapters of a spec, compared with their base as far as it is on disk; raises AdapterUnusable."""
    if not (spec.adapter or spec.adapters):
        return []
    adapters = [merged_adapter(spec.adapter)] if spec.adapter else [served_adapter(pair) for pair in spec.adapters]
    require_base(facts, found.transformer)
    if found.folder:
        stored = stored_tensors(found.folder)
        for each in adapters:
            targets(each, stored, facts.family)
    return adapters


def draft_of(spec: Spec, found: Model) -> Profile | None:
    """Draft model of a spec, compared with a model that is on disk; raises DraftUnusable."""
    if not spec.draft_model:
        return None
    if found.source == "reference":
        raise NotAvailable(
            f"{spec.model} is not opened, so that no draft model can be put beside it.",
            "Give the model's folder or hub id, or leave out draft_model.",
        )
    if found.folder:
        require_same_vocabulary(found.folder, draft_folder(spec.draft_model))
    return read_draft(spec.draft_model)


def parameters_beside(spec: Spec, adapters: Iterable[Adapter]) -> int:
    """Parameters of adapters that stay beside the model; a merged one adds none."""
    return sum(each.parameters for each in adapters) if spec.adapters else 0
