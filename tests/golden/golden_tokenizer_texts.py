"""Random texts by category for golden_tokenizer.py: most of them are made to be difficult for a tokenizer."""
import pathlib
import sysconfig
import unicodedata

CONTROL = [
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>",
    "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"
]
USER = [
    "<tool_call>", "</tool_call>", "<|fim_prefix|>", "<|fim_middle|>", "<|fim_suffix|>", "<|fim_pad|>",
    "<|repo_name|>", "<|file_sep|>", "<tool_response>", "</tool_response>", "<think>", "</think>"
]
# Not Qwen's: special tokens that begin with others or hold white space and non-ASCII, for the longest match.
OVERLAPPING = ["<|im_start|>assistant", "<|im_end|>\n", "<|im_end|>\n<|im_start|>", "«é»"]

WORDS = (
    "the of and to in is it you that he was for on are with as his they be at one have this from or had by "
    "word but what some we can out other were all there when up use your how said an each she which do their "
    "time if will way about many then them write would like so these her long make thing see him two has look "
    "more day could go come did number sound no most people my over know water than call first who may down "
    "side been now find expert router tensor gradient quantised activation throughput reproducibility "
    "antidisestablishmentarianism internationalisation tokenizer").split()
SPACES = [
    chr(c) for c in (9, 10, 11, 12, 13, 0x1C, 0x1D, 0x1E, 0x1F, 0x20, 0x85, 0xA0, 0x1680, 0x180E,
                     *range(0x2000, 0x2010), 0x2028, 0x2029, 0x202F, 0x205F, 0x2060, 0x3000, 0xFEFF)
]
BLOCKS = {
    "latin": (0x41, 0x24F), "greek": (0x370, 0x3FF), "cyrillic": (0x400, 0x52F), "armenian": (0x530, 0x58F),
    "hebrew": (0x590, 0x5FF), "arabic": (0x600, 0x6FF), "syriac": (0x700, 0x74F), "nko": (0x7C0, 0x7FF),
    "arabic_b": (0x860, 0x8FF), "devanagari": (0x900, 0x97F), "bengali": (0x980, 0x9FF), "gurmukhi":
    (0xA00, 0xA7F), "gujarati": (0xA80, 0xAFF), "oriya": (0xB00, 0xB7F), "tamil": (0xB80, 0xBFF), "telugu":
    (0xC00, 0xC7F), "kannada": (0xC80, 0xCFF), "malayalam": (0xD00, 0xD7F), "sinhala": (0xD80, 0xDFF), "thai":
    (0xE00, 0xE7F), "lao": (0xE80, 0xEFF), "tibetan": (0xF00, 0xFFF), "myanmar": (0x1000, 0x109F), "georgian":
    (0x10A0, 0x10FF), "ethiopic": (0x1200, 0x139F), "cherokee": (0x13A0, 0x13FF), "khmer": (0x1780, 0x17FF),
    "mongolian": (0x1800, 0x18AF), "balinese": (0x1B00, 0x1B7F), "georgian_b": (0x1C80, 0x1CBF), "latin_more":
    (0x1E00, 0x1EFF), "greek_more": (0x1F00, 0x1FFF), "letterlike": (0x2100, 0x214F), "glagolitic":
    (0x2C00, 0x2C5F), "kana": (0x3040, 0x30FF), "latin_d": (0xA720, 0xA7FF), "half": (0xFF00, 0xFFEF),
    "todhri": (0x105C0, 0x105FF), "garay": (0x10D40, 0x10D8F), "kaithi": (0x11080, 0x110CF), "tulu":
    (0x11380, 0x113FF), "dives": (0x11900, 0x1195F), "kawi": (0x11F00, 0x11F5F), "gurung": (0x16100, 0x1613F),
    "kirat": (0x16D40, 0x16D7F), "mathematics": (0x1D400, 0x1D7FF), "adlam": (0x1E900, 0x1E95F)
}


def characters(test):
    return [chr(c) for c in range(0x110000) if not 0xD800 <= c <= 0xDFFF and test(chr(c))]


MARKS = characters(lambda c: unicodedata.category(c)[0] == "M")
NUMBERS = characters(lambda c: unicodedata.category(c)[0] == "N")
OTHERS = characters(lambda c: unicodedata.category(c) in ("Cc", "Cf"))
UNASSIGNED = characters(lambda c: unicodedata.category(c) == "Cn")
LETTERS = characters(lambda c: unicodedata.category(c)[0] == "L")
DECOMPOSING = characters(lambda c: unicodedata.normalize("NFD", c) != c and not 0xAC00 <= ord(c) <= 0xD7A3)
EMOJI = [*map(chr, range(0x1F300, 0x1FAFF)), *map(chr, range(0x2600, 0x27BF)), *"#*0123456789"]


def pick(r, low, high, pool):
    return "".join(r.choices(pool, k=r.randint(low, high)))


def span(r, low, high, first, last):
    return "".join(chr(r.randint(first, last)) for _ in range(r.randint(low, high)))


def english(r):
    words = [
        r.choice((str.lower, str.lower, str.title, str.upper))(w)
        for w in r.choices(WORDS, k=r.randint(1, 40))
    ]
    return "".join(w + r.choice((" ", " ", " ", " ", ", ", ". ", "; ", "\n", " - ", "! ", "'s "))
                   for w in words)


def code(r):
    name = lambda: r.choice(("_", "")) + r.choice(("_", "")).join(r.choices(WORDS, k=r.randint(1, 3)))
    lines = [
        lambda: f"int {name()}({name()} *{name()}, size_t n) {{",
        lambda: f"    for (int i = 0; i < n; i++) {name()}[i] += 0x{r.getrandbits(32):x};",
        lambda: f"\tif (!{name()}) return -{r.randint(0, 999)};", lambda: "}", lambda: "",
        lambda: f"def {name()}(self, *args, **kw):",
        lambda: f"        self.{name()} = '{name()}' + \"{name()}\"  # {name()}",
        lambda: f"<div class=\"{name()}\">{name()}</div>",
        lambda: f"{{\"{name()}\": [{r.random()}, {r.random():e}]}},", lambda: f"// {'-' * r.randint(1, 80)}",
        lambda: f"$ {name()} --{name()}={r.randint(0, 10**9)} | grep -v '^#'"
    ]
    return r.choice(("\n", "\r\n", "\n\n")).join(r.choice(lines)() for _ in range(r.randint(1, 12)))


LIBRARY = sorted(pathlib.Path(sysconfig.get_paths()["stdlib"]).glob("*.py"))


def library(r):
    text = r.choice(LIBRARY).read_text(encoding="utf-8", errors="ignore")
    start = r.randrange(max(1, len(text)))
    return text[start:start + r.randint(1, 600)]


def scripts(r):
    out = []
    for _ in range(r.randint(1, 8)):
        first, last = BLOCKS[r.choice(list(BLOCKS))]
        out.append(span(r, 1, 10, first, last))
    return r.choice((" ", "", "\n", ", ")).join(out)


def emoji(r):
    joiner = ("\u200d", "\ufe0f", "\ufe0e", "\U0001f3fb", "\U0001f3ff", "\u20e3", "", " ",
              "\U000e0067\U000e007f")
    return "".join(r.choice(EMOJI) + pick(r, 0, 3, joiner) for _ in range(r.randint(1, 15)))


def combining(r):
    return "".join(
        r.choice(LETTERS if r.random() < 0.3 else "aeioucnsAEIOU ><=ÅêσΩ") + pick(r, 0, 6, MARKS)
        for _ in range(r.randint(1, 12)))


def few_marks(r):
    marks = "".join(
        chr(c)
        for c in (*range(0x300, 0x345), 0x345, *range(0x591, 0x5BE), *range(0x64B, 0x660), 0x3099, 0x309A))
    return "".join(
        r.choice("aeiouAEIOUscnwyαωηυΑΩかはカハ") + pick(r, 0, 5, marks) for _ in range(r.randint(1, 15)))


def decomposed(r):
    text = pick(r, 1, 15, DECOMPOSING)
    if r.random() < 0.5:
        text = unicodedata.normalize(r.choice(("NFD", "NFKD")), text)
    shuffled = list(text)
    i = r.randrange(len(shuffled))
    shuffled[i:i + 3] = r.sample(shuffled[i:i + 3], len(shuffled[i:i + 3]))
    return "".join(shuffled)


def hangul(r):
    parts = [
        lambda: chr(0xAC00 + 28 * r.randrange(399)), lambda: chr(r.randint(0xAC00, 0xD7A3)),
        lambda: chr(r.randint(0x1100, 0x1113)), lambda: chr(r.randint(0x1160, 0x1177)),
        lambda: chr(r.randint(0x11A6, 0x11C3)), lambda: "\u11a7", lambda: " ",
        lambda: chr(r.randint(0x3130, 0x318F))
    ]
    return "".join(r.choice(parts)() for _ in range(r.randint(1, 25)))


def cjk(r):
    blocks = [(0x4E00, 0x9FFF), (0x4E00, 0x5FFF), (0x3040, 0x30FF), (0xF900, 0xFAFF), (0x3000, 0x303F),
              (0x20000, 0x323AF), (0x2F800, 0x2FA1D), (0xFF00, 0xFFEF)]
    return "".join(span(r, 1, 8, *r.choice(blocks)) for _ in range(r.randint(1, 6)))


def indic(r):
    blocks = [
        BLOCKS[name] for name in ("arabic", "devanagari", "bengali", "tamil", "thai", "lao", "tibetan",
                                  "myanmar", "khmer", "kannada", "malayalam", "sinhala", "oriya")
    ]
    first, last = r.choice(blocks)
    return " ".join(span(r, 1, 12, first, last) for _ in range(r.randint(1, 8)))


def numbers(r):
    return "".join(
        pick(r, 1, 4, NUMBERS if r.random() < 0.6 else "0123456789") +
        r.choice(("", "", ".", ",", " ", "x", "e-")) for _ in range(r.randint(1, 12)))


def spaces(r):
    return "".join(
        pick(r, 0, 5, SPACES) + r.choice(("", "a", "word", "1", ".", "é", "中", "\n"))
        for _ in range(r.randint(1, 12)))


def line_runs(r):
    return "".join(
        r.choice((" ", "\n", "\r\n", "\r", "\t", "x", "!", "  ", "{", "\u3000", "9")) *
        r.choice((1, 1, 2, 3, 7, 40)) for _ in range(r.randint(1, 14)))


def controls(r):
    return "".join(
        r.choice((pick(r, 1, 3, OTHERS), r.choice(WORDS), "\ufeff", "\x00", "\x7f", " "))
        for _ in range(r.randint(1, 15)))


def private(r):
    blocks = [(0xE000, 0xF8FF), (0xF0000, 0xFFFFD), (0x100000, 0x10FFFD), (0xFDD0, 0xFDEF), (0xFFF0, 0xFFFF),
              (0x1FFFE, 0x1FFFF), (0xE0000, 0xE01EF)]
    return "".join(
        span(r, 1, 3, *r.choice(blocks)) + r.choice(("", " ", "a")) for _ in range(r.randint(1, 8)))


def unassigned(r):
    return "".join(
        pick(r, 1, 4, UNASSIGNED if r.random() < 0.5 else UNASSIGNED[:4000]) +
        r.choice(("", " ", "b", "\u0301")) for _ in range(r.randint(1, 8)))


def recent(r):
    """What Unicode 10 to 16 have added: marks, letters, digits, between marks that are older."""
    blocks = [(0x897, 0x8D3), (0x1ABF, 0x1ACE), (0x1DF6, 0x1DFB), (0x105C0, 0x105F3), (0x10D40, 0x10D8F),
              (0x11380, 0x113E2), (0x11930, 0x11946), (0x11F00, 0x11F5A), (0x13430, 0x13455),
              (0x16100, 0x16139), (0x16D40, 0x16D79), (0x1CC00, 0x1CCF9), (0x1E030, 0x1E08F),
              (0x1E4D0, 0x1E4F9), (0x1E5D0, 0x1E5FF), (0x31350, 0x323AF), (0xA7CB, 0xA7DC)]
    return "".join(
        span(r, 1, 3, *r.choice(blocks)) + r.choice(("", " ", "a", "\u0307", "\u0345", "\u0334", "\u0315"))
        for _ in range(r.randint(1, 10)))


def astral(r):
    return "".join(
        span(r, 1, 3, 0x10000, 0x1FFFF) + r.choice(("", " ", "\n", "7")) for _ in range(r.randint(1, 10)))


def contractions(r):
    ends = ("'s", "'t", "'re", "'ve", "'m", "'ll", "'d", "'ſ", "'ſ", "'\u212a", "’s", "'x", "'lL", "'rE",
            "'v", "'l", "'r", "''s", "'S\u0301", "'d\u0323", "'lle", "ʼs")
    return "".join(
        r.choice((*WORDS, "I", "don", "9", "é", "", " ")) +
        r.choice((str, str.upper, str.swapcase))(r.choice(ends)) + r.choice(("", " ", "\n", "s"))
        for _ in range(r.randint(1, 12)))


def special(r):
    texts = [*CONTROL, *USER, *OVERLAPPING]
    return "".join(
        r.choice((r.choice(texts), r.choice(texts), r.choice(WORDS), " ", "\n", "\u0301", "\u0338", "é", "  ",
                  "<", "\r")) for _ in range(r.randint(1, 14)))


def partial(r):
    out = []
    for _ in range(r.randint(1, 8)):
        text = r.choice((*CONTROL, *USER, *OVERLAPPING))
        cut = r.randint(0, len(text))
        out.append(
            r.choice((text[:cut], text[cut:], text[:cut] + r.choice("<|>i ") + text[cut:], text.upper(),
                      "<|" + text, text)))
    return "".join(out)


def any_unicode(r):
    limit = r.choice((0x7F, 0x7FF, 0xFFFF, 0x10FFFF))
    text = "".join(chr(r.randint(0, limit)) for _ in range(r.randint(0, 40)))
    return "".join(c for c in text if not 0xD800 <= ord(c) <= 0xDFFF)


def long_word(r):
    size = r.choice((50, 300, 3000))
    return r.choice(
        (lambda: r.choice("az.= \n\t中é\u0301") * size, lambda: pick(r, size, size, "ab"),
         lambda: pick(r, size, size, LETTERS), lambda: pick(r, size, size, "abcdefghijklmnopqrstuvwxyz"),
         lambda: pick(r, size, size, "+-=*/<>|"), lambda: "a" + pick(r, size, size, MARKS),
         lambda: "".join(r.choices(WORDS, k=size // 5))))()


def mixed(r):
    return "".join(r.choice(PARTS)(r)[:r.randint(1, 30)] for _ in range(r.randint(2, 8)))


PARTS = [
    english, code, scripts, emoji, combining, few_marks, decomposed, hangul, cjk, indic, numbers, spaces,
    line_runs, controls, private, unassigned, recent, astral, contractions, special, partial, any_unicode
]
CATEGORIES = [*PARTS, library, long_word, mixed]
