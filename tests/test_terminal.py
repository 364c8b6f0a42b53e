from polyvec.terminal import first_words


def test_first_words_fit_the_size():
    for size in (5, 9, 20):
        assert len(first_words("one  two\nthree four five", size)) <= size + 1
    assert first_words("温泉" * 9, 5) == "温泉温泉 …"
