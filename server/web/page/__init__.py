"""The review page: static files (ES modules, one style sheet) over the HTTP API, and the route that serves them."""
