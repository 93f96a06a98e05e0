"""The report, read from its HTML: warnings first, tables with captions and scopes, pictures with findings, nothing that runs."""

from __future__ import annotations

import itertools
import json
import math
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from isnet.config import ImagesConfig, RunConfig
from isnet.runs import Run, RunData, evaluate_run
from isnet.runs.report import write_report
from isnet.runs.tables import range_text, score_rows, warnings_of
from isnet.scoring.curves import roc_panel, training_panels
from isnet.scoring.svg import inline_svg
from isnet.training.log import LOG_NAME

HOSTILE = ("<script>alert(1)</script>", '" onload="alert(1)', "$x^$", "[/red] & \\n", "_hidden")
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """Tags with their attributes, the open elements around each, and the text."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None], tuple[str, ...]]] = []
        self.open: list[str] = []
        self.texts: list[tuple[str, tuple[str, ...]]] = []
        self.source = path.read_text()
        self.feed(self.source)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), tuple(self.open)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs), tuple(self.open)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append((data, tuple(self.open)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.tags if name == tag]


class Blobs(Dataset[tuple[Tensor, Tensor, Tensor]]):
    """Images whose class is a bright column inside the mask."""

    def __init__(self, count: int, classes: int) -> None:
        self.labels = torch.arange(count) % classes
        self.images = 0.2 * torch.rand(count, 1, 8, 8, generator=torch.Generator().manual_seed(0))
        self.images[torch.arange(count), 0, 2:6, 1 + self.labels] = 1
        self.masks = torch.zeros(count, 1, 8, 8)
        self.masks[:, :, 1:7, :7] = 1

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        return self.images[index], self.labels[index], self.masks[index]


def scored(folder: Path, name: str, *, classes: tuple[str, ...] = HOSTILE, bias: float = 0.0, **options: Any) -> Run:
    """A run that was never trained, with a log and scores; ``bias`` makes it answer the first class alone."""
    folder.mkdir()
    config = RunConfig(data=ImagesConfig("x", size=(8, 8), channels=1, classes=classes), name=name).replaced(
        monitor="loss", **options
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, len(classes)))
    with torch.no_grad():
        model[3].bias[0] += bias  # type: ignore[index]
    entries: list[dict[str, Any]] = [
        {"kind": "step", "step": 3, "epoch": 0.5, "classification": 2.0, "heatmap": None, "grad_norm": 30.0},
        {"kind": "step", "step": 6, "epoch": 1.0, "classification": 0.1, "heatmap": 0.0, "grad_norm": 0.02},
    ]
    for number, (loss, best) in enumerate(((0.5, True), (0.7, False)), start=1):
        values = {"loss": loss, "classification": loss, "prior": 1.6, "heatmap": 0.0, "background": 0.1 * number}
        epoch = {
            "kind": "epoch",
            "epoch": number,
            "step": 6 * number,
            "score": loss,
            "best": best,
            "validation": values,
        }
        entries.append({**epoch, "accuracy": {"val": 0.5}, "auc": {"val": 0.6}, "balanced_accuracy": {"val": None}})
    (folder / LOG_NAME).write_text("".join(json.dumps(entry) + "\n" for entry in entries))
    return Run(folder, config, model.eval())


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Page:
    root = tmp_path_factory.mktemp("report")
    data = RunData(Blobs(20, 5), {}, {"<b>test</b>": Blobs(60, 5)})
    runs = [scored(root / "a", "<i>plain</i>", bias=50.0), scored(root / "b", "a net with quite a long name, indeed")]
    for run in runs:
        evaluate_run(run, data, resamples=20, progress=False)
    write_report(root / "report.html", runs, data, title="<Report> & more", notes=["a <note>"])
    return Page(root / "report.html")


def test_nothing_in_it_runs_or_is_fetched(page: Page) -> None:
    assert not page.all("script") and not page.all("iframe") and not page.all("b") and not page.all("i")
    for _, attributes, _ in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith(("data:image/png;base64,", "data:", "#"))
    assert "url(http" not in page.source and "@import" not in page.source
    (policy,) = [meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy"]
    assert policy is not None and "default-src 'none'" in policy and "script" not in policy


def test_names_are_shown_as_they_are(page: Page) -> None:
    text = " ".join(text for text, _ in page.texts)
    for name in (*HOSTILE, "<i>plain</i>", "<b>test</b>", "<Report> & more", "a <note>"):
        assert name in text


def test_the_first_lines_tell_what_to_beware_of_and_what_was_found(page: Page) -> None:
    lines = [text.strip() for text, around in page.texts if "main" in around and text.strip()]
    assert lines[0] == "<Report> & more" and "Before you believe" in lines[1]
    assert lines[2].startswith("<i>plain</i>, <b>test</b> test: all 60 answers are “<script>")
    finding = next(line for line in lines if " of the relevance lies in the background; " in line)
    assert re.search(r"test: AUC [\d.]+ \([\d.]+ to [\d.]+\) and balanced accuracy 0.200", finding)
    assert "of the answers change with swapped backgrounds" in finding


def test_structure(page: Page) -> None:
    assert len(page.all("main")) == len(page.all("h1")) == 1 and page.all("html") == [{"lang": "en"}]
    tables = [index for index, (tag, _, _) in enumerate(page.tags) if tag == "table"]
    assert len(tables) >= 9
    for index in tables:
        assert page.tags[index + 1][0] == "caption" and "div" in page.tags[index][2]
    for tag, attributes, around in page.tags:
        if tag == "th":
            assert attributes["scope"] == ("col" if "thead" in around else "row")
        assert "main" in around or tag in {"html", "head", "meta", "title", "style", "body", "main"}
    scrolling = [a for a in page.all("div") if a.get("class") == "scroll"]
    assert len(scrolling) == len(tables) and all(a["tabindex"] == "0" and a["aria-label"] for a in scrolling)
    ids = [attributes["id"] for _, attributes, _ in page.tags if "id" in attributes]
    assert len(set(ids)) == len(ids)
    for reference in re.findall(r"(?:url\(|href=\")#([^)\"]+)", page.source):
        assert reference in ids


def test_the_headline_comes_before_all_other_scores(page: Page) -> None:
    heads = [text for text, around in page.texts if around[-2:] == ("tr", "th") and "thead" in around]
    assert heads[:6] == [
        *("network", "test", "AUC", "balanced accuracy"),
        *("relevance in the background", "answers changed by swapped backgrounds"),
    ]
    assert "blind spot" in heads and "macro F1" in heads and "C1 and C2" in heads


def test_one_tile_for_each_image_and_a_finding_for_each_picture(page: Page) -> None:
    tiles = [a for a in page.all("figure") if a.get("class") == "tile"]
    images = page.all("img")
    assert len(tiles) == 8 and len(images) == 8 * 3
    found = [image["alt"] or "" for image in images]
    assert sum(text.startswith("Test image: ") for text in found) == 8
    pattern = r"Relevance of .*, which answers .*, (right|wrong): (\d+ % of it outside the mask|no mask)"
    assert sum(bool(re.match(pattern, text, re.DOTALL)) for text in found) == 16
    assert "minmax(9.5rem, 1fr)" in page.source and "prefers-color-scheme: dark" in page.source


def test_figures_take_the_colours_of_the_page(page: Page) -> None:
    figures = page.all("svg")
    assert len(figures) >= 6
    for figure in figures:
        assert figure["role"] == "img" and figure["aria-label"] and "viewbox" in figure and "width" not in figure
    labels = " ".join(str(figure["aria-label"]) for figure in figures)
    assert "AUC from" in labels and "by epoch: " in labels
    drawn = page.source[page.source.index("<svg") :]
    assert "currentColor" in drawn and "var(--series-1)" in drawn
    assert not re.search(r"#(010203|0a0b\d\d|000000|ffffff)", drawn)


def test_scores_of_other_weights_are_not_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run trained further since it was scored is scored anew."""
    data = RunData(Blobs(20, 5), {}, {"test": Blobs(30, 5)})
    run = scored(tmp_path / "run", "net")
    monkeypatch.setattr("isnet.runs.evaluate.run_data", lambda *_, **__: data)
    before = evaluate_run(run, resamples=0, sensitivity=False, progress=False)
    assert before["kept"]["epoch"] == 1 and "sensitivity" not in before
    assert score_rows([run])[0].evaluation == before
    better = {"kind": "epoch", "epoch": 3, "step": 18, "score": 0.1, "best": True, "validation": {}}
    with (run.folder / LOG_NAME).open("a") as file:
        file.write(json.dumps(better) + "\n")
    after = score_rows([run])[0].evaluation
    assert after["kept"]["epoch"] == 3 and "then epoch 1: 0.5" in after["kept"]["why"] and after["sensitivity"]


def test_a_run_that_kept_nothing_is_named_first(tmp_path: Path) -> None:
    data = RunData(Blobs(20, 5), {}, {"test": Blobs(30, 5)})
    run = scored(tmp_path / "run", "net", bias=50.0)
    (run.folder / LOG_NAME).write_text(
        json.dumps({"kind": "epoch", "epoch": 1, "step": 3, "score": None, "best": False})
    )
    evaluate_run(run, data, resamples=0, sensitivity=False, progress=False)
    first, second = warnings_of(score_rows([run]))[:2]
    assert "no epoch had a validation loss below" in first and "all 30 answers are" in second


def test_the_range_that_was_used(tmp_path: Path) -> None:
    guarded = scored(tmp_path / "a", "net", variant="dual")
    assert range_text(guarded.config, guarded) == "not measured: no ranges.json"
    measured = {"c1": [7.04, 2], "c2": [66.6, 3], "mean": [1, 1], "std": [1, 1], "images": 9}
    (guarded.folder / "ranges.json").write_text(json.dumps({"input": measured}))
    assert range_text(guarded.config, guarded) == "7.04 / 2 and 66.6 / 3 (measured)"
    fixed = guarded.config.replaced(c1=1.0, c2=25.0)
    assert range_text(fixed, guarded) == "1 and 25 (set)"
    plain = scored(tmp_path / "b", "net")
    assert range_text(plain.config, plain) == "none: no heatmap loss"


# ---- curves


def log(values: list[float | None], key: str = "classification") -> list[dict[str, Any]]:
    return [{"kind": "step", "step": n, "epoch": n / 2, key: value} for n, value in enumerate(values, start=1)]


def test_no_panel_without_a_curve() -> None:
    assert training_panels({}) == [] and training_panels({"a": []}) == []
    assert training_panels({"a": log([None, None])}) == [] and training_panels({"a": log([0.0, 0.0], "heatmap")}) == []
    assert [p.title for p in training_panels({"a": log([1.0]), "b": log([math.nan])})] == [
        "classification loss, training"
    ]
    assert roc_panel({}, {}, "net") is None


@pytest.mark.parametrize(
    "values, scale",
    [
        ([1.0, 1e-3], "log"),
        ([1.0, 0.09], "log"),
        ([3e-7, 2e5], "log"),
        ([1.0, 0.5], "linear"),
        ([1.0, 0.0], "linear"),
        ([0.7], "linear"),
        ([1e-9, 2e-9], "linear"),
        ([5.0, 5.0, 5.0], "linear"),
    ],
)
def test_every_axis_has_labelled_ticks(values: list[float], scale: str) -> None:
    (panel,) = training_panels({"a": log(list(values))})
    panel.figure.canvas.draw()
    (axes,) = panel.figure.axes
    low, high = axes.get_ylim()
    ticks = [label.get_text() for label in axes.get_yticklabels() if low <= label.get_position()[1] <= high]
    assert axes.get_yscale() == scale and len([text for text in ticks if text]) >= 2


def test_equal_curves_can_be_told_apart() -> None:
    (panel,) = training_panels({f"net {n}": log([1.0, 0.5, 0.2]) for n in range(12)})
    (axes,) = panel.figure.axes
    lines = axes.get_lines()
    assert (
        len({(line.get_color(), line.get_linestyle(), line.get_marker(), line.get_linewidth()) for line in lines}) == 12
    )
    assert len({line.get_linewidth() for line in lines}) == 12  # a later one leaves the one below to be seen
    heights = sorted(text.xy[1] for text in axes.texts)
    assert len(heights) == 12 and min(b - a for a, b in itertools.pairwise(heights)) > 0.05


def test_roc_curves_of_many_classes() -> None:
    curve = {"false_positive_rate": [0.0, 1.0], "true_positive_rate": [0.0, 1.0]}
    names = [f"class {n}" for n in range(40)]
    panel = roc_panel(dict.fromkeys(names, curve), {name: 0.5 + n / 100 for n, name in enumerate(names)}, "net")
    assert (
        panel is not None and "AUC from 0.500 (“class 0”) to 0.890 (“class 39”); the 12 lowest of 40" in panel.finding
    )
    assert len(panel.figure.axes[0].get_lines()) == 13


@pytest.mark.parametrize(
    "name", [*HOSTILE, "a" * 300, "", " ", "$", "日本語", "]]>", "<![CDATA[", "\x00\x1b[31m", "\ufffe\ud800"]
)
def test_hostile_names_in_figures(name: str) -> None:
    (panel,) = training_panels({name: log([1.0, 0.1])})
    text = inline_svg(panel.figure, "f", panel.finding)
    assert text.count("<svg") == text.count("</svg") == 1 and "<script" not in text
    curve = {"false_positive_rate": [0.0, 1.0], "true_positive_rate": [0.0, 1.0]}
    roc = roc_panel({name: curve}, {name: 0.5}, name)
    assert roc is not None and "<script" not in inline_svg(roc.figure, "r", roc.finding)


# ---- in a browser

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")
@pytest.mark.parametrize("width", [1200, 390])
def test_nothing_is_wider_than_the_window(page: Page, tmp_path: Path, width: int) -> None:
    """Measured by a script in a frame around the page; the page itself allows none."""
    inner = page.source.replace("<details>", "<details open>")
    inner = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", inner)
    (tmp_path / "inner.html").write_text(inner)
    script = "const d = f.contentDocument.documentElement; document.title = d.scrollWidth + ' ' + d.clientWidth"
    frame = f'<iframe id="f" width="{width}" height="900" style="border:0" src="inner.html" onload="{script}"></iframe>'
    (tmp_path / "outer.html").write_text(f"<!doctype html><title></title>{frame}")
    assert CHROMIUM is not None
    command = [CHROMIUM, *_FLAGS, "--allow-file-access-from-files", f"--user-data-dir={tmp_path / 'profile'}"]
    found = subprocess.run(
        [*command, "--virtual-time-budget=20000", "--dump-dom", (tmp_path / "outer.html").as_uri()],
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    ).stdout
    measured = re.search(r"<title>(\d+) (\d+)</title>", found)
    assert measured is not None and int(measured[1]) <= int(measured[2]) and int(measured[2]) >= width - 20
