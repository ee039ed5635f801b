"""Reports are one file that loads nothing, shows text as text, and never shows a success rate without its interval."""

from __future__ import annotations

import base64
import re
import threading
from html.parser import HTMLParser
from pathlib import Path

import av
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from priorvla.hub_cards import plots
from priorvla.hub_cards.intervals import difference_interval, wilson_interval
from priorvla.hub_cards.report import Report, format_value

ARMS = {"prior": {"open": (8, 10), "close": (10, 10)}, "control": {"open": (3, 10)}}


class Page(HTMLParser):
    """Every tag with its attributes, and the ids, in the order of the page."""

    void = frozenset({"meta", "img", "br", "path", "use", "rect", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)
        assert not self.open, f"unclosed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in self.void:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.void:
            assert self.open.pop() == tag

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]

    def values(self, attribute: str) -> list[str]:
        return [attributes[attribute] or "" for _, attributes in self.tags if attribute in attributes]


def write_video(path: Path) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        stream.pix_fmt = "yuv420p"
        for shade in range(0, 100, 20):
            frame = av.VideoFrame.from_ndarray(np.full((32, 32, 3), shade, dtype=np.uint8), format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


@pytest.fixture
def full_report(tmp_path) -> Report:
    report = Report("Title", "subtitle")
    for heading in ("Numbers", "Plots", "Media"):
        report.section(heading)
    report.text("Some **text**.\n\n- one\n- two")
    report.note("Note this.")
    report.facts({"steps": 500, "seed": None})
    report.table(["task", "success"], [["open", "8/10"]], "caption of a table")
    report.code("priorvla info runs/x\n")
    report.figure(plots.success_by_task(ARMS), "caption of a plot")
    report.figure(plots.loss_curves({"loss": (range(5), range(5))}), "another plot")
    report.image(np.zeros((4, 6, 3), dtype=np.uint8), "caption of an image")
    report.video(write_video(tmp_path / "rollout.mp4"), "caption of a video")
    Image.fromarray(np.zeros((4, 40, 3), dtype=np.uint8)).save(tmp_path / "strip.png")
    report.strip(tmp_path / "strip.png", "open_drawer", "caption of a strip")
    return report


def test_a_report_is_well_formed_and_loads_nothing(full_report, tmp_path):
    path = full_report.write(tmp_path / "deep" / "report.html")
    text = path.read_text(encoding="utf-8")
    page = Page(text)
    for source in page.values("src"):
        assert source.startswith("data:")
    for link in page.values("href") + page.values("xlink:href"):
        assert link.startswith(("#", "https://arxiv.org/")), link
    assert not page.all("script")
    assert not page.all("link")
    assert not re.search(r"@import|url\((?!#)", text)
    policy = next(meta["content"] for meta in page.all("meta") if meta.get("http-equiv") == "Content-Security-Policy")
    assert policy is not None
    assert "default-src 'none'" in policy
    for caption in ("a table", "a plot", "an image", "a video", "a strip"):
        assert f"caption of {caption}" in text
    assert [path.name for path in path.parent.iterdir()] == ["report.html"]


def test_ids_are_unique_and_every_reference_has_its_target(full_report):
    text = full_report.html()
    page = Page(text)
    ids = page.values("id")
    assert len(ids) == len(set(ids))
    references = [link[1:] for link in page.values("href") + page.values("xlink:href") if link.startswith("#")]
    references += re.findall(r"url\(#([^)]+)\)", text)
    assert references
    assert set(references) <= set(ids)


def test_embedded_images_and_videos_are_the_files_bytes(tmp_path):
    array = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    video = write_video(tmp_path / "a.mp4")
    report = Report("t")
    report.image(array)
    report.video(video)
    page = Page(report.html())
    kind, content = (page.all("img")[0]["src"] or "").split(";base64,")
    assert kind == "data:image/png"
    (tmp_path / "back.png").write_bytes(base64.b64decode(content))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "back.png")), array)
    kind, content = (page.all("video")[0]["src"] or "").split(";base64,")
    assert kind == "data:video/mp4"
    assert base64.b64decode(content) == video.read_bytes()


def test_html_in_values_is_shown_and_not_interpreted():
    hostile = "<script>alert(1)</script>"
    report = Report(hostile, hostile)
    report.section(hostile)
    report.text(f"{hostile} `{hostile}` [x](javascript:alert) [y](https://a/\"onclick='1')")
    report.facts({hostile: hostile})
    report.table([hostile], [[hostile]], hostile)
    report.code(hostile)
    report.image(np.zeros((2, 2), dtype=np.uint8), '"><script>')
    report.figure(plots.success_by_task({hostile: {"$a_b$ <b>": (1, 2)}}), hostile)
    page = Page(report.html())
    assert not page.all("script")
    assert not page.all("b")
    assert not any(link.startswith("javascript") for link in page.values("href"))
    assert not page.values("onclick")


def test_text_knows_paragraphs_lists_and_inline_marks():
    report = Report("t")
    report.text(
        "one\ntwo **strong** and *soft* and `a * b * c`, 2 * 3 * 4\n\nlead:\n- [link](https://x.org/a_b)\n  goes on"
    )
    html = report.html()
    assert "<p>one two <strong>strong</strong> and <em>soft</em> and <code>a * b * c</code>, 2 * 3 * 4</p>" in html
    assert '<p>lead:</p>\n<ul><li><a href="https://x.org/a_b">link</a> goes on</li></ul>' in html


def test_numeric_columns_are_aligned_to_the_right_and_words_are_not():
    report = Report("t")
    rows = [["open", 0.123456, "83 %", "[24, 42]", "7/10", None], ["close", 12, "-", "[1, 2]", "8/10", 3.0]]
    report.table(["task", "loss", "mixed", "interval", "count", "maybe"], rows)
    heads = Page(report.html()).all("th")
    assert [head["class"] for head in heads] == ["", "number", "", "number", "number", "number"]
    assert "0.1235" in report.html()


def test_a_long_name_may_be_broken_between_its_words_and_nothing_else_is_changed():
    report = Report("Title")
    report.table(["suite/task_name", "rate"], [["libero/pick_up <b>_x</b>", "7/8"]])
    text = report.html()
    assert '<th scope="col" class="">suite/<wbr>task_<wbr>name</th>' in text
    assert '<td class="">libero/<wbr>pick_<wbr>up &lt;b&gt;_x&lt;/b&gt;</td>' in text and ">7/8</td>" in text


def test_a_ragged_row_is_refused_by_its_number():
    with pytest.raises(ValueError, match="row 1 has 1 cells for 2 headers"):
        Report("t").table(["a", "b"], [[1, 2], [3]])


def test_a_table_without_rows_still_shows_its_headers():
    report = Report("t")
    report.table(["a", "b"], [])
    assert len(Page(report.html()).all("th")) == 2


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"),
        (True, "yes"),
        (0.00012346, "0.0001235"),
        (123456.7, "123457"),
        (float("nan"), "nan"),
        (np.float32(0.5), "0.5"),
        ([1, 2.5], "1, 2.5"),
        ({"torch": "2.13"}, "torch 2.13"),
    ],
)
def test_values_are_written_as_people_read_them(value, text):
    assert format_value(value) == text


def test_sections_of_one_name_get_anchors_of_their_own():
    report = Report("t")
    for _ in range(3):
        report.section("Loss")
    page = Page(report.html())
    assert [head["id"] for head in page.all("h2")] == ["loss", "loss-2", "loss-3"]
    assert [link["href"] for link in page.all("a")] == ["#loss", "#loss-2", "#loss-3"]


@pytest.mark.parametrize(
    "image", [np.zeros((2, 2, 3)), np.zeros((2, 2, 2), dtype=np.uint8), np.zeros((1, 2, 2, 3), dtype=np.uint8)]
)
def test_an_array_that_is_no_picture_is_refused(image):
    with pytest.raises(ValueError, match="an image is uint8"):
        Report("t").image(image)


def test_missing_and_unknown_files_are_errors_that_name_them(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"gone\.mp4"):
        Report("t").video(tmp_path / "gone.mp4")
    with pytest.raises(ValueError, match=r"notes\.txt"):
        Report("t").image(tmp_path / "notes.txt")


def test_a_report_that_cannot_be_rendered_leaves_the_old_file_alone(tmp_path):
    path = Report("old").write(tmp_path / "report.html")
    before = path.read_text()
    broken = Report("new")
    broken._blocks.append({"kind": "table"})
    with pytest.raises(Exception, match="headers"):
        broken.write(path)
    assert path.read_text() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_plots_follow_the_readers_theme():
    report = Report("t")
    report.figure(plots.success_by_task(ARMS))
    html = report.html()
    svg = html[html.index("<svg") : html.index("</svg>")]
    assert "var(--ink)" in svg
    assert "var(--series-1)" in svg
    assert not any(colour in svg for colour in (plots.INK, *plots.SERIES[:2]))


def test_the_same_report_is_the_same_file_twice():
    def page() -> str:
        report = Report("t")
        report.figure(plots.success_by_task(ARMS))
        return report.html()

    assert page() == page()


def test_a_figure_of_pyplot_is_closed():
    pyplot = pytest.importorskip("matplotlib.pyplot")
    pyplot.switch_backend("agg")
    figure, axes = pyplot.subplots()
    axes.plot([1, 2])
    Report("t").figure(figure)
    assert figure.number not in pyplot.get_fignums()


def test_success_by_task_draws_each_arms_wilson_interval():
    axes = plots.success_by_task(ARMS).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == ["open", "close"]
    (prior, control) = axes.containers
    drawn = prior[2][0].get_segments()
    for segment, counts in zip(drawn, ARMS["prior"].values(), strict=True):
        assert segment[:, 0] == pytest.approx(wilson_interval(*counts))
    assert len(control[2][0].get_segments()) == 1


def test_long_names_of_arms_and_tasks_leave_room_for_the_rates():
    task = "pick_up_the_chocolate_pudding_and_place_it_in_the_basket"
    figure = plots.success_by_task(
        {f"a policy of one of several arms, number {arm}": {task: (1, 2)} for arm in range(4)}
    )
    figure.draw_without_rendering()
    width = figure.bbox.width
    assert figure.axes[0].get_window_extent().width > 0.4 * width
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0 and legend.x1 <= width


def test_success_against_steps_draws_intervals_in_the_order_of_steps():
    axes = plots.success_against_steps({"prior": {500: (48, 60), 250: (35, 60)}}).axes[0]
    line, _, (bars,) = axes.containers[0]
    assert line.get_xdata() == pytest.approx([250, 500])
    assert bars.get_segments()[1][:, 1] == pytest.approx(wilson_interval(48, 60))


def test_a_difference_is_hollow_exactly_where_its_interval_spans_zero():
    comparisons = {"clear": (48, 60, 21, 60), "unclear": (9, 10, 7, 10)}
    axes = plots.difference(comparisons, "prior", "control").axes[0]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [dot.get_markerfacecolor() == plots.PAGE for dot in dots] == [False, True]
    assert dots[0].get_xdata()[0] == pytest.approx(48 / 60 - 21 / 60)
    whisker = next(line for line in axes.lines if len(line.get_xdata()) == 2 and line.get_ydata()[0] == 0)
    assert tuple(whisker.get_xdata()) == pytest.approx(difference_interval(*comparisons["clear"]))


def test_a_long_noisy_curve_keeps_its_spike_and_stays_small():
    values = np.random.default_rng(0).normal(size=50_000)
    values[31_000] = 99.0
    report = Report("t")
    figure = plots.loss_curves({"loss": (np.arange(50_000), values)})
    assert figure.axes[0].dataLim.ymax == pytest.approx(99.0)
    report.figure(figure)
    assert len(report.html()) < 150_000


def test_a_curve_leaves_out_what_is_not_finite():
    axes = plots.loss_curves({"loss": ([1, 2, 3], [0.5, float("nan"), 0.25])}, log_y=True).axes[0]
    assert list(axes.lines[0].get_xdata()) == [1, 3]


@pytest.mark.parametrize(
    ("draw", "message"),
    [
        (lambda: plots.loss_curves({}), "at least one curve"),
        (lambda: plots.loss_curves({"a": ([1, 2], [1])}), "curve 'a'"),
        (lambda: plots.loss_curves({"a": ([1], [float("nan")])}), "curve 'a' has no finite value"),
        (lambda: plots.success_by_task({}), "at least one arm"),
        (lambda: plots.success_by_task({"a": {}}), "at least one task"),
        (lambda: plots.success_against_steps({"a": {}}), "arm 'a' has no results"),
        (lambda: plots.success_against_steps({"a": {5: (0, 0)}}), "at least one trial"),
        (lambda: plots.difference({}, "a", "b"), "at least one comparison"),
    ],
)
def test_nothing_to_draw_is_an_error_that_says_so(draw, message):
    with pytest.raises(ValueError, match=message):
        draw()


def test_plots_leave_matplotlibs_settings_and_pyplot_alone():
    import matplotlib

    before = dict(matplotlib.rcParams)
    figure = plots.loss_curves({"a": ([1, 2], [1, 2])})
    assert isinstance(figure, Figure)
    assert dict(matplotlib.rcParams) == before


def test_reports_may_be_written_by_several_threads_at_once(tmp_path):
    report = Report("t")
    report.text("same")
    threads = [threading.Thread(target=report.write, args=(tmp_path / "report.html",)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / "report.html").read_text() == report.html()
    assert len(list(tmp_path.iterdir())) == 1
