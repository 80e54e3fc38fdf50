"""What a request may hold, and the one line that answers what it may not."""

import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from optkit.core.errors import UserError
from optkit.serving.requests import Input, RequestError, Requests, check_rules

GREY = {
    "kind": "image", "color": "L", "resize": None, "size": [4, 6], "mean": [0.5], "std": [0.25],
    "inputs": [{"name": "images"}], "outputs": [{"name": "logits"}],
}  # fmt: skip
ARRAYS = [Input("x", "float32", (2, 3)), Input("ids", "int64", (4,))]
FINE = {"x": [[1, 2.5, 3], [4, 5, 6]], "ids": [1, 2, 3, 4]}


@pytest.fixture
def arrays(tmp_path):
    return Requests(ARRAYS, {}, tmp_path, 10_000)


IMAGE = [Input("images", "float32", (1, 4, 6))]


def of_rules(folder, rules, inputs=IMAGE):
    (folder / "preprocess.json").write_text(json.dumps(rules))
    return Requests(inputs, check_rules(rules, "here"), folder, 1_000_000)


def body(**inputs):
    return json.dumps({"inputs": FINE | inputs}).encode()


def picture(size, kind="PNG", mode="L"):
    file = io.BytesIO()
    pixels = np.arange(size[0] * size[1], dtype=np.uint8).reshape(size[1], size[0])
    Image.fromarray(pixels).convert(mode).save(file, kind)
    return file.getvalue(), pixels


def test_arrays_come_by_name(arrays):
    found = arrays.read(body(), "application/json; charset=utf-8")
    assert {name: (x.dtype.name, x.shape) for name, x in found.items()} == {
        "x": ("float32", (2, 3)),
        "ids": ("int64", (4,)),
    }
    np.testing.assert_array_equal(found["x"], FINE["x"])
    assert arrays.accepts == ["application/json"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (b"{", "not JSON: Expecting property name"),
        (b'{"inputs": {"x": NaN}}', "not JSON: NaN is no number of JSON"),
        (b"\xff", "the body is not UTF-8, at byte 0"),
        (b"[" * 9000, "not JSON"),
        (b"[]", "not an object with one key, 'inputs'"),
        (b'{"inputs": {}, "more": 1}', "not an object with one key, 'inputs'"),
        (b'{"text": "a"}', "this model takes no texts"),
        (b'{"inputs": [1]}', "'inputs' is not an object of arrays by name .names: x, ids"),
        (b'{"inputs": {"x": [[1,2,3],[1,2,3]]}}', "input 'ids' is missing"),
        (body(z=1), "no input 'z' .names: x, ids"),
        (body(x=[[1, 2, 3]]), r"input 'x' has shape \[1, 3\], and not \[2, 3\]"),
        (body(x=[[1, 2, 3], [1]]), "input 'x' is not an array: its rows differ in length"),
        (body(x=[[1, 2, "3"], [4, 5, 6]]), "input 'x' does not hold numbers of float32"),
        (body(x=[[True] * 3] * 2), "input 'x' does not hold numbers of float32"),
        (body(x=[[1e39] * 3] * 2), "input 'x' holds numbers outside float32"),
        (body(x={"__reduce__": "os.system"}), "input 'x' does not hold numbers of float32"),
        (body(x=[[1, 2, [3]], [4, 5, 6]]), "input 'x' is not an array: its rows differ in length"),
        (body(ids=[1.5, 2, 3, 4]), "input 'ids' does not hold numbers of int64"),
        (body(ids=[2**63] * 4), "input 'ids' holds numbers outside int64"),
        (body(ids=[2**70, 2, 3, 4]), "input 'ids' does not hold numbers of int64"),
        (b" " * 10_001, "the body is too large: more than 10000 bytes"),
    ],
)
def test_what_is_wrong_is_said_in_one_line(arrays, given, message):
    with pytest.raises(RequestError, match=message) as error:
        arrays.read(given)
    assert "\n" not in str(error.value)


def test_types_that_the_model_does_not_take(arrays, tmp_path):
    for kind in ("image/png", "text/plain", "application/x-pickle", "application/octet-stream"):
        with pytest.raises(RequestError, match=rf"content type '{kind}' is not taken .one of application/json"):
            arrays.read(b"x", kind)


def test_an_image_is_prepared_as_the_export_does(tmp_path):
    requests = of_rules(tmp_path, GREY)
    assert requests.accepts == ["application/json", "image/*"]
    given, pixels = picture((6, 4))
    found = requests.read(given, "image/png")["images"]
    np.testing.assert_allclose(found, (pixels[None] / 255 - 0.5) / 0.25, rtol=1e-5)
    with pytest.raises(RequestError, match="^5x4 pixels; the model was measured on 6x4$"):
        requests.read(picture((5, 4))[0], "image/png")
    cut = {"resize": {"shorter_side": 4, "filter": "bicubic", "then_crop": "center"}, "size": [4, 4]}
    square = of_rules(tmp_path, GREY | cut)
    assert square.read(picture((8, 12), "JPEG")[0], "image/jpeg")["images"].shape == (1, 4, 4)


def test_bytes_that_are_no_image_are_refused(tmp_path):
    requests = of_rules(tmp_path, GREY)
    whole = picture((6, 4))[0]
    for given in (b"", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", b"GIF89a", b'{"a": 1}'):
        with pytest.raises(RequestError, match="not an image that can be read"):
            requests.read(given, "image/png")
    with pytest.raises(RequestError, match="not (an image that can be read|what the model takes)"):
        requests.read(whole[:-20], "image/png")
    bomb = io.BytesIO()
    Image.new("1", (9000, 9000)).save(bomb, "PNG")
    with pytest.raises(RequestError, match="the image is too large: 9000x9000 pixels"):
        requests.read(bomb.getvalue(), "image/png")


@pytest.fixture
def words(tmp_path):
    """A tokenizer of whole words, which pads to 4."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace

    made = Tokenizer(WordLevel({"[PAD]": 0, "[UNK]": 1, "good": 2, "bad": 3}, unk_token="[UNK]"))
    made.pre_tokenizer = Whitespace()
    made.enable_truncation(4)
    made.enable_padding(length=4, pad_id=0, pad_token="[PAD]")
    made.save(str(tmp_path / "tokenizer.json"))
    return {
        "kind": "text", "tokenizer": "tokenizer.json", "max_length": 4, "truncation": {"side": "right"},
        "inputs": [{"name": "input_ids"}, {"name": "attention_mask"}], "outputs": [{"name": "logits"}],
    }  # fmt: skip


def test_a_text_is_cut_into_tokens(tmp_path, words):
    inputs = [Input("input_ids", "int64", (4,)), Input("attention_mask", "int64", (4,))]
    requests = of_rules(tmp_path, words | {"columns": ["sentence"]}, inputs)
    for given, kind in ((b'{"text": "good film"}', "application/json"), (b"good film", "text/plain")):
        found = requests.read(given, kind)
        assert {name: x.tolist() for name, x in found.items()} == {
            "input_ids": [2, 1, 0, 0],
            "attention_mask": [1, 1, 0, 0],
        }
    with pytest.raises(RequestError, match="'text' is not a string"):
        requests.read(b'{"text": 5}')
    pairs = of_rules(tmp_path, words | {"columns": ["one", "other"]}, inputs)
    assert pairs.read(b'{"text": {"one": "good", "other": "bad"}}')["input_ids"].tolist() == [2, 3, 0, 0]
    for given in (b'{"text": "good"}', b'{"text": {"one": "good"}}', b'{"text": {"one": "good", "other": 1}}'):
        with pytest.raises(RequestError, match="'text' is not an object of the texts one, other"):
            pairs.read(given)
    with pytest.raises(RequestError, match="content type 'text/plain' is not taken"):
        pairs.read(b"good", "text/plain")


@pytest.mark.parametrize(
    "change",
    [
        {"resize": {"stretch": True, "filter": "lanczos); import os; (0"}},
        {"color": "CMYK"},
        {"mean": [0.5, 0.5]},
        {"mean": ["x"]},
        {"size": [4, -1]},
        {"size": None},
        {"classes": [1]},
        {
            "kind": "text",
            "tokenizer": "../tokenizer.json",
            "columns": ["a"],
            "max_length": 4,
            "truncation": {"side": "left"},
        },
    ],
)
def test_rules_of_a_folder_are_checked_before_anything_is_made_of_them(change):
    with pytest.raises(UserError, match="here: not rules of preprocessing that this optkit knows"):
        check_rules(GREY | change, "here")


def test_texts_in_place_of_numbers_take_no_memory(tmp_path):
    """An array of texts has the width of the longest one in each place."""
    takes = Requests([Input("x", "float32", (2000,))], {}, tmp_path, 10**6)
    tracemalloc.start()
    with pytest.raises(RequestError, match="input 'x' does not hold numbers of float32"):
        takes.read(json.dumps({"inputs": {"x": ["a" * 4000] + [""] * 1999}}).encode())
    assert tracemalloc.get_traced_memory()[1] < 10**6
    tracemalloc.stop()
