"""Table of the doors for one model."""

from rich.console import Console

from mii_azure.cli.report import print_table, table
from mii_azure.planning.doors import Door, DoorComparison


def show_doors(console: Console, comparison: DoorComparison) -> None:
    """Print a column a question and a row a door, then what the rows hold for."""
    columns = ["door", "request", "payload", "streams", "/v1/*", "identity", "scale"]
    columns += [f"{comparison.currency}/h"] if comparison.currency else []
    made = table(*columns, "proof")
    for each in comparison.doors:
        price = [_price(each)] if comparison.currency else []
        wait = f"{each.request_timeout_s:g} s ({each.timeout})"
        made.add_row(
            each.door, wait, each.payload, each.streams, each.openai, each.identity, each.scale, *price, each.proof
        )
    print_table(console, made)
    for each in comparison.doors:
        if each.remark:
            console.print(f"{each.door}: {each.remark}", soft_wrap=True)
    told = f"{comparison.model} for {comparison.task} on {comparison.instance_count} x {comparison.instance_type}."
    if comparison.currency:
        told += f" Prices of {comparison.prices_of} in {comparison.region}: the machines alone."
    console.print(f"\n{told} Facts of {comparison.recorded}; --json names the source of each.", soft_wrap=True)


def _price(door: Door) -> str:
    return "" if door.price_per_hour is None else f"{door.price_per_hour:,.3f}"
