import numpy as np

from polyvec.checkpoint import load_checkpoint


def test_info_tells_the_shape(polyvec, tiny_model):
    code, out, _ = polyvec("info", tiny_model)
    _, weights = load_checkpoint(tiny_model)
    assert code == 0
    assert f"{sum(int(np.prod(weight.shape)) for weight in weights.values()):,}" in out
    assert "native" in out
    assert "retrieval.query" in out
