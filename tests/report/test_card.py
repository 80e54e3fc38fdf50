from dataclasses import replace

import pytest
from huggingface_hub import ModelCard

from optkit.report import rows
from optkit.report.card import write_cards
from tests.report.runs import chain, write_run

RECIPE = "task: {_target_: optkit.tasks.Digits}\n"


def _with_variants(folder, records):
    write_run(folder, records, RECIPE)
    for record in records:
        (folder / "variants" / f"{record.step}-{record.stage.replace('/', '_')}").mkdir(parents=True)
    return folder


def test_a_card_for_each_variant_reads_back_through_the_hub(tmp_path):
    records = chain()
    written = write_cards(_with_variants(tmp_path, records))
    assert [file.parent.name for file in written] == ["0-train", "1-prune", "2-recover", "3-quantize"]
    card = ModelCard.load(written[-1])
    assert card.data.library_name == "optkit"
    row = next(r for r in rows(records) if r["stage"] == "quantize")
    results = {r.metric_type: r for r in card.data.eval_results}
    assert results["accuracy"].metric_value == row["quality"]
    assert results["speedup"].metric_value == row["speedup"]
    assert results["accuracy"].dataset_name == "digits"
    assert "inductor, batch 8" in results["accuracy"].metric_name
    assert "model-index" in card.data.to_yaml() or "model-index" in written[-1].read_text()
    text = written[-1].read_text()
    assert "| 3 quantize | inductor | 8 |" in text
    assert 'optkit.load("variants/3-quantize", engine="inductor", batch_size=8)' in text
    assert '- processor: `"A Processor"`' in text


@pytest.mark.parametrize("lengths", [(32, 128), (128,)])
def test_results_at_several_lengths_of_texts_have_names_of_their_own(tmp_path, lengths):
    record = chain()[0]
    measurements = [
        replace(m, conditions=m.conditions | {"sequence_length": length})
        for length in lengths
        for m in record.measurements
        if m.name == "accuracy"
    ]
    (file,) = write_cards(_with_variants(tmp_path, [replace(record, measurements=measurements)]))
    names = {r.metric_name for r in ModelCard.load(file).data.eval_results if "inductor" in r.metric_name}
    parts = [f"{length} tokens, " for length in lengths] if len(lengths) > 1 else [""]
    assert names == {f"accuracy (inductor, batch 8, {part}2 threads)" for part in parts}


def test_a_variant_without_a_folder_gets_no_card(tmp_path):
    write_run(tmp_path, chain())
    assert write_cards(tmp_path) == []


@pytest.mark.parametrize("name", ["`a`\n---\nlicense: mit", "<script>alert(1)</script>"])
def test_names_stay_within_their_lines(tmp_path, name):
    records = [r.__class__(**{**r.__dict__, "recipe": name, "technique": name}) for r in chain()]
    file = write_cards(_with_variants(tmp_path, records))[0]
    card = ModelCard.load(file)
    assert card.data.license is None
    assert "<script" not in card.text
    assert name in card.data.tags
