"""Stands for `az` on PATH: keeps what was created in a file, and fails as `az ml` does.

`create` fails for what exists, `show` and `update` for what does not, and a deployment needs its environment, model and
endpoint. Every call is appended to $FAKE_AZ/calls.
"""

import json
import os
import sys
from pathlib import Path

import yaml

HOME = Path(os.environ["FAKE_AZ"])
STATE = HOME / "state.json"


def fail(message: str) -> None:
    sys.stderr.write(f"ERROR: {message}\n")
    sys.exit(1)


def images(arguments: list[str]) -> None:
    """An image registry: `repository show` fails until `build` has made the image."""
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    key = f"image/{arguments[arguments.index('--image') + 1]}"
    if arguments[0] == "build":
        STATE.write_text(json.dumps({**state, key: {"dockerfile": arguments[arguments.index("--file") + 1]}}))
    elif key not in state:
        fail(f"{key} is not found")


def main(arguments: list[str]) -> None:
    with (HOME / "calls").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    if arguments[0] == "acr":
        images(arguments[1:])
        return
    if arguments[0] != "ml":
        if arguments[0] in json.loads(os.environ.get("FAKE_AZ_BROKEN", "[]")):
            fail("broken")
        return
    kind, verb = arguments[1:3]
    flags = dict(zip(arguments[3::2], arguments[4::2], strict=True))
    state = json.loads(STATE.read_text()) if STATE.exists() else {}
    asset = yaml.safe_load(Path(flags["--file"]).read_text()) if "--file" in flags else {}
    name = asset.get("name") or flags["--name"]
    version = (
        asset.get("version") or flags.get("--version") or asset.get("endpoint_name") or flags.get("--endpoint-name")
    )
    key = f"{kind}/{name}/{version or ''}"
    if verb == os.environ.get("FAKE_AZ_FORBIDS"):
        fail("(AuthorizationFailed) The client 'me' does not have authorization to perform this; or it was not found.")
    if verb == "invoke" and os.environ.get("FAKE_AZ_INVOKE_FAILS"):
        fail("(424) Failed Dependency")
    if verb == "create" and key in state:
        fail(f"{key} exists")
    if verb in ("show", "update") and key not in state:
        fail(f"{key} does not exist")
    if kind == "online-deployment" and verb in ("create", "update"):
        for part in sorted({"environment", "model"} & asset.keys()):
            reference = asset[part].split(":")
            if "registries" not in asset[part] and f"{part}/{reference[1]}/{reference[2]}" not in state:
                fail(f"{asset[part]} does not exist")
        if f"online-endpoint/{asset['endpoint_name']}/" not in state:
            fail("the endpoint does not exist")
        if os.environ.get("FAKE_AZ_DEPLOYMENT_FAILS"):
            fail("ResourceNotReady")
    if verb in ("create", "update"):
        state[key] = {**state.get(key, {}), **({"traffic": flags["--traffic"]} if "--traffic" in flags else {})}
        STATE.write_text(json.dumps(state))


main(sys.argv[1:])
