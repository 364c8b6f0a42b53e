"""The embeddings API over HTTP: `polyvec serve`."""
