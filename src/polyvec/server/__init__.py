"""The HTTP server: the embedding APIs of Jina, OpenAI, Cohere and TEI (docs/serving.md)."""
