"""Train a model: data, losses, stages and the one loop. Needs `polyvec[train]`."""
