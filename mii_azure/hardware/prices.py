"""Prices of instance types: a dated file from the user, or fetched from the public Retail Prices API.

A price file is JSON: {"date": "2026-11-24", "region": "westeurope", "currency": "USD", "source": "...",
"prices": {"Standard_NC4as_T4_v3": 0.526}}, per instance and hour; or CSV with the columns
instance_type, price_per_hour, date, region, currency. Azure ML charges only for the virtual machine.
"""

import csv
import io
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from mii_azure.errors import AzureUnavailable, SpecError
from mii_azure.hardware.skus import all_skus

API = "https://prices.azure.com/api/retail/prices"
_FORM = "See `mii-azure prices --help`, or fetch one with `mii-azure prices --region REGION`."
_TIMEOUT_S = 30.0
_MAX_PAGES = 500


class Prices(BaseModel):
    """Price per hour of each instance type, with date, region and currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str = Field(pattern=r"^\d{4}-\d{2}-\d{2}$")
    region: str = Field(min_length=1)
    currency: str = Field(pattern=r"^[A-Z]{3}$")
    source: str = ""
    prices: dict[str, float]

    def of(self, instance_type: str) -> float | None:
        """Price per hour; None if the file has none."""
        known = {name.lower(): price for name, price in self.prices.items()}
        return known.get(instance_type.lower())


def read_prices(path: Path) -> Prices:
    """Read a price file; raises SpecError for one that lacks a required value."""
    try:
        text = path.read_text(encoding="utf-8-sig")
        raw = _from_csv(text) if path.suffix.lower() == ".csv" else json.loads(text)
        found = Prices.model_validate(raw)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.", _FORM) from None
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in detail["loc"])
        raise SpecError(f"{path} is not a price file: {place}: {detail['msg']}.", _FORM) from None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, csv.Error) as error:
        raise SpecError(f"{path} is not a price file: {error}.", _FORM) from None
    wrong = [name for name, price in found.prices.items() if not 0 < price < 1e6]
    if wrong:
        raise SpecError(f"{path}: {found.prices[wrong[0]]} is no price of an hour of {wrong[0]}.", _FORM)
    return found


def _from_csv(text: str) -> dict[str, Any]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise ValueError("it has no rows")
    short = next((number for number, row in enumerate(rows, 2) if None in row.values()), None)
    if short is not None:
        raise ValueError(f"row {short} has fewer values than the first names columns")
    shared: dict[str, Any] = {}
    for key in ("date", "region", "currency"):
        values = {row[key].strip() for row in rows}
        if len(values) > 1:
            raise ValueError(f"{key} differs between rows")
        shared[key] = values.pop()
    return shared | {"prices": {row["instance_type"].strip(): float(row["price_per_hour"]) for row in rows}}


def fetch_prices(region: str, date: str, currency: str = "USD", url: str = API) -> Prices:
    """Ask the Retail Prices API, page by page, for pay-as-you-go Linux prices of the instance types known here.

    `date` is the day to record. Raises AzureUnavailable without network or for an unexpected answer, SpecError for a
    region without prices.
    """
    known = {name.lower(): name for name in all_skus()}
    region = "".join(region.split()).lower()  # the portal writes West Europe
    wanted = f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}'"
    prices: dict[str, float] = {}
    for page in _pages(url, {"currencyCode": f"'{currency}'", "$filter": wanted}):
        for item in page:
            name = known.get(str(item.get("armSkuName", "")).lower())
            if name and _is_hour_of_linux(item):
                prices[name] = float(item["retailPrice"])
    if not prices:
        raise SpecError(
            f"The Retail Prices API knows no inference instance type in {region!r}.",
            "Give the region as Azure writes it, e.g. westeurope.",
        )
    return Prices(date=date, region=region, currency=currency, source=url, prices=dict(sorted(prices.items())))


def _is_hour_of_linux(item: dict[str, Any]) -> bool:
    text = f"{item.get('productName')} {item.get('skuName')} {item.get('meterName')}".lower()
    other = any(word in text for word in ("windows", "spot", "low priority"))
    return item.get("unitOfMeasure") == "1 Hour" and item.get("type") == "Consumption" and not other


def _pages(url: str, query: dict[str, str]) -> Any:
    """Yield the items of each page; a link to the next page is followed only on the same host."""
    import httpx

    following: str | None = str(httpx.URL(url, params=query))
    with httpx.Client(timeout=_TIMEOUT_S) as client:
        for _ in range(_MAX_PAGES):
            if not following:
                return
            try:
                answer = client.get(following)
                answer.raise_for_status()
                page = answer.json()
                items, following = list(page["Items"]), page.get("NextPageLink")
            except (httpx.HTTPError, ValueError, KeyError, TypeError) as error:
                raise AzureUnavailable(
                    f"The Retail Prices API at {urlsplit(url).netloc} gave no prices: {error or type(error).__name__}.",
                    "Try again with network access, or write a price file yourself.",
                ) from None
            yield items
            if following and urlsplit(following).hostname != urlsplit(url).hostname:
                raise AzureUnavailable("The Retail Prices API named another host for its next page.", "Try again.")
