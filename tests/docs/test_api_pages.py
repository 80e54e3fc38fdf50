"""The API pages have every public name."""

import ast

import pytest

from tests.docs.blocks import ROOT

PAGES = sorted((ROOT / "docs/api").glob("*.md"))


def public_names(package):
    """``__all__`` of a package, read without importing it."""
    tree = ast.parse((ROOT / "optkit" / package / "__init__.py").read_text())
    (names,) = [
        ast.literal_eval(node.value)
        for node in tree.body
        if isinstance(node, ast.Assign) and node.targets[0].id == "__all__"
    ]
    return set(names)


@pytest.mark.parametrize("page", ["prune", "quantize", "distill", "engines", "deploy", "costs"])
def test_a_page_that_names_its_members_names_all(page):
    text = (ROOT / f"docs/api/{page}.md").read_text()
    shown = {line.rpartition(".")[2] for line in text.splitlines() if line.startswith(f"::: optkit.{page}.")}
    assert shown == public_names(page)


def test_the_first_page_and_the_page_on_python_name_all_that_optkit_offers():
    names = public_names(".") - {"__version__"}
    for page in ("api/index.md", "python.md"):
        text = (ROOT / "docs" / page).read_text()
        assert {name for name in names if f"`{name}`" not in text} == set(), page


def test_every_page_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text()
    assert [page.name for page in PAGES if f"api/{page.name}" not in navigation] == []
