"""Paths of the programs' APIs with one slash where a client's base URL brought a second one."""

import re

from webapp.core.threads import App, Receive, Scope, Send

PREFIXES = ("/api/", "/v1/", "/hot_load/", "/training/", "/inference/")


class SingleSlashes:
    """Pages keep their paths as they are."""

    def __init__(self, app: App) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        path = re.sub("/{2,}", "/", scope["path"])
        if path != scope["path"] and path.startswith(PREFIXES):
            scope = {**scope, "path": path, "raw_path": path.encode()}
        await self.app(scope, receive, send)
