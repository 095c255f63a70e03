"""The page's HTML: numbers as text, tables, bars in tables, figures, sections, the whole document.

Owns: every tag, and the escaping of what comes from files: text goes through text() or code(), and html() marks what is
HTML already. Independent of: what a run, a study or a contract is.
"""

import html as escaping
import json
import math
import os
import shlex

HERE = os.path.dirname(os.path.realpath(__file__))
# Nothing is loaded and no script runs, whatever a report says: a browser that finds either on the page refuses it.
MANY = 10  # columns that are set smaller on paper
SPACE = "\u00a0"  # that does not break a line
POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"


class html(str):
    """HTML, to be left as it is."""


def text(value):
    """Anything as HTML: what is not html is escaped."""
    return value if isinstance(value, html) else html(escaping.escape(str(value)))


def code(value):
    return html(f"<code>{escaping.escape(str(value))}</code>")


def join(parts, between=""):
    return html(between.join(text(part) for part in parts))


def listed(names):
    """a, b and c"""
    names = [str(name) for name in names]
    return names[0] if len(names) == 1 else ", ".join(names[:-1]) + " and " + names[-1]


# ---- numbers ----


def error(value):
    """As the console has it: 1.55e-02."""
    if value is None:
        return "–"
    if value == 0:
        return "0"
    return "−" * bool(value < 0) + f"{abs(value):.2e}"


def rounded(value, digits=3):
    """To so many digits, without an exponent: 0.0154, 1.55, 1,234,567."""
    if value is None:
        return "–"
    if value == 0 or not math.isfinite(value):
        return f"{value:g}"
    places = max(0, digits - 1 - math.floor(math.log10(abs(value))))
    return f"{round(value, places):,.{places}f}".replace("-", "−")


def percent(share, digits=2):
    if share is None:
        return "–"
    if share == 0 or abs(share) >= 0.995:
        return f"{100 * share:,.0f}{SPACE}%".replace("-", "−")
    if abs(share) < 1e-5:  # 0.0000023 % is no text
        return f"{100 * share:.0e}{SPACE}%".replace("e-0", "e-")
    return rounded(100 * share, digits) + SPACE + "%"


def count(value, one, many=None):
    """3 layers, 1 layer."""
    return f"{value:,} {one if value == 1 else many or one + 's'}"


def byte_size(number):
    """Of bytes."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if number < 1024:
            break
        number /= 1024
    else:
        unit = "TiB"
    return f"{number:.0f} B" if unit == "B" else f"{number:.1f} {unit}"


def superscript(exponent):
    """10⁻³"""
    return "10" + str(exponent).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


# ---- pieces ----


def paragraph(*parts):
    return html(f"<p>{join(parts, ' ')}</p>")


def note(*parts):
    """Smaller: how something is defined."""
    return html(f'<p class="note">{join(parts, " ")}</p>')


def warning(words):
    return html(f'<p class="warning">{text(words)}</p>')


def mark(holds, words=None):
    """A verdict by sign, word and colour."""
    kind, sign = ("holds", "✓") if holds else ("fails", "✗")
    return html(f'<span class="{kind}"><span aria-hidden="true">{sign}</span> {text(words or kind)}</span>')


def bar(share, kind="", bound=None):
    """A bar of a cell's width, from 0 to 1; with a bound, a line stands at its share. Longer ones end in an arrow."""
    share = 0 if share is None or math.isnan(share) else share
    line = f'<i class="bound" style="left:{100 * bound:.2f}%"></i>' if bound is not None else ""
    over = " over" if share > 1 else ""
    return html(f'<span class="bar {kind}{over}"><b style="width:{100 * min(max(share, 0), 1):.2f}%"></b>{line}</span>')


def wrapped(value):
    """Of a table's cell: text that may take several lines; others do not."""
    return html(f'<span class="long">{text(value)}</span>')


def table(head, rows, numbers=(), caption=None, kinds=None):
    """head: titles of columns; rows: lists of cells; numbers: columns set to the right; kinds: a class for each row."""

    def cell(tag, column, value):
        right = ' class="n"' if column in numbers else ""
        return f"<{tag}{right}>{text(value)}</{tag}>"

    kinds = kinds or [""] * len(rows)
    lines = ["".join(cell("td", i, value) for i, value in enumerate(row)) for row in rows]
    body = "".join(f'<tr class="{kind}">{line}</tr>' if kind else f"<tr>{line}</tr>" for line, kind in zip(lines, kinds))
    titles = "".join(cell("th", i, title) for i, title in enumerate(head))
    title = f'<p class="caption">{text(caption)}</p>' if caption else ""
    label = escaping.escape(str(caption or "table"), quote=True)
    kind = ' class="many"' if len(head) > MANY else ""
    return html(
        f'{title}<div class="scroll" role="region" tabindex="0" aria-label="{label}">'
        f"<table{kind}><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table></div>"
    )


def definitions(pairs):
    rows = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs if value not in ("", None)
    )
    return html(f'<dl class="facts">{rows}</dl>')


def details(summary, *parts):
    return html(f"<details><summary>{text(summary)}</summary>{join(parts)}</details>")


def block(content, label=""):
    """Lines to copy."""
    name = f' aria-label="{escaping.escape(label, quote=True)}"' if label else ""
    return html(f'<pre tabindex="0"{name}><code>{escaping.escape(content)}</code></pre>')


def command(verb, **sets):
    """moe_run VERB with keys (run__arms is run.arms) and values, as a shell takes it."""
    words = ["moe_run", verb]
    for key, value in sets.items():
        word = value if isinstance(value, str) else json.dumps(value)
        words += ["--set", shlex.quote(f"{key.replace('__', '.')}={word}")]
    return " ".join([*words, "--out", "DIR"]) + "\n"


def figure(drawings, title, caption="", wide=False):
    """drawings: an SVG, or one for narrow and one for wide screens."""
    if isinstance(drawings, str):
        drawings = [drawings]
    names = ["only"] if len(drawings) == 1 else ["narrow", "wide"]
    body = "".join(f'<div class="drawing {name}">{drawing}</div>' for name, drawing in zip(names, drawings))
    return html(
        f'<figure class="plot{" full" if wide else ""}"><figcaption><b>{text(title)}</b>'
        f" {text(caption)}</figcaption>{body}</figure>"
    )


def figures(*parts):
    """Side by side, as many as there is room for."""
    parts = [part for part in parts if part]
    return html(f'<div class="figures">{join(parts)}</div>') if parts else html("")


# ---- the document ----


class Section:
    """name: of the link to it; parts: HTML. Without parts there is no section, and no link."""

    def __init__(self, name, title, *parts):
        self.name, self.title, self.parts = name, title, [part for part in parts if part]


def document(title, eyebrow, headline, deck, sections):
    """The page: one sentence that says the finding, a few that follow from it, then the sections."""
    sections = [section for section in sections if section and section.parts]
    with open(os.path.join(HERE, "style.css"), encoding="utf-8") as file:
        style = file.read()
    links = "".join(f'<li><a href="#{part.name}">{text(part.title)}</a></li>' for part in sections)
    body = "".join(
        f'<section id="{part.name}"><h2>{text(part.title)}</h2>{join(part.parts)}</section>' for part in sections
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f'<meta name="color-scheme" content="light dark">\n<title>{text(title)}</title>\n'
        f'<link rel="icon" href="data:,">\n<style>\n{style}</style>\n</head>\n<body>\n'
        f'<header><p class="eyebrow">{text(eyebrow)}</p><h1>{text(headline)}</h1>{deck}</header>\n'
        f'<nav aria-label="Sections"><ol>{links}</ol></nav>\n<main>\n{body}\n</main>\n'
        "<footer><p>Made by <code>launch/report</code> of moe_run. docs/metrics.md defines the numbers, docs/report.md "
        "this page.</p></footer>\n</body>\n</html>\n"
    )
