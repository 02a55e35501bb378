"""Files of the demo page and of the API documentation, by the path they are served at."""

OWN = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page/page.css": ("page.css", "text/css"),
    "/page/page.js": ("page.js", "text/javascript"),
    "/page/docs.js": ("docs.js", "text/javascript"),
    "/page/icon.svg": ("icon.svg", "image/svg+xml"),
}
SWAGGER_UI = {
    "/page/swagger-ui.css": ("swagger-ui.css", "text/css"),
    "/page/swagger-ui-bundle.js": ("swagger-ui-bundle.js", "text/javascript"),
}
PATHS = frozenset(OWN) | frozenset(SWAGGER_UI)
