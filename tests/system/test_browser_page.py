#!/usr/bin/env python3
"""Pages of launch/report in a real browser, Chromium without a window or a network: of a run, a study, two bisections and a
contract that fails. No complaint on its console, every plot drawn, nothing wider than a screen of 400 or of 1600 pixels."""

import re
import unittest

import browser
import moe
import pages

PATH = browser.find()
if not PATH:
    moe.skip("no Chromium")
PAPER = 760  # pixels of a sheet of A4 between its margins, and some
# Of each figure: whether one drawing of it is shown, of some size, and how many of its marks have one too.
PLOTS = """[...document.querySelectorAll('figure.plot')].map(figure => {
  const shown = [...figure.querySelectorAll('svg')].map(svg => [svg, svg.getBoundingClientRect()]).filter(([_, box]) => box.width > 0 && box.height > 0)
  const marks = shown.flatMap(([svg]) => [...svg.querySelectorAll('path, use, image, text')]).map(mark => mark.getBoundingClientRect())
  return {title: figure.querySelector('figcaption b').textContent, shown: shown.length, width: shown.length ? shown[0][1].width : 0,
          height: shown.length ? shown[0][1].height : 0, marks: marks.filter(box => box.width + box.height > 0).length,
          texts: shown.flatMap(([svg]) => [...svg.querySelectorAll('text')]).filter(text => text.getBoundingClientRect().width > 0).length}})"""
# What ends beyond the window, but for what scrolls in a box of its own.
BEYOND = """[...document.querySelectorAll('body *')].filter(one => !one.closest('.scroll > *, pre > *') && one.getBoundingClientRect().right > innerWidth + 1)
  .map(one => one.tagName + ' ' + (one.textContent || '').trim().slice(0, 40))"""
WIDER = "document.documentElement.scrollWidth - innerWidth"
INK = """(() => { const text = document.querySelector('figure.plot svg text'), style = getComputedStyle(text)
  return [style.fill, getComputedStyle(document.body).color, getComputedStyle(document.body).backgroundColor] })()"""


def faults(chromium, path, width, **how):
    """What is wrong with a page, as texts; and its plots."""
    chromium.open(path, width, **how)
    plots = chromium.evaluate(PLOTS)
    wrong = [f"complains: {words}" for words in chromium.complaints()]
    if chromium.evaluate(WIDER) > 0:
        wrong.append("wider than the window")
    wrong += [f"beyond the window: {words}" for words in chromium.evaluate(BEYOND)]
    for plot in plots:
        if plot["shown"] != 1 or plot["width"] < 250 or plot["height"] < 60 or plot["marks"] < 10 or plot["texts"] < 3:
            wrong.append(f"not drawn: {plot}")
    return wrong, plots


class Pages(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.chromium = browser.Browser(PATH)
        cls.addClassCleanup(cls.chromium.close)

    def opened(self, folder, least):
        """At both widths, light and dark, and as on paper."""
        path, drawn = pages.page(folder), pages.html(folder).count("<figure ")
        self.assertGreaterEqual(drawn, least)
        for width, how in (
            (400, {}),
            (400, {"dark": True}),
            (1600, {}),
            (1600, {"dark": True}),
            (PAPER, {"media": "print"}),
        ):
            with self.subTest(width=width, **how):
                wrong, plots = faults(self.chromium, path, width, **how)
                self.assertEqual(wrong, [])
                self.assertEqual(len(plots), drawn)

    def test_a_run(self):
        self.opened(pages.parity(), 15)

    def test_a_study(self):
        self.opened(pages.study(), 5)

    def test_bisections(self):
        self.opened(pages.product(), 1)
        self.opened(pages.whole(), 1)

    def test_a_contract_that_fails(self):
        self.opened(pages.failed_contract(), 6)

    def test_plots_follow_light_and_dark(self):
        seen = []
        for dark in (False, True):
            self.chromium.open(pages.page(pages.product()), 1600, dark=dark)
            fill, ink, paper = self.chromium.evaluate(INK)
            self.assertEqual(fill, ink)
            light = [sum(map(int, re.findall(r"\d+", colour)[:3])) / 3 for colour in (ink, paper)]
            self.assertGreater(abs(light[0] - light[1]), 150)
            seen.append(paper)
        self.assertNotEqual(*seen)

    def test_what_is_planted_is_caught(self):
        text = pages.html(pages.product())
        for words, change in (
            ("complains", lambda page: page.replace("</main>", '<script>document.title = "x"</script></main>')),
            (
                "complains: asks for|complains: Load",
                lambda page: page.replace("</main>", '<img src="http://127.0.0.1:9/x.png"></main>'),
            ),
            ("wider than the window", lambda page: page.replace("</main>", '<div style="width:1700px">wide</div></main>')),
            ("beyond the window", lambda page: page.replace("<h1>", '<h1 style="white-space:nowrap;width:3000px">')),
            ("not drawn", lambda page: re.sub(r"(<svg[^>]*>).*?</svg>", r"\1</svg>", page, flags=re.DOTALL)),
            ("not drawn", lambda page: page.replace("<svg ", '<svg style="display:none" ')),
        ):
            path = moe.fresh(".html")
            with open(path, "w", encoding="utf-8") as file:
                file.write(change(text))
            with self.subTest(words):
                self.assertRegex("\n".join(faults(self.chromium, path, 1600)[0]), words)


if __name__ == "__main__":
    moe.main()
