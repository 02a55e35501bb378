"""The demo page and the API documentation: local files without build step or external resources.

Both are public, as they contain no data: they load it over the API, with a token if one is needed. The documentation is
Swagger UI from the package fastapi-offline.
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
