"""Starting points of a model: other encoders' weights, and a tokenizer."""
