"""Starting points of a model: weights of other encoders, and tokenizers."""
