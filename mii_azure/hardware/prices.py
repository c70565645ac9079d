"""Prices of instance types: a dated file from the user, or fetched from the public Retail Prices API.

A price file is JSON: {"date": "2026-11-24", "region": "westeurope", "currency": "USD", "source": "...",
"prices": {"Standard_NC4as_T4_v3": 0.526}}, per instance and hour; or CSV with the columns
instance_type, price_per_hour, date, region, currency. Azure ML charges only for the virtual machine.
"""

import csv
import datetime
import io
import re
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from mii_azure.errors import AzureUnavailable, SpecError
from mii_azure.hardware.skus import all_skus
from scoring.strict_json.files import parse

API = "https://prices.azure.com/api/retail/prices"
_FORM = "See `mii-azure prices --help`, or fetch one with `mii-azure prices`."
_TIMEOUT_S = 30.0
_MAX_PAGES = 500
_CURRENCY = re.compile("[A-Z]{3}")
_MOST = 1e6  # a price above it is no price of an hour
_COLUMNS = ("instance_type", "price_per_hour", "date", "region", "currency")


class Prices(BaseModel):
    """Price per hour of each instance type, with date, region and currency."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    date: str
    region: str = Field(min_length=1)
    currency: str
    source: str = ""
    prices: dict[str, float]

    @field_validator("date")
    @classmethod
    def _is_a_day(cls, value: str) -> str:
        try:
            told = datetime.date.fromisoformat(value).isoformat()
        except ValueError:
            told = ""
        if told != value:
            raise ValueError(f"{value!r} is no day written as YYYY-MM-DD")
        return value

    @field_validator("currency")
    @classmethod
    def _is_a_currency(cls, value: str) -> str:
        if not _CURRENCY.fullmatch(value):
            raise ValueError(f"{value!r} is no currency as three capital letters, such as USD")
        return value

    @field_validator("prices")
    @classmethod
    def _are_prices(cls, value: dict[str, float]) -> dict[str, float]:
        _once(value)
        wrong = next((name for name, price in value.items() if not 0 < price < _MOST), None)
        if wrong is not None:
            raise ValueError(f"{value[wrong]} is no price of an hour of {wrong}")
        return value

    def of(self, instance_type: str) -> float | None:
        """Price per hour; None if the file has none."""
        known = {name.lower(): price for name, price in self.prices.items()}
        return known.get(instance_type.lower())


def read_prices(path: Path) -> Prices:
    """Read a price file; raises SpecError for one that lacks a required value."""
    try:
        text = path.read_text(encoding="utf-8-sig")  # spreadsheets write the mark that JSON's parser refuses
        raw = _from_csv(text) if path.suffix.lower() == ".csv" else parse(text.encode())
        return Prices.model_validate(raw)
    except OSError as error:
        raise SpecError(f"{path} cannot be read: {error.strerror}.", _FORM) from None
    except ValidationError as error:
        detail = error.errors(include_url=False, include_context=False, include_input=False)[0]
        place = ".".join(str(part) for part in detail["loc"])
        why = detail["msg"].removeprefix("Value error, ")
        raise SpecError(f"{path} is not a price file: {place}: {why}.", _FORM) from None
    except (ValueError, TypeError, AttributeError, csv.Error) as error:
        raise SpecError(f"{path} is not a price file: {error}.", _FORM) from None


def _once(names: Iterable[str]) -> None:
    """Raise ValueError for an instance type that is named twice, in whatever case."""
    seen = Counter(name.lower() for name in names)
    twice = next((name for name, count in seen.items() if count > 1), None)
    if twice:
        raise ValueError(f"it names {twice} twice")


def _from_csv(text: str) -> dict[str, Any]:
    rows = list(csv.DictReader(io.StringIO(text)))
    if not rows:
        raise ValueError("it has no rows")
    short = next((number for number, row in enumerate(rows, 2) if None in row.values()), None)
    if short is not None:
        raise ValueError(f"row {short} has fewer values than the first names columns")
    lacking = [name for name in _COLUMNS if name not in rows[0]]
    if lacking:
        raise ValueError(f"it has no column {lacking[0]}")
    shared: dict[str, Any] = {}
    for key in ("date", "region", "currency"):
        values = {row[key].strip() for row in rows}
        if len(values) > 1:
            raise ValueError(f"{key} differs between rows")
        shared[key] = values.pop()
    _once(row["instance_type"].strip() for row in rows)
    return shared | {"prices": {row["instance_type"].strip(): float(row["price_per_hour"]) for row in rows}}


def fetch_prices(region: str, date: str, currency: str = "USD", url: str = API) -> Prices:
    """Ask the Retail Prices API, page by page, for pay-as-you-go Linux prices of the instance types known here.

    `date` is the day to record. Raises AzureUnavailable without network or for an unexpected answer, SpecError for a
    region without prices, and for a currency that is none.
    """
    currency = currency.strip().upper()
    if not _CURRENCY.fullmatch(currency):
        raise SpecError(f"{currency!r} is no currency as three letters.", "Give one such as USD or EUR.")
    known = {name.lower(): name for name in all_skus()}
    region = "".join(region.split()).lower()  # the portal writes West Europe
    wanted = f"serviceName eq 'Virtual Machines' and priceType eq 'Consumption' and armRegionName eq '{region}'"
    prices: dict[str, float] = {}
    for page in _pages(url, {"currencyCode": f"'{currency}'", "$filter": wanted}):
        for item in page:
            name = known.get(str(item.get("armSkuName", "")).lower())
            price = item.get("retailPrice")
            if name and _is_hour_of_linux(item) and isinstance(price, int | float) and 0 < price < _MOST:
                prices[name] = float(price)
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
