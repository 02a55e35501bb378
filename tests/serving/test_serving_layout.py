import ast
from collections import Counter
from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "serving"


def test_no_folder_has_more_than_twelve_modules():
    modules = Counter(file.parent for file in PACKAGE.rglob("*.py") if file.name != "__init__.py")
    assert max(modules.values()) <= 12, modules


def test_no_class_name_is_used_twice():
    names = Counter(
        node.name
        for file in PACKAGE.rglob("*.py")
        for node in ast.parse(file.read_text()).body
        if isinstance(node, ast.ClassDef)
    )
    assert [name for name, count in names.items() if count > 1] == []


def test_no_import_hides_from_the_layers():
    assert [file for file in PACKAGE.rglob("*.py") if "TYPE_CHECKING" in file.read_text()] == []
