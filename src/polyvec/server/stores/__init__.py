"""State that outlives a request: trained classifiers and batch jobs."""
