"""Results in a notebook: a short repr, a table whose text is escaped."""

from mii_azure.bundle.findings import Finding, Findings
from mii_azure.verdict.outcome import Comparison, Verdict
from tests.mii_azure.bundles import spec_and_plan


def test_a_plan() -> None:
    _, plan = spec_and_plan("fill-mask")
    assert repr(plan) == str(plan) == f"Plan({plan.headline()})"
    assert plan.headline().startswith("a-model for fill-mask: fits Standard_F8s_v2 in float32, ")
    assert plan.headline().endswith(" requests/s")
    html = plan._repr_html_()
    assert all(f">{decision.what}</td>" in html for decision in plan.decisions)


def test_findings() -> None:
    fields = {"remedy": "R.", "file": "a.yml", "limit": "", "fixable": False}
    found = Findings(Finding(id="MII1", severity=word, message="<b>&", **fields) for word in ("error", "info", "error"))
    assert repr(found).splitlines()[:2] == ["Findings(2 errors, 1 info)", "MII1 error, a.yml: <b>&"]
    assert "&lt;b&gt;&amp;" in found._repr_html_()
    assert found == list(found)
    assert (repr(Findings()), Findings()._repr_html_().count("<table")) == ("Findings(none)", 0)


def test_a_verdict() -> None:
    wrong = Comparison(request="<r>", target="grpc", status=200, grade="different", difference="d")
    verdict = Verdict(
        agree=False,
        bundle="b",
        bundle_hash="0",
        reference="in-process",
        targets=("in-process", "grpc"),
        tolerance=0.1,
        requests=1,
        comparisons=(wrong,),
        environment={"grpc": ["torch 1 against 2"]},
        load=0,
    )
    assert repr(verdict) == "Verdict(disagree: in-process, grpc answered 1 requests differently)"
    html = verdict._repr_html_()
    assert "&lt;r&gt;" in html
    assert "torch 1 against 2" in html
