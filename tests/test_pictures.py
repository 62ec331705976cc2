"""The pictures of the lessons have pixels and a description."""

import numpy as np
import pytest

from lessons import pictures


def test_an_excerpt_is_the_lines_between(tmp_path):
    path = tmp_path / "kernel.cu"
    path.write_text("zero\nthe one\ntwo\n  three\n")
    assert "```c++\nthe one\ntwo\n```" in pictures.excerpt(path, "one", "three").data
    path.write_text("f {\n  a {\n    one\n#if two\n      three\n  }\n  four\n}\n")
    assert pictures.excerpt(path, "a {").data == "```c++\na {\n  one\n#if two\n    three\n}\nfour\n```"
    assert pictures.excerpt(path, "one").data == "```c++\none\n#if two\n  three\n```"
    path.write_text("zero\nthe one\ntwo\n  three\n")
    with pytest.raises(ValueError, match=r"kernel.cu has no 'two' followed by 'one'"):
        pictures.excerpt(path, "two", "one")


@pytest.mark.parametrize(
    "picture",
    [
        lambda alt: pictures.images({"a": pictures.photo(40), "b": pictures.photo(40)[0] - 0.5}, alt),
        lambda alt: pictures.index_map(np.arange(6).reshape(2, 3), np.arange(6).reshape(2, 3) // 4, alt),
        lambda alt: pictures.counts(np.arange(6).reshape(2, 3), alt),
        lambda alt: pictures.window(5, 6, 3, 1, 2, alt),
        lambda alt: pictures.ledger({"a": (1e6, 2e6), "b": (0, 3e6)}, alt),
        lambda alt: pictures.bars({"a": 1.0, "b": float("nan")}, alt, unit="us", mark=("floor", 0.5)),
        lambda alt: pictures.bars({"a": float("nan")}, alt, unit="us", mark=("floor", float("nan"))),
        lambda alt: pictures.curve({"a": [(1, 2), (2, 3)]}, alt, x="x", y="y", logarithmic="xy", mark=("here", 1.5)),
        lambda alt: pictures.roofline({"a": (0.5, None), "b": (3, 1e12)}, {"roof": 1e13}, 1e12, alt),
        lambda alt: pictures.sectors(4 * np.arange(32) + 12, alt),
        lambda alt: pictures.banks((32, 33), 4, alt),
        lambda alt: pictures.products(3, 2, alt),
        lambda alt: pictures.reduction(8, alt),
        lambda alt: pictures.bits({"a": [("sign", "0"), ("fraction", "0110")], "b": [("fraction", "1")]}, alt),
    ],
)
def test_a_picture_has_pixels_and_words(picture):
    drawn = picture("what is to be seen")
    data, metadata = drawn._repr_mimebundle_()
    (kind,) = data
    assert kind in ("image/png", "image/jpeg")
    assert len(drawn.data) > 2000
    assert metadata[kind]["alt"] == "what is to be seen"
