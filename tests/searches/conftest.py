import pytest

RECIPE = """
defaults:
  - optkit
  - stage@stages.train: train
  - stage@stages.prune: prune/structured
  - stage@stages.recover: distill/logits
  - _self_
  - override model: mlp
  - override engine@engines.inductor: eager
name: tiny
chain: [train, prune, recover]
model: {widths: [32]}
task: {image_size: 8, crop: 1, limit: 256}
stages:
  train: {trainer: {epochs: 3, batch_size: 64}}
  prune: {amount: 0.5}
  recover: {trainer: {epochs: 3, batch_size: 64, lr: 0.05}}
threads: 1
measure: {batch_sizes: [16], seconds: 0.05, memory: false}
"""


@pytest.fixture
def home(tmp_path, monkeypatch):
    """The current folder, with a recipe in it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny.yaml").write_text(RECIPE)
    return tmp_path
