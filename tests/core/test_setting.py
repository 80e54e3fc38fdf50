from optkit.core.setting import Setting


def test_settings_are_ordered_by_length_then_batch_and_read_as_words():
    found = [
        Setting.of({"batch_size": b, "sequence_length": n, "engine": "e"}) for b, n in ((8, 64), (32, 16), (1, 64))
    ]
    assert list(map(str, sorted(found))) == ["batch 32, 16 tokens", "batch 1, 64 tokens", "batch 8, 64 tokens"]
    assert max(found) == Setting(8, 64)


def test_a_setting_without_a_length_is_found_as_one():
    image = Setting.of({"batch_size": 8})
    assert str(image) == "batch 8"
    assert (image.conditions, image.length) == ({"batch_size": 8}, {})
    assert Setting(8, 64).conditions == {"batch_size": 8, "sequence_length": 64}
