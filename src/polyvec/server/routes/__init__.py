"""The routes: one file per dialect or resource, with its schemas, handlers and endpoints.

To add a dialect, write one file and add it to `ENDPOINTS`. Route files do not import one another.
"""

from polyvec.server.routes import (
    batch_jobs,
    classify,
    cohere,
    embeddings,
    health,
    models,
    rerank,
    segment,
    tei,
)

ENDPOINTS = [
    *embeddings.ENDPOINTS,
    *health.ENDPOINTS,
    *models.ENDPOINTS,
    *rerank.ENDPOINTS,
    *classify.ENDPOINTS,
    *segment.ENDPOINTS,
    *batch_jobs.ENDPOINTS,
    *tei.ENDPOINTS,
    *cohere.ENDPOINTS,
]
"""All routes of the server, in the order of the OpenAPI document."""
