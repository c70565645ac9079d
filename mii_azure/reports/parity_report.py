"""Report of a parity run: the verdict, grades per target, and each difference marked in the two replies."""

import difflib
import json
import re
from collections.abc import Iterator
from pathlib import Path

from mii_azure.hardware.prices import Prices
from mii_azure.reports.html import Child, Node, el, figures, section, table, write
from mii_azure.reports.side_by_side import Row, side_by_side
from mii_azure.verdict.grade import ALIKE
from mii_azure.verdict.outcome import Comparison, Verdict
from mii_azure.verdict.tokens.judge import KINDS, TokenVerdict

_GRADES = ("bytes", "values", "scores", "different")
_PIECES = re.compile(r"[-+]?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?(?!\w)|\w+|\s+|[^\w\s]")
_MOST_COMPARED = 2000  # pieces, or lines, of a text: time grows faster than their number
_MOST_SHOWN = 50  # differences; a target that is wrong altogether differs in all of them


def write_parity(verdict: Verdict, file: Path, prices: Prices | None = None) -> None:
    """Write the report of a parity run; with prices, what the machines of deployed targets cost."""
    said, told = verdict.headline().split(":", 1)
    word = el("span", said, class_="good" if verdict.agree else "bad")
    pairs = [
        ("requests", str(verdict.requests)),
        ("targets", str(len(verdict.targets))),
        ("tolerance of numbers", f"{verdict.tolerance:g}"),
        ("in flight under load", str(verdict.load) if verdict.load else "no pass under load"),
    ]
    parts = [el("section", el("p", word, f":{told}."), figures(pairs)), _sides(verdict, prices), _grades(verdict)]
    if verdict.tokens:
        parts.append(_tokens(verdict))
    unlike = [entry for entry in verdict.comparisons if entry.grade not in ALIKE]
    if unlike:
        parts.append(section("Differences", [_difference(verdict, entry) for entry in unlike[:_MOST_SHOWN]]))
        if len(unlike) > _MOST_SHOWN:
            parts.append(el("p", f"{len(unlike) - _MOST_SHOWN} more are in the verdict's JSON.", class_="soft"))
    rows = [(entry.request, entry.target, _graded(entry.grade), str(entry.status)) for entry in verdict.comparisons]
    parts.append(section("Every comparison", table(["Request", "Target", "Grade", "Status"], rows, [3])))
    write(file, f"Parity of {Path(verdict.bundle).name}", f"bundle {verdict.bundle_hash}", *parts)


def _sides(verdict: Verdict, prices: Prices | None) -> Node:
    alone = {side.target: 1e3 / side.p50_ms for side in verdict.sides if side.p50_ms}
    more: list[Row] = [
        ("answers", {name: _answers(verdict, name) for name in verdict.targets}),
        ("tokens", {judged.target: _judged(judged) for judged in verdict.tokens}),
        ("p50, one at a time", {side.target: _ms(side.p50_ms) for side in verdict.sides}),
        ("p90", {side.target: _ms(side.p90_ms) for side in verdict.sides}),
        ("answers timed", {side.target: str(side.answered or "") for side in verdict.sides}),
    ]
    return side_by_side(verdict.sides, more, alone, prices)


def _ms(value: float | None) -> str:
    return "" if value is None else f"{value:,.1f} ms"


def _answers(verdict: Verdict, target: str) -> Child:
    if target == verdict.reference:
        return "the reference"
    counts = verdict.counts[target]
    alike = sum(counts.get(grade, 0) for grade in ALIKE)
    every = sum(counts.values())
    return el("span", f"{alike} of {every} alike", class_="good" if alike == every else "bad")


def _judged(judged: TokenVerdict) -> Node:
    told = f"{judged.picked:,} of {judged.tokens:,} are the model's"
    return el("span", told if judged.agree else judged.cause, class_="good" if judged.agree else "bad")


def _tokens(verdict: Verdict) -> Node:
    rows: list[list[Child]] = []
    for judged in verdict.tokens:
        means = [f"{judged.margins[kind]:.2g} of {judged.bounds[kind]:.2g}" for kind in KINDS]
        rows.append([judged.target, f"{judged.tokens:,}", f"{judged.picked:,}", *means])
        rows[-1].append(_judged(judged))
    heads = ["Target", "Tokens", "The model's", "Greedy", "Seeded", "By default", "Verdict"]
    tried = [
        (judged.target, cause, f"{left:.2g}")
        for judged in verdict.tokens
        for cause, left in sorted(judged.suspects.items(), key=lambda found: found[1])
    ]
    suspects = table(["Target", "Suspect", "Leaves, nats"], tried, [2]) if tried else None
    told = "Mean margins in nats: how far each token lies below the one that plain transformers picks in its place, of "
    told += "what a sound target may have by the rounding of its number format."
    return section("Tokens", table(heads, rows, range(1, 6)), el("p", told, class_="soft"), suspects)


def _graded(grade: str) -> Node:
    return el("span", grade, class_="good" if grade in ALIKE else "bad")


def _grades(verdict: Verdict) -> Node:
    heads = [
        "Target",
        *(grade.capitalize() for grade in _GRADES),
        "Moved under load",
        f"Environment against {verdict.reference}",
    ]
    rows: list[list[Child]] = [[verdict.reference, "", "", "", "", _moved(verdict, verdict.reference), "the reference"]]
    for target in verdict.targets[1:]:
        counts = [str(verdict.counts[target].get(grade, 0) or "") for grade in _GRADES]
        environment = "; ".join(verdict.environment[target]) or "the same"
        rows.append([target, *counts, _moved(verdict, target), environment])
    return section("Grades", table(heads, rows, range(1, 6)))


def _moved(verdict: Verdict, target: str) -> str:
    return str(verdict.moved[target]) if verdict.load else ""


def _difference(verdict: Verdict, entry: Comparison) -> Node:
    against = "its answer alone" if entry.under_load else verdict.reference
    title = f"{entry.target} against {against}: {entry.request}"
    if entry.bodies is None:
        return el("div", el("h3", title), el("p", entry.difference))
    left, right = marked(*(_pretty(body) for body in entry.bodies))
    sides = el("div", el("div", against, left), el("div", entry.target, right), class_="sides")
    return el("div", el("h3", title), el("p", entry.difference), sides)


def _pretty(body: str) -> str:
    try:
        return json.dumps(json.loads(body), ensure_ascii=False, indent=1)
    except ValueError:
        return body


def marked(left: str, right: str) -> tuple[Node, Node]:
    """Two texts with what only one of them has marked: word by word in lines that differ, numbers whole.

    What is too long to compare so is marked as a whole.
    """
    sides: tuple[list[Child], list[Child]] = ([], [])
    for ours, theirs in _unlike_lines(left.splitlines(keepends=True), right.splitlines(keepends=True)):
        for kind, *pieces in _aligned(_PIECES.findall(ours), _PIECES.findall(theirs)):
            for side, piece, tag in zip(sides, pieces, ("del", "ins"), strict=True):
                if piece:
                    side.append(piece if kind == "equal" else el(tag, piece))
    return el("pre", sides[0]), el("pre", sides[1])


def _unlike_lines(left: list[str], right: list[str]) -> Iterator[tuple[str, str]]:
    """Texts to compare with one another: each line with its twin where as many were replaced, else blocks of lines."""
    blocks = difflib.SequenceMatcher(None, left, right).get_opcodes() if _short(left, right) else ()
    for _, *places in blocks or [("replace", 0, len(left), 0, len(right))]:
        ours, theirs = left[places[0] : places[1]], right[places[2] : places[3]]
        if len(ours) == len(theirs):
            yield from zip(ours, theirs, strict=True)
        else:
            yield "".join(ours), "".join(theirs)


def _aligned(ours: list[str], theirs: list[str]) -> Iterator[tuple[str, str, str]]:
    if ours == theirs or not _short(ours, theirs):
        yield "equal" if ours == theirs else "replace", "".join(ours), "".join(theirs)
        return
    # Commas and spaces of long texts are no beginnings of what is alike: its time grows with their number cubed.
    matcher = difflib.SequenceMatcher(None, ours, theirs)
    for kind, *places in matcher.get_opcodes():
        yield kind, "".join(ours[places[0] : places[1]]), "".join(theirs[places[2] : places[3]])


def _short(*sides: list[str]) -> bool:
    return max(map(len, sides)) <= _MOST_COMPARED
