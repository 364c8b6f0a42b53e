"""One file per dialect or resource: its schemas, handlers, error form and endpoints."""
