"""The HTML of reports: sections, tables that sort, figures with their files, and the frame around them.

A page is one file that needs no network. Without JavaScript it is all there; only tables do not sort.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

FORMATS = ("svg", "png", "pdf", "csv")  # in which each figure lies beside its page (study.figure_files)
LONG = 70  # characters, from which on the text of a cell is broken into lines


@dataclass(frozen=True)
class Section:
    """A part of a page with an entry in the table of contents; `body` is HTML."""

    title: str
    body: str


def text(value: object) -> str:
    """The value as it is, whatever it holds."""
    return html.escape(str(value))


def paragraph(words: str) -> str:
    return f"<p>{text(words)}</p>"


def note(words: str) -> str:
    """What explains a table, in small print."""
    return f"<p class=note>{text(words)}</p>"


def bullets(sentences: Iterable[str]) -> str:
    return "<ul>" + "".join(f"<li>{text(sentence)}</li>" for sentence in sentences) + "</ul>"


def preformatted(words: str) -> str:
    return f"<pre>{text(words)}</pre>"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A click on a heading sorts by its column."""
    return table_of_html(head, ([text(cell) for cell in row] for row in rows))


def table_of_html(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """The same, where cells are HTML."""
    headings = "".join(f"<th scope=col>{text(heading)}</th>" for heading in head)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<div class=wide><table><thead><tr>{headings}</tr></thead><tbody>{body}</tbody></table></div>"


def _cell(content: str) -> str:
    return f"<td class=long>{content}</td>" if len(content) > LONG else f"<td>{content}</td>"


def bar(share: float) -> str:
    """A bar as long as the share."""
    return f"<div class=bar style='width:{10 * share:.2f}rem'></div>"


def figure(name: str, svg: str, caption: str) -> str:
    """The SVG of the figure of this name, with links to its files beside the page."""
    links = " ".join(f'<a href="{name}.{suffix}">{suffix.upper()}</a>' for suffix in FORMATS)
    caption = f"<figcaption>{text(caption)} <span class=files>{links}</span></figcaption>"
    return f'<figure id="figure-{name}">{svg}{caption}</figure>'


def page(title: str, lead: str, sections: Sequence[Section]) -> str:
    """The whole file. `lead` is HTML, and comes before the first section."""
    entries = "".join(f'<li><a href="#part-{n}">{text(s.title)}</a></li>' for n, s in enumerate(sections, start=1))
    parts = "".join(
        f'<section id="part-{n}"><h2>{text(s.title)}</h2>\n{s.body}</section>\n'
        for n, s in enumerate(sections, start=1)
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{text(title)}</title>\n'
        f"<style>{_STYLE}</style></head><body>\n"
        f'<nav aria-label="Contents"><b>Contents</b><ol>{entries}</ol></nav>\n'
        f"<main>{lead}\n{parts}</main>\n<script>{_SCRIPT}</script>\n</body></html>\n"
    )


_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; margin: 0 auto; padding: 1rem; max-width: 88rem; }
h1 { font-size: 1.5rem; margin-top: 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin-top: 2rem; } h3 { font-size: 1rem; margin: 1rem 0 0; }
a { color: #0b5c8a; }
nav { font-size: .9rem; border-bottom: 1px solid #ddd; margin-bottom: 1rem; }
nav ol { margin: .3rem 0 1rem; padding-left: 2rem; }
.answer { font-size: 1.1rem; border-left: 4px solid #0072B2; padding-left: 1rem; }
.warning { border-left: 4px solid #D55E00; padding-left: 1rem; }
.note, figcaption { color: #555; font-size: .9rem; max-width: 60rem; }
.files a { margin-left: .4rem; }
figure { margin: 1rem 0; } svg { max-width: 100%; height: auto; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; margin: .5rem 0; font-size: .9rem; }
th, td { padding: .25rem .7rem; text-align: left; border-bottom: 1px solid #ddd; white-space: nowrap; }
td.long { white-space: normal; overflow-wrap: anywhere; min-width: 20rem; }
th button { font: inherit; font-weight: bold; color: inherit; background: none; border: 0; padding: 0; }
th button { cursor: pointer; }
th button:hover, th button:focus-visible { text-decoration: underline; }
th button::after { content: "\\2195"; color: #767676; padding-left: .3rem; }
th[aria-sort=ascending] button::after { content: "\\2191"; color: #222; }
th[aria-sort=descending] button::after { content: "\\2193"; color: #222; }
.bar { background: #0072B2; height: .7rem; }
pre { background: #f6f6f6; padding: 1rem; overflow-x: auto; font-size: .8rem; }
@media (min-width: 64rem) {
  body { display: grid; grid-template-columns: 14rem minmax(0, 1fr); gap: 2.5rem; padding: 2rem; }
  nav { position: sticky; top: 2rem; align-self: start; max-height: calc(100vh - 4rem); overflow-y: auto; border: 0; }
}
@media print {
  body { display: block; font-size: 10pt; max-width: none; padding: 0; }
  nav { position: static; max-height: none; }
  h2, h3 { break-after: avoid; } figure, tr { break-inside: avoid; } thead { display: table-header-group; }
  .wide, pre { overflow: visible; } pre { white-space: pre-wrap; overflow-wrap: anywhere; }
  table { font-size: 8pt; } th, td { white-space: normal; overflow-wrap: anywhere; padding: .15rem .4rem; }
  th button::after, .files { display: none; }
  .bar, .answer { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
}
"""

# A cell counts as the number that it begins with: "31.2% (29.8-32.6)", "5.2 h", "1:02:45", "<0.001". What is no number,
# such as "not reached", comes last in both directions. A column without numbers sorts as text.
_SCRIPT = """
"use strict";
const CLOCK = /^(\\d+):(\\d\\d)(?::(\\d\\d))?(?![\\d:])/;
const NUMBER = /^[<>~]?\\s*([+-]?(?:\\d[\\d,]*)?\\.?\\d+(?:e[+-]?\\d+)?)(?:\\s*(h|min|s)\\b)?(?=$|[\\s%x(,:;])/i;
function numberOf(words) {
  const clock = words.match(CLOCK), found = words.match(NUMBER);
  if (clock) return clock[3] ? 3600 * clock[1] + 60 * clock[2] + +clock[3] : 60 * clock[1] + +clock[2];
  return found ? Number(found[1].replace(/,/g, "")) * ({h: 3600, min: 60}[found[2]] || 1) : NaN;
}
function sortBy(heading) {
  const table = heading.closest("table"), body = table.tBodies[0], column = heading.cellIndex;
  const sign = heading.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  const rows = Array.from(body.rows, row => {
    const words = row.cells[column].textContent.trim();
    return {row, words, number: numberOf(words)};
  });
  const numeric = rows.some(r => !isNaN(r.number));
  rows.sort((a, b) => {
    if (!numeric) return sign * a.words.localeCompare(b.words, "en", {numeric: true});
    if (isNaN(a.number) || isNaN(b.number)) return isNaN(a.number) - isNaN(b.number);
    return sign * (a.number - b.number);
  });
  body.append(...rows.map(r => r.row));
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", sign > 0 ? "ascending" : "descending");
}
for (const heading of document.querySelectorAll("thead th")) {
  if (!heading.textContent) continue;
  const button = document.createElement("button");
  button.type = "button";
  button.textContent = heading.textContent;
  button.addEventListener("click", () => sortBy(heading));
  heading.replaceChildren(button);
}
"""
