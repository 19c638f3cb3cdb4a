"""The HTTP server: application, access, errors, metrics; routes and the review page in sub-folders."""
