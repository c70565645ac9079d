"""Decision whether a static decoder drafts tokens: by a draft model, or out of the text that it continues."""

from scoring.config import Speculation
from scoring.passes.base import Applicability
from scoring.passes.families import NO_DRAFTS


def decide(
    asked: Speculation,
    device: str,
    degree: int = 1,
    *,
    experts: bool = False,
    rounded: bool = False,
    draft: bool = False,
    fixed: bool = False,
    recurrent: bool = False,
) -> Applicability:
    """Decide for a decoder over `degree` ranks.

    `experts`: of a mixture, `rounded`: steps read int8 weights, `draft`: there is a draft model, `fixed`: no answer may
    depend on its company, `recurrent`: layers keep states that no step undoes.
    """
    if asked == "off":
        return Applicability(False, "as asked for")
    if fixed:
        return Applicability(False, "who else is served would decide which tokens are drafted")
    if recurrent:
        return Applicability(False, NO_DRAFTS)
    if degree > 1:
        return Applicability(False, "a decoder over several GPUs has no steps with drafts")
    if asked == "draft" and not draft:
        return Applicability(False, "there is no draft model")
    if rounded and asked == "auto":
        return Applicability(
            False,
            "steps of one token read int8 weights and those of several 16-bit ones, so that answers would differ; ngram"
            " and draft do so all the same, and without weight_only nothing differs",
        )
    if asked != "auto":
        return Applicability(True, "as asked for")
    if draft:
        return Applicability(
            True,
            "a step checks several tokens of the draft model, and keeps what it would have picked; no more of a request"
            " where they are seldom right, nor beside many sequences",
        )
    if device != "cuda":
        return Applicability(False, "on a CPU a drafted token costs a good part of a step; ngram drafts all the same")
    if experts:
        return Applicability(False, "each further token of a step reads experts of its own")
    return Applicability(
        True,
        "where a text repeats itself, a step checks several tokens that followed before, and keeps what it would have"
        " picked; not where they seldom are right, nor beside many sequences",
    )
