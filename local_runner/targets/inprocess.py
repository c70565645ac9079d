"""`python -m local_runner.targets.inprocess BUNDLE`: a child process that scores lines of JSON from standard input.

`{"body": "<raw>"}` is answered `{"status", "body", "seconds"}`; `{"bench": {"bodies", "requests", "clients"}}` runs a
load inside this process and is answered with its `Load`; `{"together": {"bodies", "clients"}}` is answered with each
body's replies under load. The first line out is `{"state": "ready"}`, or
`{"state": "failed", "error": {...}, "exit_code": n}` before the process ends with that code.
"""

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from local_runner.bundle import manifest
from local_runner.process import leash
from local_runner.targets.load import TargetReply, measure, together

if TYPE_CHECKING:
    from local_runner.bundle.script import ScoreScript

_PATIENCE_S = 10.0  # the end of standard input is an orderly stop of its own, which comes first while nothing runs


def main() -> int:
    """Serve standard input until it ends; return the exit code."""
    leash.hold(_PATIENCE_S)  # covers loading the model and running a load, too
    out = _own_stdout()
    try:
        script = _load(Path(sys.argv[1]).resolve())
    except Exception as error:
        from scoring.errors import MiiAzureError

        if not isinstance(error, MiiAzureError):
            raise
        _write(out, {"state": "failed", **error.to_dict(), "exit_code": error.exit_code})
        return error.exit_code
    _write(out, {"state": "ready"})
    for line in sys.stdin:
        _write(out, _answer(script, json.loads(line)))
    return 0


def _own_stdout() -> IO[str]:
    """Take the real standard output; anything that libraries print goes to standard error from now on."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8", newline="\n")
    os.dup2(2, 1)
    return out


def _load(bundle: Path) -> "ScoreScript":
    manifest.enter(bundle)
    # Imported only now: this imports `scoring`, and the bundle's own has to be the one found.
    from local_runner.bundle.script import ScoreScript

    script = ScoreScript(bundle)
    script.init()
    return script


def _answer(script: "ScoreScript", command: dict[str, Any]) -> dict[str, Any]:
    def send(raw: str) -> TargetReply:
        began = time.perf_counter()
        answer = script.run(raw)
        body = answer.read()
        return TargetReply(answer.status, body, time.perf_counter() - began)

    if "bench" in command:
        return asdict(measure(send, **command["bench"]))
    if "together" in command:
        return {"replies": [[_shown(one) for one in replies] for replies in together(send, **command["together"])]}
    return _shown(send(command["body"]))


def _shown(reply: TargetReply) -> dict[str, Any]:
    return {"status": reply.status, "body": reply.body.decode(), "seconds": reply.seconds}


def _write(out: IO[str], message: dict[str, Any]) -> None:
    out.write(json.dumps(message) + "\n")
    out.flush()


if __name__ == "__main__":
    code = main()
    sys.stderr.flush()
    # The scoring script may own threads that never end.
    os._exit(code)
