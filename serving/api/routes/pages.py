"""The page to try the endpoint, and its API documentation: local files, no build step, nothing from elsewhere.

Both are open to all, for they hold no data: what they show they ask for over the API, with a token where one is needed.
The documentation is Swagger UI as the package fastapi-offline carries it.
"""

from __future__ import annotations

from importlib.resources import files

from fastapi import FastAPI
from fastapi.responses import Response

from serving.api.page import OWN, SWAGGER_UI


def add_pages(app: FastAPI) -> None:
    """Add ``/``, ``/docs`` and the files they load."""
    for package, folder, found in (("serving.api", "page", OWN), ("fastapi_offline", "static", SWAGGER_UI)):
        for path, (name, media_type) in found.items():
            _add(app, path, (files(package) / folder / name).read_bytes(), media_type)


def _add(app: FastAPI, path: str, content: bytes, media_type: str) -> None:
    @app.get(path, include_in_schema=False)
    async def page() -> Response:
        return Response(content, media_type=f"{media_type}; charset=utf-8")
