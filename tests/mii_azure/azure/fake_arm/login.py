"""Microsoft Entra's token endpoint, and what hands out a workflow's assertions: each is good once."""

from typing import Any
from urllib.parse import parse_qs


class Login:
    """`lifetime_s` is that of access tokens; `open` is false once the workflow's service gives no more assertions."""

    def __init__(self, cloud: Any) -> None:
        self.cloud = cloud
        self.lifetime_s = 200.0
        self.open = True
        self.asserted: list[str] = []
        self.good: set[str] = set()

    def answer(self, request: Any) -> Any:
        from tests.mii_azure.azure.fake_arm.cloud import Answer

        if request.host.startswith("actions."):
            if not self.open or request.headers.get("authorization") != "Bearer job":
                return Answer(401, {"message": "no more"})
            self.asserted.append(f"assertion-{len(self.asserted)}")
            self.good.add(self.asserted[-1])
            return Answer(200, {"value": self.asserted[-1]})
        form = {key: values[0] for key, values in parse_qs(request.body.decode()).items()}
        if form.get("client_assertion") not in self.good:
            said = "AADSTS700024: Client assertion is not within its valid time range."
            return Answer(400, {"error": "invalid_client", "error_description": said})
        self.good.discard(form["client_assertion"])
        token = "aad" if "ml.azure" in form["scope"] else f"arm-{len(self.asserted)}"
        self.cloud.arm.expires[f"Bearer {token}"] = self.cloud.arm.clock() + self.lifetime_s
        return Answer(200, {"access_token": token, "expires_in": int(self.lifetime_s), "token_type": "Bearer"})
