"""Training data: texts, pairs and tuples, and the plans by which steps read them."""
