"""The paths that ask for no token; all others do, but those below a feature's open directories."""

OPENAPI = "/openapi.json"
SCRIPT, STYLE, ICON = "swagger-ui-bundle.js", "swagger-ui.css", "favicon.png"
OPEN_PATHS = ("/health", "/readyz", OPENAPI, "/docs", *(f"/docs/{name}" for name in (SCRIPT, STYLE, ICON)))
