import pytest

from optkit.core.secrets import LEFT_OUT, arguments_without_secrets, is_secret, without_secrets


@pytest.mark.parametrize(
    ("argument", "left"),
    [
        ("tracker.uri=http://me:hunter2@host/x", "tracker.uri=http://host/x"),
        ("+task.token=hunter2", f"+task.token={LEFT_OUT}"),
        ("--password=hunter2", f"--password={LEFT_OUT}"),
        ("task={api_key: hunter2, size: 3}", f"task={{api_key: {LEFT_OUT}, size: 3}}"),
        ("uri=https://host/x?size=1&token=hunter2&b=2", f"uri=https://host/x?size=1&token={LEFT_OUT}&b=2"),
        ("x=hf_abcdefghijklmnopqrstuv", f"x={LEFT_OUT}"),
        ("task.tokenizer=bert-base", "task.tokenizer=bert-base"),
        ("measure.new_tokens=3", "measure.new_tokens=3"),
        ("model.pad_token_id=3", "model.pad_token_id=3"),
    ],
)
def test_an_argument_keeps_all_but_its_secret(argument, left):
    assert arguments_without_secrets(["optkit", argument]) == ["optkit", left]
    assert arguments_without_secrets(["optkit", left]) == ["optkit", left]


def test_the_value_behind_an_option_is_left_out():
    assert arguments_without_secrets(["x", "--api-key", "hunter2", "y"]) == ["x", "--api-key", LEFT_OUT, "y"]


def test_nested_data_are_cleaned_by_key_and_by_text():
    given = {
        "tracker": {"uri": "http://me:hunter2@host", "api_key": "hunter2"},
        "list": ["--", "token=hunter2"],
        "n": 3,
    }
    assert "hunter2" not in str(without_secrets(given))
    assert without_secrets(given)["n"] == 3
    assert without_secrets({"token": None}) == {"token": None}


def test_words_of_texts_are_no_secrets():
    assert not any(map(is_secret, ("tokenizer", "tokens", "new_tokens", "pad_token_id", "key", "monkey")))
    assert all(map(is_secret, ("token", "hf_token", "password", "API_KEY", "client_secret", "a.b.access-key")))
