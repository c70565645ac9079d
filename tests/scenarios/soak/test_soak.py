"""The soak's short form: one server, three quarters of a minute, few requests at once, so that other tests go on."""

from pathlib import Path

import pytest

from tests.scenarios.soak.soak import MIB, soaked

pytestmark = pytest.mark.usefixtures("forked")


@pytest.mark.timeout(200)
def test_nothing_is_lost_crossed_or_grows(tmp_path: Path) -> None:
    result, faults = soaked(
        ["text-generation"], tmp_path, seconds=45, clients=3, pause_s=0.08, growth=24 * MIB, texts=30
    )
    assert not faults, "\n".join(faults)
    assert result["requests"] > 200
    seen = result["outcomes"]
    assert {"HTTP 200", "HTTP 400", "gRPC OK", "gRPC INVALID_ARGUMENT", "cancelled"} <= set(seen), seen
