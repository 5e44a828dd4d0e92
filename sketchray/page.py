"""What the HTML pages share: one file that loads nothing, light and dark, wide and narrow, and safe to open.

Whatever text comes from elsewhere goes through `escape` or `table`.
"""

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence

OPEN_CLASSES = 40  # with more, a table of classes is folded
TEXT, NUMBER = "", ' class="n"'  # attributes of a column's cells
LONGEST_TEXT = 300  # characters shown of a name or reason

# The colours of the splits stand out from the ground by 3:1 or more, the text by 7:1.
STYLE = """
:root { color-scheme: light dark; --ink: #222; --ground: #fff; --soft: #f4f4f4; --line: #767676; --link: #0b57a4
; --train: #2f6db3; --valid: #c2570c; --test: #2b7a4b }
@media (prefers-color-scheme: dark) { :root { --ink: #e8e8e8; --ground: #181818; --soft: #262626; --line: #999
; --link: #8fc1f5; --train: #6aa9e9; --valid: #f0a35e; --test: #63c08a } }
* { box-sizing: border-box }
body { font: 16px/1.5 system-ui, sans-serif; margin: 2rem auto; max-width: 60rem; padding: 0 1rem; color: var(--ink);
  background: var(--ground); overflow-wrap: break-word }
a { color: var(--link) } h2 { margin-top: 2.5rem } summary { cursor: pointer } details { margin: 1rem 0 }
table { border-collapse: collapse; margin: 1rem 0 } caption { text-align: left; padding-bottom: .3rem }
th, td { padding: .2rem .8rem; text-align: left; vertical-align: top } tbody th { font-weight: normal }
td.n, th.n { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
tbody tr:nth-child(even) { background: var(--soft) }
.wide { overflow-x: auto }
.train { fill: var(--train) } .valid { fill: var(--valid) } .test { fill: var(--test) }
.note { border-left: .3rem solid var(--valid); padding: .5rem 1rem; background: var(--soft) }
.two { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 0 2rem }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); gap: 1rem }
@media (max-width: 30rem) { h1 { font-size: 1.6rem } .gallery { grid-template-columns: 1fr 1fr } }
.gallery figure { margin: 0; content-visibility: auto; contain-intrinsic-size: auto 9rem; break-inside: avoid }
.pictures { display: grid; grid-template-columns: repeat(3, 1fr); background: var(--soft) }
.pictures path { fill: none; stroke: var(--ink); stroke-width: 2; stroke-linecap: round; stroke-linejoin: round }
@media print { body { max-width: none; font-size: 11px } .gallery figure { content-visibility: visible }
  details::details-content { content-visibility: visible; block-size: auto } }
"""


def make_page(title: str, about: str, content: str, *, style: str = "", script: str = "") -> str:
    """Returns a page that may load nothing, and run nothing but `script`, whatever a class is called.

    Args:
        title: text.
        about: HTML below the title.
        content: HTML of the page.
        style: CSS of this page.
        script: JavaScript of this page, known by its hash.
    """
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    if script:
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        policy += f"; script-src 'sha256-{digest}'"
        script = f"<script>{script}</script>\n"
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<title>{escape(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<header>
<h1>{escape(title)}</h1>
{about}
</header>
<main>
{content}
</main>
{script}</body>
</html>
"""


def table(caption: str, head: Mapping[str, str], rows: Iterable[Sequence[str]]) -> str:
    """Returns a table whose first column names its rows; `head` has the name of each column, if any, and attributes."""
    kinds = list(head.values())[1:] or [TEXT]
    body = "\n".join(
        f'<tr><th scope="row">{escape(first)}</th>'
        + "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds, rest, strict=True))
        + "</tr>"
        for first, *rest in rows
    )
    heads = "".join(f'<th scope="col"{kind}>{name}</th>' for name, kind in head.items())
    top = f"<thead><tr>{heads}</tr></thead>\n" if head else ""
    return f'<div class="wide"><table><caption>{caption}</caption>\n{top}<tbody>\n{body}\n</tbody></table></div>'


def plural(number: int, one: str, many: str = "") -> str:
    """Returns `1 drawing`, `2,000 drawings`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def show(value: str | int | bool) -> str:
    """Returns a value of a provenance as text."""
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


def escape(text: str) -> str:
    """Returns foreign text for the page: escaped, cut, and without what controls or cannot be encoded."""
    kept = text[:LONGEST_TEXT] + ("…" if len(text) > LONGEST_TEXT else "")
    return html.escape("".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in kept))
