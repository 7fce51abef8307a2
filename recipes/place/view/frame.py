"""The HTML around the pictures: one page that needs no network."""

from collections.abc import Sequence
from html import escape
from string import Template

from recipes.place.view.drawing import FONT, STYLE

_PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1"><title>$title</title>
<style>$style
body { font: 14px/1.5 $font; background: var(--paper); color: var(--ink); margin: 28px auto;
       max-width: 1180px; padding: 0 20px; }
h1 { font-size: 22px; margin: 0; } h2 { font-size: 16px; margin: 30px 0 8px; }
.facts { display: flex; flex-wrap: wrap; gap: 10px; margin: 16px 0; padding: 0; }
.facts li { list-style: none; background: var(--card); border: 1px solid var(--line);
            border-radius: 8px; padding: 8px 14px; }
.facts b { display: block; font-size: 17px; font-variant-numeric: tabular-nums; }
.muted, .facts span { color: var(--muted); } .bad { color: var(--warn); font-weight: 600; }
.scroll { overflow-x: auto; }
table { margin-top: 6px; border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td { padding: 4px 0 4px 18px; text-align: right; border-bottom: 1px solid var(--line);
         white-space: nowrap; }
th:first-child, td:first-child { text-align: left; padding-left: 0; }
th { color: var(--muted); font-weight: 500; } td.words { text-align: left; white-space: normal; }
svg { max-width: 100%; height: auto; display: block; }
</style></head><body>
<h1>$title</h1><p class="muted">$subtitle</p>
$body
</body></html>
""")


def frame(title: str, subtitle: str, parts: Sequence[str]) -> str:
    """The page around some parts, which are HTML already."""
    return _PAGE.substitute(
        title=escape(title),
        subtitle=escape(subtitle),
        body="\n".join(parts),
        style=STYLE,
        font=FONT,
    )


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Tiles: what it is, and its value."""
    tiles = (f"<li><b>{escape(value)}</b><span>{escape(name)}</span></li>" for name, value in pairs)
    return f'<ul class="facts">{"".join(tiles)}</ul>'


def section(title: str, body: str, note: str = "") -> str:
    """A heading, a line below it, and HTML."""
    told = f'<p class="muted">{escape(note)}</p>' if note else ""
    return f'<section><h2>{escape(title)}</h2>{told}<div class="scroll">{body}</div></section>'


def table(head: Sequence[str], rows: Sequence[Sequence[str]], *, words: Sequence[int] = ()) -> str:
    """Cells of plain text; columns ``words`` are to the left."""

    def row(cells: Sequence[str], tag: str) -> str:
        left = [' class="words"' if at in words and tag == "td" else "" for at in range(len(cells))]
        return "".join(f"<{tag}{c}>{escape(x)}</{tag}>" for c, x in zip(left, cells, strict=True))

    body = "".join(f"<tr>{row(cells, 'td')}</tr>" for cells in rows)
    return f"<table><tr>{row(head, 'th')}</tr>{body}</table>"
