"""Draw the two pictures of README.md, each in light and in dark.

    python tests/figures/draw.py

flow.svg      one step of GRPO, from a question to the adapters that it moves
tree.svg      which tokens of a group attend to which (models/attention.py)

The pictures hold the numbers that the code computes: tests/figures/test_figures.py compares the
rewards, the advantages and the mask with the product's, and the files with what this program draws.
"""

from html import escape
from pathlib import Path
from statistics import fmean, stdev

HERE = Path(__file__).parent

QUESTION = "How large is the lesion?"
OPTIONS = ("large", "small")
ANSWER = "B"
COMPLETIONS = (
    "<think>One lesion: small.</think><answer>B</answer>",
    "<think>One lesion: large.</think><answer>A</answer>",
    "small",
    "<think>One lesion: large.</think><answer>A</answer>",
)
REWARDS = ((1, 1), (1, 0), (0, 0), (1, 0))  # format and accuracy of each completion

# Input tokens of a prompt and of three completions. The last token of a completion is no input.
LENGTHS = (6, 4, 3, 5)

COLOURS = {  # name: in light, in dark
    "ink": ("#1f2328", "#f0f6fc"),
    "muted": ("#59636e", "#9198a1"),
    "edge": ("#d1d9e0", "#3d444d"),
    "card": ("#f6f8fa", "#151b23"),
    "empty": ("#eef1f4", "#1b222b"),
    "on-colour": ("#ffffff", "#0d1117"),
    "prompt": ("#57606a", "#9198a1"),
    "look": ("#c3cad2", "#4a525c"),
    "part1": ("#0969da", "#4493f8"),
    "part2": ("#1a7f37", "#3fb950"),
    "part3": ("#8250df", "#ab7df8"),
    "trained": ("#bc4c00", "#f0883e"),
}

SANS = "system-ui, -apple-system, 'Segoe UI', 'Noto Sans', Helvetica, Arial, sans-serif"
MONO = "ui-monospace, SFMono-Regular, Menlo, Consolas, 'DejaVu Sans Mono', monospace"


def advantages(rewards: tuple[float, ...]) -> list[float]:
    """(r_i - mean) / (std + 1e-4), std unbiased: grpo/advantages.py in the standard library."""
    mean, std = fmean(rewards), stdev(rewards)
    return [(reward - mean) / (std + 1e-4) for reward in rewards]


def attends(lengths: tuple[int, ...]) -> list[list[bool]]:
    """Of each token of [prompt | o_1 | ... | o_G], which tokens it attends to. (S, S)"""
    part = [index for index, length in enumerate(lengths) for _ in range(length)]
    tokens = range(len(part))
    return [[k <= q and part[k] in (0, part[q]) for k in tokens] for q in tokens]


# One function a kind of mark. Coordinates and sizes are in SVG user units, y downwards.


def text(x: float, y: float, words: str, kind: str = "ink", size: int = 13, more: str = "") -> str:
    return (
        f'<text x="{x:g}" y="{y:g}" class="{kind}" font-size="{size}" {more}>{escape(words)}</text>'
    )


def middle(x: float, y: float, words: str, kind: str = "ink", size: int = 13) -> str:
    return text(x, y, words, kind, size, 'text-anchor="middle"')


def box(x: float, y: float, width: float, height: float, kind: str, radius: float = 8) -> str:
    place = f'x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}"'
    return f'<rect {place} rx="{radius:g}" class="{kind}"/>'


def arrow(points: str, kind: str = "line") -> str:
    """A line through `points` ("x,y x,y ...") with a head at its end."""
    head = "head-trained" if kind == "line-trained" else "head"
    return f'<polyline points="{points}" class="{kind}" marker-end="url(#{head})"/>'


def style(palette: dict[str, str]) -> str:
    fills = [f".{name} {{ fill: {colour}; }}" for name, colour in palette.items()]
    rules = [
        f"text {{ font-family: {SANS}; }}",
        *fills,
        f".mono {{ font-family: {MONO}; fill: {palette['ink']}; }}",
        f".file {{ font-family: {MONO}; fill: {palette['muted']}; }}",
        f".title {{ font-weight: 600; fill: {palette['ink']}; }}",
        f".over {{ font-weight: 600; fill: {palette['on-colour']}; }}",
        f".card {{ stroke: {palette['edge']}; }}",
        f".frame {{ fill: none; stroke: {palette['trained']}; stroke-width: 2; }}",
        f".line {{ fill: none; stroke: {palette['muted']}; stroke-width: 1.8; }}",
        f".line-trained {{ fill: none; stroke: {palette['trained']}; stroke-width: 2.2; }}",
        f".axis {{ stroke: {palette['muted']}; stroke-width: 1; }}",
    ]
    return "<style>\n" + "\n".join(rules) + "\n</style>"


def heads() -> str:
    shape = 'viewBox="0 0 8 8" refX="7" refY="4" markerWidth="6" markerHeight="6" orient="auto"'
    pairs = (("head", "muted"), ("head-trained", "trained"))
    made = [
        f'<marker id="{name}" {shape}><path d="M0,0 L8,4 L0,8 Z" class="{kind}"/></marker>'
        for name, kind in pairs
    ]
    return "<defs>" + "".join(made) + "</defs>"


def picture(width: int, height: int, title: str, marks: list[str], palette: dict[str, str]) -> str:
    size = f'viewBox="0 0 {width} {height}" width="{width}" height="{height}"'
    start = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    lines = [start, f"<title>{escape(title)}</title>", style(palette), heads(), *marks, "</svg>"]
    return "\n".join(lines) + "\n"


def head_scan(x: float, y: float) -> list[str]:
    """A drawn head with one small lesion, 96 units wide and high."""
    return [
        f'<rect x="{x:g}" y="{y:g}" width="96" height="96" rx="4" fill="#0b0d10"/>',
        f'<ellipse cx="{x + 48:g}" cy="{y + 48:g}" rx="36" ry="42" fill="#c9ced4"/>',
        f'<ellipse cx="{x + 48:g}" cy="{y + 48:g}" rx="32" ry="38" fill="#5b636d"/>',
        f'<ellipse cx="{x + 40:g}" cy="{y + 46:g}" rx="5" ry="13" fill="#23282e"/>',
        f'<ellipse cx="{x + 56:g}" cy="{y + 46:g}" rx="5" ry="13" fill="#23282e"/>',
        f'<circle cx="{x + 65:g}" cy="{y + 64:g}" r="6" fill="#f2f4f6"/>',
    ]


def question_and_policy() -> list[str]:
    marks = [box(12, 44, 150, 214, "card"), text(26, 30, "image and question", "title")]
    marks += head_scan(39, 58)
    marks += [middle(87, 182, QUESTION, "ink", 11)]
    for row, (letter, option) in enumerate(zip("AB", OPTIONS, strict=True)):
        marks.append(text(52, 206 + 20 * row, f"{letter}) {option}", "mono", 12))
    marks += [middle(87, 282, "data/", "file", 11), arrow("164,150 192,150")]
    marks += [
        text(210, 30, "policy", "title"),
        box(196, 44, 150, 214, "card"),
        middle(271, 70, "Qwen2-VL, frozen", "ink", 12),
        box(212, 84, 118, 44, "empty"),
        middle(271, 103, "vision tower", "muted", 11),
        middle(271, 119, "features are kept", "muted", 11),
        box(212, 138, 118, 104, "empty"),
        middle(271, 159, "language model", "muted", 11),
    ]
    for row in range(3):
        marks.append(box(222, 168 + 22 * row, 44, 16, "look", 3))
        marks.append(box(272, 168 + 22 * row, 48, 16, "trained", 3))
        marks.append(middle(296, 180 + 22 * row, "LoRA", "over", 11))
    return [*marks, middle(271, 282, "models/", "file", 11), arrow("348,150 378,150")]


def completions_to_advantages() -> list[str]:
    count = len(COMPLETIONS)
    totals = tuple(sum(parts) for parts in REWARDS)
    marks = [text(386, 30, f"G = {count} completions", "title")]
    marks += [middle(766, 30, "rewards", "title"), middle(896, 30, "advantages", "title")]
    for row, words in enumerate(COMPLETIONS):
        y = 44 + 55 * row
        marks.append(box(384, y, 322, 48, "card"))
        before, cut, after = words.partition("<answer>")
        marks.append(text(396, y + 20 if cut else y + 29, before, "mono", 11))
        marks.append(text(396, y + 37, cut + after, "mono", 11))
        marks.append(text(672, y + 29, f"o{chr(0x2081 + row)}", "muted", 13))
        form, right = REWARDS[row]
        marks.append(middle(766, y + 22, str(totals[row]), "title", 16))
        marks.append(middle(766, y + 39, f"format {form}, right {right}", "muted", 11))
        marks.append(arrow(f"708,{y + 20} 746,{y + 20}"))
    marks.append('<line x1="896" y1="44" x2="896" y2="258" class="axis"/>')
    for row, value in enumerate(advantages(totals)):
        y, width = 60 + 55 * row, 30 * abs(value)
        kind = "part2" if value > 0 else "trained"
        number = f"{value:+.2f}".replace("-", "\u2212") if value else "0"
        marks.append(box(896 if value > 0 else 896 - width, y, width, 16, kind, 2))
        marks.append(middle(896 + (24 if value < 0 else -24), y + 13, number, "ink", 12))
    files = ((545, "models/sampling/sampler.py"), (766, "rewards/"), (896, "grpo/advantages.py"))
    return marks + [middle(x, 282, file, "file", 11) for x, file in files]


def loss_and_step() -> list[str]:
    clipped = "min(\u03c1 A, clip(\u03c1, 1 \u2212 \u03b5, 1 + \u03b5) A)"
    formula = f"loss = \u2212 \u03a3 w ( {clipped} \u2212 \u03b2 KL )"
    where = "\u03c1: new over old probability of a token;  KL: to the policy before training"
    return [
        arrow("896,290 896,350 842,350"),
        box(384, 306, 454, 88, "card"),
        middle(611, 334, formula, "ink", 14),
        middle(611, 358, where, "muted", 12),
        middle(611, 382, "grpo/loss.py", "file", 11),
        arrow("382,350 180,350 180,226 218,226", "line-trained"),
        box(218, 164, 106, 72, "frame", 6),
        text(194, 340, "gradient of the adapters,", "trained", 12),
        text(194, 368, "clipped; AdamW moves them", "trained", 12),
        text(194, 388, "grpo/optim.py", "file", 11),
    ]


def flow(palette: dict[str, str]) -> str:
    marks = question_and_policy() + completions_to_advantages() + loss_and_step()
    title = "One step of GRPO: question, completions, rewards, advantages, loss, adapters"
    return picture(976, 406, title, marks, palette)


CELL = 19
LEFT, TOP = 110, 66
NAMES = ("prompt", "o\u2081", "o\u2082", "o\u2083")


def mask() -> list[str]:
    """The mask of the group: a row for each token that looks, a column for each it may see."""
    part = [index for index, length in enumerate(LENGTHS) for _ in range(length)]
    marks = []
    for q, row in enumerate(attends(LENGTHS)):
        for k, sees in enumerate(row):
            own = "prompt" if part[q] == 0 else f"part{part[q]}"
            kind = "empty" if not sees else own if part[k] == part[q] else "look"
            marks.append(box(LEFT + CELL * k, TOP + CELL * q, CELL - 2, CELL - 2, kind, 3))
    start = 0
    for index, length in enumerate(LENGTHS):
        at = start + length / 2
        kind = "prompt" if index == 0 else f"part{index}"
        bold = 'font-weight="600" text-anchor="{}"'
        marks.append(text(LEFT + CELL * at, 40, NAMES[index], kind, 14, bold.format("middle")))
        marks.append(text(76, TOP + CELL * at + 4, NAMES[index], kind, 14, bold.format("end")))
        for offset in range(length):
            # A completion's positions go on where the prompt's end.
            position = str(offset if index == 0 else LENGTHS[0] + offset)
            along = CELL * (start + offset) + CELL / 2
            marks.append(middle(LEFT - 1 + along, TOP - 6, position, "muted", 10))
            marks.append(middle(LEFT - 16, TOP + along + 3, position, "muted", 10))
        start += length
    return marks


def branches() -> list[str]:
    """The same group as a tree: the prompt once, and a branch for each completion."""
    x, y, unit = 510, 64, 24
    prompt, *rest = LENGTHS
    marks = [text(x, 40, "the same group as a tree", "title", 14)]
    marks += [box(x, y + 44, unit * prompt - 2, 26, "prompt", 5)]
    marks += [middle(x + unit * prompt / 2, y + 62, "prompt", "over", 13)]
    marks += [middle(x + unit * prompt / 2, y + 88, "computed once", "muted", 12)]
    fork = x + unit * prompt
    for index, length in enumerate(rest, start=1):
        across = y + 57 + 44 * (index - 2)
        marks.append(arrow(f"{fork},{y + 57} {fork + 14},{across} {fork + 34},{across}"))
        marks.append(box(fork + 36, across - 13, unit * length - 2, 26, f"part{index}", 5))
        marks.append(middle(fork + 36 + unit * length / 2, across + 5, NAMES[index], "over", 13))
    row = sum(LENGTHS)
    padded = len(rest) * (prompt + max(rest))
    plain = sum(prompt + length for length in rest)
    notes = (
        f"{row} tokens in one row, no pad.",
        f"A row for each completion would hold {plain}, with pads {padded}.",
        "The prompt's last token predicts the first of every completion;",
        "the last token of a completion predicts nothing, so is no input.",
    )
    marks += [text(x, 216 + 22 * line, words, "muted", 12) for line, words in enumerate(notes)]
    keys = (
        ("prompt", "the prompt sees itself"),
        ("look", "a completion sees its prompt"),
        ("part1", "a completion sees itself"),
        ("empty", "no attention; in a long group not even computed"),
    )
    for line, (kind, words) in enumerate(keys):
        at = 316 + 24 * line
        marks += [box(x, at, 15, 15, kind, 3), text(x + 24, at + 12, words, "ink", 12)]
    return marks


def tree(palette: dict[str, str]) -> str:
    title = "Attention mask of a prompt with three completions, and the same group as a tree"
    return picture(976, TOP + CELL * sum(LENGTHS) + 14, title, mask() + branches(), palette)


def drawn() -> dict[str, str]:
    """File name -> content of every picture."""
    files = {}
    for theme, suffix in enumerate(("", "-dark")):
        palette = {name: shades[theme] for name, shades in COLOURS.items()}
        files[f"flow{suffix}.svg"] = flow(palette)
        files[f"tree{suffix}.svg"] = tree(palette)
    return files


if __name__ == "__main__":
    for name, content in drawn().items():
        (HERE / name).write_text(content, encoding="utf-8", newline="\n")
