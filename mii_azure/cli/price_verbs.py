"""Verb prices, and the output of `plan --rank`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from mii_azure.cli.shared import AsJson, err, flag, out, print_json

if TYPE_CHECKING:
    from mii_azure.hardware.prices import Prices
    from mii_azure.planning.cheaper import Cheaper
    from mii_azure.planning.plan import Plan

PriceFile = Annotated[Path | None, flag("prices", "File of prices, JSON or CSV; `mii-azure prices` writes one.")]
Utilisation = Annotated[float, flag("utilisation", "Share of the time that instances are busy, for the cost.")]
USUAL = "eastus"  # asked where none is given, and told
BatchSize = Annotated[int, flag("batch", "Requests served at once, for --rank; 0 is the largest.")]


def known(file: Path | None) -> "Prices | None":
    """Prices of a file, if one is given."""
    from mii_azure.hardware.prices import read_prices

    return read_prices(file) if file else None


def show_ranked(*, prices: Path | None, as_json: bool, verbose: bool, **fields: Any) -> None:
    """Rank instance types and print them."""
    from mii_azure.cli.report_ranking import show_ranking
    from mii_azure.planning.ranking import rank

    ranking = rank(prices=known(prices), **fields)
    print_json(ranking) if as_json else show_ranking(out, ranking, verbose)


def cheaper(plan: "Plan", prices: "Prices | None", utilisation: float, batch: int, **fields: Any) -> "Cheaper | None":
    """CPU against GPU for a planned model; None without prices, or for a model that is not opened."""
    from mii_azure.model.draft import read_draft
    from mii_azure.planning.ranking import rank_profile
    from mii_azure.spec import make_spec

    if prices is None or not plan.profile.known:
        return None
    spec = make_spec(**{"name": "model", **fields})
    beside = sum(each.parameters for each in plan.adapters if not each.merged)
    draft = read_draft(spec.draft_model) if spec.draft_model else None
    return rank_profile(spec, plan.profile, beside, draft, prices=prices, utilisation=utilisation, batch=batch).cheaper


def show_compared(*, prices: Path | None, as_json: bool, **fields: Any) -> None:
    """Set the doors for a model side by side and print them."""
    from mii_azure.cli.report_doors import show_doors
    from mii_azure.planning.doors import compare

    comparison = compare(prices=known(prices), **fields)
    print_json(comparison) if as_json else show_doors(out, comparison)


def prices(
    region: Annotated[str, flag("region", "Azure region, e.g. westeurope.")] = USUAL,
    output: Annotated[Path | None, flag("output", "File to write; ./prices-REGION.json when absent.")] = None,
    currency: Annotated[str, flag("currency", "Currency as three letters.")] = "USD",
    price_api: Annotated[str, flag("price-api", "Address of the Retail Prices API; its own when empty.")] = "",
    as_json: AsJson = False,
) -> None:
    """Write a file of a region's prices for `plan --prices`, asked of the public Retail Prices API. No sign-in."""
    from datetime import UTC, datetime

    from mii_azure.bundle.render import as_json as text_of
    from mii_azure.errors import SpecError
    from mii_azure.hardware.prices import API, fetch_prices

    found = fetch_prices(region, datetime.now(UTC).date().isoformat(), currency, price_api or API)
    target = output or Path(f"prices-{found.region}.json")
    try:
        target.write_text(text_of(found.model_dump()), encoding="utf-8")
    except OSError as error:
        raise SpecError(f"{target} cannot be written: {error.strerror}.", "Choose another --output.") from None
    if as_json:
        print_json(found)
    told = f"wrote {target}: {len(found.prices)} instance types, {found.region}, {found.currency}, {found.date}"
    err.print(told, soft_wrap=True)
    if region == USUAL:
        err.print("another region has other prices: --region REGION", soft_wrap=True)


def register(app: typer.Typer) -> None:
    """Add the verb to the command line."""
    app.command()(prices)
