import numpy as np

from polyvec.encoder import Encoder


def test_an_exported_model_encodes_as_its_source(polyvec, tiny_model, tmp_path):
    assert polyvec("export", tiny_model, tmp_path / "out")[0] == 0
    source, exported = (
        Encoder.load(folder).encode("fox", task="separation")
        for folder in (tiny_model, tmp_path / "out")
    )
    np.testing.assert_array_equal(source, exported)


def test_an_int8_export_is_smaller_and_encodes_nearly_as_its_source(polyvec, tiny_model, tmp_path):
    assert polyvec("export", tiny_model, tmp_path / "out", "--int8")[0] == 0
    source, exported = (
        Encoder.load(folder).encode("fox", task="separation")[0]
        for folder in (tiny_model, tmp_path / "out")
    )
    assert source @ exported > 0.999
    whole, small = (
        sum(path.stat().st_size for path in folder.rglob("*.safetensors"))
        for folder in (tiny_model, tmp_path / "out")
    )
    assert small < whole / 2
