"""Training data: rows, pairs, tuples, filters, hard negatives, streams and batch plans."""
