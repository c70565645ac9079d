"""Reports: one file that loads and runs nothing, whose every text is text; charts with numbers where they belong."""

import re
from difflib import SequenceMatcher
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pytest
from typer.testing import CliRunner

from local_runner.targets.targets import make_target
from mii_azure.cli.app import app
from mii_azure.errors import NotWritten
from mii_azure.hardware.prices import Prices
from mii_azure.planning.planner import plan
from mii_azure.reports import parity_report
from mii_azure.reports.bench_report import write_bench
from mii_azure.reports.charts import Axis, Series, lines, number, stack
from mii_azure.reports.html import el, write
from mii_azure.reports.parity_report import marked, write_parity
from mii_azure.reports.plan_report import ceilings, points
from mii_azure.verdict.outcome import Comparison, Verdict
from mii_azure.verdict.sides import Side, side_of
from mii_azure.verdict.sweep import Sweep, knee
from mii_azure.verdict.tokens.judge import TokenVerdict
from tests.conftest import Tiny
from tests.mii_azure.verdict.test_sweep import point

MARGINS = {"greedy": 0.0, "seeded": 2e-4, "default": 0.0}
ATTACK = '</pre><script>alert(1)</script><img src="x" onerror="alert(1)">\x1b[31m'


class Parsed(HTMLParser):
    """What a browser would make of a report."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text = ""
        self.feed(file.read_text("utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += attrs

    def handle_data(self, data: str) -> None:
        self.text += data

    @property
    def loads_nothing(self) -> bool:
        """True if nothing is loaded or run."""
        names = {name for name, _ in self.attributes}
        return not {"script", "img", "link", "iframe"} & set(self.tags) and not {"src", "href", "onerror"} & names


def verdict(*bodies: str) -> Verdict:
    entry = Comparison(request=ATTACK, target="http", status=200, grade="different", difference=ATTACK, bodies=bodies)
    return Verdict(
        agree=False,
        bundle=f"/{ATTACK}",
        bundle_hash="0",
        reference="grpc",
        targets=("grpc", "http"),
        tolerance=1e-4,
        requests=1,
        load=0,
        comparisons=(entry,),
        environment={"http": [ATTACK]},
    )


def test_texts_of_models_are_texts(tmp_path: Path) -> None:
    write_parity(verdict(ATTACK, ATTACK + " more"), tmp_path / "a" / "report.html")
    found = Parsed(tmp_path / "a" / "report.html")
    assert found.loads_nothing
    assert "<script>alert(1)</script>" in found.text
    assert "\x1b" not in found.text
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'; img-src data:") in found.attributes


def test_differences_are_marked_in_the_text(tmp_path: Path) -> None:
    left, right = marked("It is Paris, on the Seine.", "It is Lyon, on the Seine!")
    assert ElementTree.tostring(left, "unicode") == "<pre>It is <del>Paris</del>, on the Seine<del>.</del></pre>"
    assert ElementTree.tostring(right, "unicode") == "<pre>It is <ins>Lyon</ins>, on the Seine<ins>!</ins></pre>"


def test_numbers_are_marked_whole_and_long_lists_line_by_line(monkeypatch: pytest.MonkeyPatch) -> None:
    left, right = marked("score: -0.125e-3,\nsame", "score: -0.125e-4,\nsame")
    assert ElementTree.tostring(left, "unicode") == "<pre>score: <del>-0.125e-3</del>,\nsame</pre>"
    assert ElementTree.tostring(right, "unicode") == "<pre>score: <ins>-0.125e-4</ins>,\nsame</pre>"
    compared: list[int] = []
    matcher = parity_report.difflib.SequenceMatcher

    def counted(junk: None, ours: list[str], theirs: list[str], **options: bool) -> SequenceMatcher[str]:
        compared.append(len(ours) * len(theirs))
        return matcher(junk, ours, theirs, **options)

    monkeypatch.setattr(parity_report.difflib, "SequenceMatcher", counted)
    numbers = [f"0.{number:06}" for number in range(3000)]
    for joint in (",\n", ","):  # a line each, or all in one
        left, right = marked(joint.join(numbers), joint.join([*numbers[:-1], "7"]))
        assert "".join(left.itertext()) == joint.join(numbers)
        assert right.findall("ins")
    assert sum(compared) < 1000


def test_a_chart_puts_points_where_they_belong() -> None:
    chart = lines("t", Axis("x"), Axis("y"), [Series("a", [(0, 0), (5, 50), (10, 100)])])
    places = [(float(str(each.get("cx"))), float(str(each.get("cy")))) for each in chart.iter("circle")]
    (left, bottom), middle, (right, top) = places
    assert middle == pytest.approx(((left + right) / 2, (bottom + top) / 2))
    assert left < right and top < bottom
    logarithmic = lines("t", Axis("x", log=True), Axis("y", log=True), [Series("a", [(1, 1), (10, 10), (100, 100)])])
    across = [float(str(each.get("cx"))) for each in logarithmic.iter("circle")]
    assert across[1] == pytest.approx((across[0] + across[2]) / 2, abs=0.1)


@pytest.mark.parametrize("value", [0.0, 1e-9, 3.0, 1e15])
@pytest.mark.parametrize("log", [False, True])
def test_any_number_has_a_chart(value: float, log: bool) -> None:
    chart = lines("t", Axis("x", log), Axis("y"), [Series("a", [(value or 1.0, value)])])
    assert all("nan" not in str(each.attrib) for each in chart.iter())


def test_a_stack_says_what_is_free_and_what_is_too_much() -> None:
    assert "free: 6.00 GB" in "".join(stack("t", [("weights", 4.0)], 10.0, "GB").itertext())
    over = stack("t", [("weights", 14.0)], 10.0, "GB")
    assert "over by 4.00 GB" in "".join(over.itertext())
    fill, outline = (float(str(each.get("width"))) for each in over.iter("rect"))
    assert fill / outline == pytest.approx(1.4, rel=1e-3)


def test_numbers_are_for_people() -> None:
    assert [number(value) for value in (0, 0.25, 12, 1500, 25_000, 3.2e11)] == [
        "0",
        "0.25",
        "12",
        "1,500",
        "25 k",
        "320 G",
    ]


def test_a_sweep_over_two_targets(tmp_path: Path) -> None:
    found = [point(1, 10, 100), point(2, 19, 105), point(5, 5, 100, "open")]
    both = [*found, *(point(load, 8, 120, target="grpc") for load in (1, 2)), point(5, 5, 99, "open", "grpc")]
    made = Sweep(
        bundle="/qa",
        bundle_hash="0" * 64,
        task="question-answering",
        request=ATTACK,
        environment={"device": "cpu", "dtype": "float32", "versions": {"torch": "2"}},
        points=tuple(both),
        knees=(knee(both, "http"), knee(both, "grpc")),
        sides=(LOCAL, DEPLOYED.model_copy(update={"target": "grpc"})),
    )
    write_bench(made, tmp_path / "r.html", PRICES)
    # Two machines of half a dollar an hour answer 8 requests a second at grpc's knee.
    cost = columns(tmp_path / "r.html", "Side by side")["costs 1,000,000 requests"]
    assert cost == ["–", f"{1e6 / 8 / 3600:.2f} USD"]
    told = Parsed(tmp_path / "r.html")
    assert told.loads_nothing
    assert told.tags.count("svg") == 4  # latency and throughput of both loops; nothing is generated
    assert re.search(r"grpc: knee\s*1 at a time", told.text)


LOCAL = Side(
    target="http",
    where="this machine",
    facts={"device": "cpu", "computes in": "float32"},
    versions={"torch": "2.13.0"},
    answered=8,
    p50_ms=40.0,
    p90_ms=60.0,
)
DEPLOYED = Side(
    target="endpoint:qa/blue",
    where="deployed in Azure",
    facts={"device": "cuda", "computes in": "float32"},
    passes=("cuda_graph",),
    versions={"torch": "2.13.0"},
    answered=8,
    p50_ms=36.0,
    p90_ms=50.0,
    instance_type="Standard_NC4as_T4_v3",
    instances=2,
)
PRICES = Prices(date="2026-11-01", region="westeurope", currency="USD", prices={"standard_nc4as_t4_v3": 0.5})


def columns(file: Path, title: str) -> dict[str, list[str]]:
    """Rows of the table of a section by their first cell."""
    markup = file.read_text("utf-8").split(f"<h2>{title}</h2>")[1].split("</table>")[0]
    table = ElementTree.fromstring(markup[markup.index("<table>") :] + "</table>")
    rows = [["".join(cell.itertext()) for cell in row] for row in table.iter("tr")]
    return {row[0]: row[1:] for row in rows}


def test_parity_shows_local_and_deployed_side_by_side(tmp_path: Path) -> None:
    alike = Comparison(request="sample", target=DEPLOYED.target, status=200, grade="values", difference="")
    judged = TokenVerdict(
        target=LOCAL.target, agree=True, tokens=320, picked=319, bounds=dict.fromkeys(MARGINS, 1e-3), margins=MARGINS
    )
    made = Verdict(
        agree=True,
        bundle="/qa",
        bundle_hash="0",
        reference=LOCAL.target,
        targets=(LOCAL.target, DEPLOYED.target),
        tolerance=1e-4,
        requests=1,
        load=0,
        comparisons=(alike,),
        environment={DEPLOYED.target: ["device cpu against cuda"]},
        tokens=(judged,),
        sides=(LOCAL, DEPLOYED),
    )
    write_parity(made, tmp_path / "r.html", PRICES)
    told = "agree: http, endpoint:qa/blue answered 1 requests alike; their tokens are the model's."
    assert told in Parsed(tmp_path / "r.html").text
    found = columns(tmp_path / "r.html", "Side by side")
    assert found[""] == ["http", "endpoint:qa/blue"]
    assert found["where"] == ["this machine", "deployed in Azure: 2 x Standard_NC4as_T4_v3"]
    assert found["answers"] == ["the reference", "1 of 1 alike"]
    assert found["tokens"] == ["319 of 320 are the model's", "–"]
    assert found["p50, one at a time"] == ["40.0 ms", "36.0 ms"]
    assert found["costs an hour"] == ["not billed by the hour", "1.000 USD"]
    assert found["costs 1,000,000 requests"] == ["–", "10.00 USD"]  # 36,000 s of a USD an hour
    assert columns(tmp_path / "r.html", "Tokens")["http"][:2] == ["320", "319"]
    other = made.model_copy(update={"agree": False, "tokens": (judged.model_copy(update={"agree": False}),)})
    assert other.headline() == (
        "disagree: http, endpoint:qa/blue answered 1 requests alike; the tokens of http are not the model's"
    )
    write_parity(made, tmp_path / "r.html")
    assert columns(tmp_path / "r.html", "Side by side")["costs an hour"][1] == "no price known"


def test_a_side_is_what_a_target_tells_of_itself(tmp_path: Path) -> None:
    told = {
        "device": "cpu",
        "dtype": "float32",
        "precision": "int8",
        "optimisations": {"cpu": "applied", "compile": "refused"},
        "versions": {"torch": "2"},
    }
    found = side_of("http", make_target("http", tmp_path), told, [0.010, 0.020, 0.030])
    assert found.facts == {"device": "cpu", "computes in": "int8, weights float32"}
    assert (found.passes, found.p50_ms, found.answered) == (("cpu",), pytest.approx(20.0), 3)
    silent = side_of("url:http://a/v1", make_target("http", tmp_path), {})
    assert (silent.where, silent.facts, silent.p50_ms) == ("a server that runs already", {}, None)


def test_a_plan(tiny: Tiny, tmp_path: Path) -> None:
    model = str(tiny("llama", "text-generation"))
    words = ["plan", "--task", "text-generation", "--model", model, "--instance-type", "Standard_NC24ads_A100_v4"]
    done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "plan.html")])
    assert done.exit_code == 0, done.output
    found = Parsed(tmp_path / "plan.html")
    assert found.loads_nothing
    assert found.tags.count("svg") == 2
    assert "keys and values" in found.text and "one request, token by token" in found.text


def test_a_report_that_cannot_be_written_is_told_after_the_result(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    words = ["plan", "--task", "fill-mask", "--model", str(tiny("bert", "fill-mask"))]
    done = CliRunner().invoke(app, [*words, "--report", str(tmp_path / "file" / "plan.html")])
    assert isinstance(done.exception, NotWritten), done.exception
    assert done.stdout.startswith("fits ")
    with pytest.raises(NotWritten, match="Is a directory"):
        write(tmp_path, "t", "about")


def test_nothing_is_expected_above_the_roof(tiny: Tiny) -> None:
    for family, task, sku in (
        ("llama", "text-generation", "Standard_NC24ads_A100_v4"),
        ("bert", "fill-mask", "Standard_F4s_v2"),
    ):
        made = plan(task=task, model=str(tiny(family, task)), instance_type=sku)
        peak, bandwidth = ceilings(made)
        found = points(made)
        assert found
        for _, intensity, speed in found:
            assert speed <= min(peak, intensity * bandwidth)


def test_an_element_keeps_the_order_of_texts_and_nodes(tmp_path: Path) -> None:
    made = el("p", "a ", el("b", "b"), " c", ["d", None, el("i", "e")], class_="x", data_y=None)
    assert ElementTree.tostring(made, "unicode") == '<p class="x">a <b>b</b> cd<i>e</i></p>'
    write(tmp_path / "x.html", "t", "about", made)
    assert (tmp_path / "x.html").read_text("utf-8").startswith("<!doctype html>\n<html lang=")
