from scripts.import_map import ROOT, drawing, filled, imports


def test_contributing_shows_the_imports_of_today():
    text = (ROOT / "CONTRIBUTING.md").read_text()
    assert filled(text, ROOT) == text, "run python -m scripts.import_map"
    assert drawing(ROOT) in text


def test_imports_are_found_wherever_they_stand(tmp_path):
    prune = tmp_path / "optkit" / "prune"
    (prune / "cut").mkdir(parents=True)
    (prune / "__init__.py").write_text('"""Prunes."""\nfrom optkit.prune.cut.plan import Plan\n')
    (prune / "cut" / "__init__.py").write_text('"""Cuts."""\n')
    (prune / "structured.py").write_text("from optkit.core.errors import UserError\nimport optkit.prune.cut.plan\n")
    (prune / "cut" / "plan.py").write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    from optkit.models import MLP\n"
        "def late():\n    from optkit.engines import compile\n    from optkit.prune.cut import units\n"
    )
    assert imports(tmp_path) == {"prune": {"core", "prune/cut"}, "prune/cut": {"engines"}}
    assert "| `prune/cut/` | Cuts. | engines |" in drawing(tmp_path)
