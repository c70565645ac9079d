"""Price files, and the Retail Prices API over a loopback fake of it: pages, filters, refusals."""

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest
from typer.testing import CliRunner

from mii_azure.cli.app import app
from mii_azure.errors import AzureUnavailable, SpecError
from mii_azure.hardware.prices import fetch_prices, read_prices


def item(name: str, price: float, **changes: object) -> dict[str, object]:
    return {
        "armSkuName": name,
        "retailPrice": price,
        "unitOfMeasure": "1 Hour",
        "type": "Consumption",
        "productName": "Virtual Machines NCasT4_v3 Series",
        "skuName": name,
        "meterName": name,
    } | changes


ITEMS = [
    item("Standard_NC4as_T4_v3", 0.99, productName="Virtual Machines NCasT4_v3 Series Windows"),
    item("Standard_NC4as_T4_v3", 0.05, skuName="NC4as T4 v3 Spot"),
    item("Standard_NC4as_T4_v3", 0.1, meterName="NC4as T4 v3 Low Priority"),
    item("Standard_NC4as_T4_v3", 0.526),
    item("Standard_NC4as_T4_v3", 3000, type="Reservation"),
    item("Standard_B1s", 0.01),
    item("Standard_NC8as_T4_v3", 0.0),
    item("standard_nc24ads_a100_v4", 3.673),
]


class Api(ThreadingHTTPServer):
    """Two items a page, as the API has a thousand; `next_host` and `status` make it misbehave."""

    next_host = ""
    status = 200
    asked: list[dict[str, list[str]]]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/api/retail/prices"


class Handler(BaseHTTPRequestHandler):
    server: Api

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        self.server.asked.append(query)
        skip = int(query.get("$skip", ["0"])[0])
        known = any(region in query.get("$filter", ["eastus"])[0] for region in ("westeurope", "eastus"))
        items = ITEMS if known else []
        host = self.server.next_host or self.server.url
        following = f"{host}?$skip={skip + 2}" if skip + 2 < len(items) else None
        body = json.dumps({"Items": items[skip : skip + 2], "NextPageLink": following}).encode()
        self.send_response(self.server.status)
        self.end_headers()
        self.wfile.write(body if self.server.status != 299 else b"<html>")

    def log_message(self, *arguments: object) -> None:
        pass


@pytest.fixture
def api() -> Iterator[Api]:
    server = Api(("127.0.0.1", 0), Handler)
    server.asked = []
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def test_every_page_is_read_and_only_linux_by_the_hour_is_kept(api):
    found = fetch_prices("westeurope", "2026-11-24", "EUR", api.url)
    assert found.prices == {"Standard_NC24ads_A100_v4": 3.673, "Standard_NC4as_T4_v3": 0.526}
    assert (found.region, found.currency, found.date) == ("westeurope", "EUR", "2026-11-24")
    assert len(api.asked) == 4
    assert "armRegionName eq 'westeurope'" in api.asked[0]["$filter"][0]
    assert api.asked[0]["currencyCode"] == ["'EUR'"]


def test_a_region_is_understood_as_the_portal_writes_it(api):
    assert fetch_prices(" West Europe", "2026-11-24", "EUR", api.url).region == "westeurope"
    assert "armRegionName eq 'westeurope'" in api.asked[0]["$filter"][0]


def test_a_region_without_prices_is_refused(api):
    with pytest.raises(SpecError, match="nowhere"):
        fetch_prices("nowhere", "2026-11-24", url=api.url)


def test_a_next_page_elsewhere_is_not_followed(api):
    api.next_host = "http://other.invalid/prices"
    with pytest.raises(AzureUnavailable, match="another host"):
        fetch_prices("westeurope", "2026-11-24", url=api.url)


@pytest.mark.parametrize("status", [500, 429, 299])
def test_an_answer_of_another_form_is_an_error_with_a_remedy(api, status):
    api.status = status
    with pytest.raises(AzureUnavailable) as caught:
        fetch_prices("westeurope", "2026-11-24", url=api.url)
    assert caught.value.hint


def test_without_network_the_error_says_what_to_do():
    with pytest.raises(AzureUnavailable) as caught:
        fetch_prices("westeurope", "2026-11-24", url="http://127.0.0.1:9/prices")
    assert "price file" in caught.value.hint


def test_what_the_command_writes_is_what_rank_reads(api, tmp_path):
    path = tmp_path / "prices.json"
    command = ["prices", "--region", "westeurope", "--output", str(path), "--price-api", api.url]
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert read_prices(path).of("STANDARD_NC4AS_T4_V3") == 0.526


def test_without_a_region_the_usual_one_is_asked_and_told(api, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("MII_AZURE_REGION", raising=False)
    done = CliRunner().invoke(app, ["prices", "--price-api", api.url])
    assert done.exit_code == 0, done.output
    assert "--region" in done.stderr
    assert read_prices(tmp_path / "prices-eastus.json").region == "eastus"


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        "{}",
        '{"date": "yesterday", "region": "r", "currency": "USD", "prices": {}}',
        '{"date": "2026-11-24", "region": "r", "currency": "USD", "prices": {"a": -1}}',
        '{"date": "2026-11-24", "region": "r", "currency": "USD", "prices": {"a": NaN}}',
    ],
)
def test_a_file_that_says_too_little_is_refused(content, tmp_path):
    path = tmp_path / "prices.json"
    path.write_text(content)
    with pytest.raises(SpecError):
        read_prices(path)


def test_a_table_of_two_regions_or_none_is_refused(tmp_path):
    path = tmp_path / "prices.csv"
    head = "instance_type,price_per_hour,date,region,currency\n"
    for rows in ("", "A,1,2026-11-24,r,USD\nB,1,2026-11-24,s,USD\n", "A,x,2026-11-24,r,USD\n"):
        path.write_text(head + rows)
        with pytest.raises(SpecError):
            read_prices(path)
    with pytest.raises(SpecError):
        read_prices(tmp_path / "none.json")


def test_a_row_that_ends_early_is_named(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("instance_type,price_per_hour,date,region,currency\nA,1,2026-11-24,r\n")
    with pytest.raises(SpecError, match="row 2 has fewer values"):
        read_prices(path)


_ROWS = "instance_type,price_per_hour,date,region,currency\nA,1,{day},r,{money}\n{name},2,{day},r,{money}\n"
_FILE = '{{"date": "{day}", "region": "r", "currency": "{money}", "prices": {{"A": 1, "{name}": 2}}}}'


@pytest.mark.parametrize(("form", "suffix"), [(_ROWS, "csv"), (_FILE, "json")])
@pytest.mark.parametrize(
    ("odd", "said"),
    [
        ({"day": "2026-13-01"}, "'2026-13-01' is no day written as YYYY-MM-DD"),
        ({"day": "2026-02-30"}, "'2026-02-30' is no day"),
        ({"day": "20261124"}, "'20261124' is no day"),
        ({"day": "24.11.2026"}, "'24.11.2026' is no day"),
        ({"money": "usd"}, "'usd' is no currency"),
        ({"name": "A"}, "twice"),
        ({"name": "a"}, "it names a twice"),
    ],
)
def test_an_odd_date_or_currency_and_a_type_named_twice_are_told_in_one_sentence(form, suffix, odd, said, tmp_path):
    path = tmp_path / f"prices.{suffix}"
    path.write_text(form.format(**{"day": "2026-11-24", "money": "USD", "name": "B"} | odd))
    with pytest.raises(SpecError) as caught:
        read_prices(path)
    assert said in caught.value.message
    assert caught.value.message.count("\n") == 0
    assert "mii-azure prices" in caught.value.hint


def test_a_table_without_a_column_is_told_which(tmp_path):
    path = tmp_path / "prices.csv"
    path.write_text("instance_type,price_per_hour,date,region\nA,1,2026-11-24,r\n")
    with pytest.raises(SpecError, match="no column currency"):
        read_prices(path)


def test_a_currency_is_asked_for_in_capitals_and_one_that_is_none_is_refused(api):
    assert fetch_prices("westeurope", "2026-11-24", "eur", api.url).currency == "EUR"
    with pytest.raises(SpecError, match="no currency"):
        fetch_prices("westeurope", "2026-11-24", "euros", api.url)
