def test_dedupe_lists_copies_below_the_file_they_copy(polyvec, tiny_model, tmp_path):
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("A fox sleeps.\n")
    code, out, err = polyvec("dedupe", tmp_path, "--model", tiny_model)
    assert code == 0
    assert [line.split() for line in out.splitlines()[:2]] == [
        [str(tmp_path / "a.txt")],
        ["1.00", str(tmp_path / "b.txt")],
    ]
    assert "1 copies of 1 files" in err
