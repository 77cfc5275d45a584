"""The README's generated blocks."""
import re

from benchmarks import tables


def test_every_marker_in_the_readme_has_its_table_and_every_table_its_marker():
    text = tables.README.read_text()
    opened, closed = (re.findall(rf"<!-- {slash}(\w+) -->", text) for slash in ("", "/"))
    assert opened == closed and sorted(opened) == sorted(tables.TABLES)


def test_rendering_replaces_a_block_and_nothing_else(monkeypatch):
    monkeypatch.setattr(tables, "TABLES", {"models": lambda: "fresh"})
    text = "before\n<!-- models -->\nstale\nlines\n<!-- /models -->\nafter"
    once = tables.render(text)
    assert once == "before\n<!-- models -->\nfresh\n<!-- /models -->\nafter"
    assert tables.render(once) == once
