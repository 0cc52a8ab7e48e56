"""How the OpenAPI schema describes a key. Imported where the REST paths are."""

from drf_spectacular.extensions import OpenApiAuthenticationExtension


class KeyScheme(OpenApiAuthenticationExtension):  # type: ignore[no-untyped-call]
    """`X-API-Key: tml-...`."""

    target_class = "webapp.accounts.authentication.KeyAuthentication"
    name = "ApiKey"

    def get_security_definition(self, auto_schema: object) -> dict[str, str]:  # noqa: ARG002 - theirs
        return {"type": "apiKey", "in": "header", "name": "X-API-Key"}
