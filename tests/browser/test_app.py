"""What only a browser can see: drawing, clicks, keys, the stream, tabs, no other machine."""

import zipfile
from dataclasses import replace
from urllib.parse import urlencode

import pytest

import workbench as wb
from app.process import pages
from app.state import Edit, Investigation, to_query
from tests.browser.conftest import LETTERS

pytestmark = pytest.mark.browser
NAMES = sorted(pages(), key=lambda name: pages()[name].order)
CUT = Edit("zero", "blocks.1.attn.hook_z", heads=(0,))
CLICK_CELL = """([selector, row, column]) => {
  const canvas = [...document.querySelectorAll(selector + ' *')]
    .map(n => n.shadowRoot?.querySelector('canvas')).find(Boolean)
  const root = canvas.getRootNode().querySelector('.root'), g = root.geometry
  const box = canvas.getBoundingClientRect()
  return [box.left + g.left + (column + 0.5) * g.w, box.top + g.top + (row + 0.5) * g.h]
}"""

LEGENDS = """() => [...document.querySelectorAll('*')]
  .map(n => n.shadowRoot?.querySelector('.root')).filter(root => root?.geometry?.legend)
  .map(root => [root.geometry.legend, root.clientWidth])"""

NAMELESS = """() => {
  const all = root => [...root.querySelectorAll('*')]
    .flatMap(n => n.shadowRoot ? [n, ...all(n.shadowRoot)] : [n])
  const named = n => n.ariaLabel || n.getAttribute('aria-label') || n.textContent.trim()
    || n.labels?.length
  return all(document)
    .filter(n => n.matches('button, input, canvas:not([aria-hidden]), [role=listbox]'))
    .filter(n => n.checkVisibility())
    .filter(n => !named(n)).map(n => n.outerHTML.slice(0, 120))
}"""


def click_cell(tab, selector, row, column):
    canvas = tab.page.locator(f"{selector} canvas[role=img]")
    canvas.scroll_into_view_if_needed()
    x, y = tab.page.evaluate(CLICK_CELL, [selector, row, column])
    tab.page.mouse.click(x, y)
    tab.settle()


@pytest.mark.asset
@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_computes_something_on_the_language_model(new_tab, name, theme):
    tab = new_tab(theme).open(name)
    assert tab.metric.startswith("+6.1")
    title = tab.page.locator("h1").first.inner_text()
    assert title.endswith("?")
    assert tab.page.locator(".check").count() > 0
    assert tab.page.locator("[data-testid=stException]").count() == 0


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("name", NAMES)
def test_a_page_fits_a_telephone(new_tab, name, theme):
    tab = new_tab(theme, (390, 844)).open(name, LETTERS)
    assert tab.metric == "+10.0 logits"
    assert tab.page.locator(".st-key-tray").bounding_box()["height"] < 130
    wide = tab.page.evaluate("document.querySelector('[data-testid=stMain]').scrollWidth")
    assert wide <= 390


@pytest.mark.asset
@pytest.mark.parametrize(("name", "count"), [("lens", 1), ("attention", 2)])
def test_a_colour_bars_words_fit_a_telephone(new_tab, name, count):
    tab = new_tab("light", (390, 844)).open(name)
    ends = tab.page.evaluate(LEGENDS)
    assert len(ends) == count
    assert all(0 < end <= width for end, width in ends)


@pytest.mark.asset
def test_the_first_page_is_light(new_tab):
    tab = new_tab()
    client = tab.page.context.new_cdp_session(tab.page)
    client.send("Network.enable")
    sizes: list[int] = []
    client.on("Network.loadingFinished", lambda event: sizes.append(event["encodedDataLength"]))
    tab.open()
    assert sum(sizes) < 3.2e6


def test_token_text_stays_text(tab):
    text = "<script>window.bad=1</script><img src=x onerror=window.bad=1> $x$ **b** # h"
    tab.open("", Investigation(model="induction", prompt=text))
    assert "reads the letters" in tab.page.locator(".error").first.inner_text()
    assert tab.page.evaluate("window.bad") is None


@pytest.mark.asset
def test_script_as_a_token_stays_text(tab):
    text = "<script>window.bad=1</script><img src=x onerror=window.bad=1>"
    tab.open("lens", Investigation(prompt=text, target=None, foil=None))
    shown = tab.page.locator("[role=option] .text").all_inner_texts()
    assert "".join(shown).replace("·", " ") == text
    assert tab.page.evaluate("window.bad") is None


def test_a_cell_click_updates_card_and_address(tab):
    tab.open("lens", LETTERS)
    click_cell(tab, ".st-key-lens-figure", 0, 4)  # the top row is the last layer
    assert "After layer 1, position 4" in tab.page.locator(".st-key-lens-card h2").inner_text()
    assert "cell=%5B2%2C4%5D" in tab.page.url
    before = tab.page.url
    tab.page.reload()
    tab.settle("lens")
    assert "position 4" in tab.page.locator(".st-key-lens-card h2").inner_text()
    assert tab.page.url == before


def test_back_undoes_a_pick(tab):
    tab.open("lens", replace(LETTERS, cell=(2, 3)))
    click_cell(tab, ".st-key-lens-figure", 0, 7)
    assert "position 7" in tab.page.locator(".st-key-lens-card h2").inner_text()
    tab.page.go_back()
    tab.settle("lens")
    assert "position 3" in tab.page.locator(".st-key-lens-card h2").inner_text()


def test_back_undoes_the_first_pick_and_the_menu_none(tab):
    tab.open("overview", LETTERS)
    tab.page.locator("[role=option]").nth(3).click()
    tab.settle("overview")
    assert "after position 3" in tab.page.locator(".bar .how").inner_text()
    tab.page.get_by_role("link", name="Lens").click()
    tab.settle("lens")
    assert "after position 3" in tab.page.locator(".bar .how").inner_text()
    tab.page.go_back()
    tab.settle("overview")
    tab.page.go_back()
    tab.settle("overview")
    assert "after position 12" in tab.page.locator(".bar .how").inner_text()


@pytest.mark.asset
def test_back_undoes_the_first_pick_of_a_session_without_a_link(tab):
    tab.open()
    tab.page.locator("[role=option]").nth(3).click()
    tab.settle("overview")
    assert "after position 3" in tab.page.locator(".bar .how").inner_text()
    tab.page.go_back()
    tab.settle("overview")
    assert "after position 13" in tab.page.locator(".bar .how").inner_text()


def test_a_tile_click_shows_that_head(tab):
    tab.open("attention", LETTERS)
    click_cell(tab, ".st-key-mosaic-figure", 1, 1)  # layer 0 is at the bottom
    assert tab.page.locator("h1").inner_text() == "Where does L0H1 look?"


def test_ablating_changes_the_metric_and_bypass_restores_it(tab):
    tab.open("attention", replace(LETTERS, head=(1, 0)))
    tab.page.get_by_role("button", name="Ablate L1H0").click()
    tab.page.locator(".chip").wait_for()
    tab.settle("attention")
    assert tab.metric == "+10.0 → 0.00 logits"
    tab.page.get_by_role("button", name="Bypass").click()
    tab.settle("attention")
    assert tab.metric == "+10.0 logits"
    tab.page.get_by_role("button", name="Apply plan").click()
    tab.settle("attention")
    tab.page.get_by_role("button", name="remove: ablate L1H0").click()
    tab.settle("attention")
    assert tab.metric == "+10.0 logits"
    assert tab.page.locator(".chip").count() == 0


def test_two_tabs_do_not_contaminate_each_other(new_tab):
    cut, clean = new_tab(), new_tab()
    cut.open("overview", replace(LETTERS, plan=(CUT,)))
    clean.open("overview", LETTERS)
    for position in (3, 12, 8, 12):
        for tab in (cut, clean):
            tab.page.locator("[role=option]").nth(position).click()
    cut.settle("overview")
    clean.settle("overview")
    assert clean.metric == "+10.0 logits"
    assert cut.metric == "+10.0 → 0.00 logits"


def test_rapid_clicks_show_the_last_one(tab):
    tab.open("overview", LETTERS)
    for position in (1, 5, 9, 11):
        tab.page.locator("[role=option]").nth(position).click()
    tab.settle("overview")
    assert "after position 11" in tab.page.locator(".bar .how").inner_text()
    assert tab.page.locator("[aria-selected=true] .pos").inner_text() == "11"


def test_the_keyboard_reaches_tokens_cells_and_plan(tab):
    tab.open("lens", replace(LETTERS, plan=(CUT,)))
    tab.page.locator("[role=listbox]").focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "Enter"):
        tab.page.keyboard.press(key)
    tab.settle("lens")
    assert "after position 2" in tab.page.locator(".bar .how").inner_text()
    tab.page.locator(".st-key-lens-figure canvas[role=img]").focus()
    for key in ("ArrowUp", "Home", "ArrowRight", "Enter"):
        tab.page.keyboard.press(key)
    tab.settle("lens")
    assert "position 1" in tab.page.locator(".st-key-lens-card h2").inner_text()
    tab.page.locator("h1").click()
    tab.page.keyboard.press("e")
    tab.settle("lens")
    assert tab.page.get_by_role("button", name="Apply plan").count() == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_figure_has_a_table_and_its_python(tab, name):
    tab.open(name, LETTERS)
    for link in ("Table", "Python", "Method"):
        buttons = tab.page.get_by_role("button", name=link, exact=True)
        assert buttons.count() > 0
        buttons.first.click()
        inside = {"Table": "table tbody tr", "Python": "pre", "Method": ".method"}[link]
        assert tab.page.locator(inside).first.inner_text().strip()


def test_every_control_has_a_name(tab):
    tab.open("attention", replace(LETTERS, plan=(CUT,)))
    assert tab.page.evaluate(NAMELESS) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"prompt": ""}, "is empty"),
        ({"prompt": "a" * 40}, "reads at most 16"),
        ({"target": "gg"}, "must be one token"),
    ],
)
def test_an_error_is_a_message(tab, change, message):
    tab.open("", replace(LETTERS, **change))
    assert message in tab.page.locator(".error").first.inner_text()
    assert tab.page.locator("[data-testid=stException]").count() == 0


def test_a_mended_prompt_goes_on(tab):
    tab.open("", replace(LETTERS, prompt=""))
    tab.page.get_by_role("textbox", name="Prompt").fill("abcdab")
    tab.page.keyboard.press("Enter")
    tab.page.locator(".bar .value").wait_for()
    tab.settle("overview")
    assert tab.page.locator(".error").count() == 0


def test_steering_writes_both_texts_and_zero_is_the_baseline(tab):
    steering = replace(LETTERS.steering, strength=0.0, new_tokens=5)
    tab.open("steer", replace(LETTERS, steering=steering))
    base, steered = tab.page.locator(".st-key-page-steer .column .text").all_inner_texts()
    assert base == steered
    assert len(base) == len("cbhafdged") + 5
    assert "identical" in tab.page.locator(".st-key-page-steer .page").first.inner_text()


def test_the_plan_comes_along_as_a_file(tab, tmp_path):
    tab.open("overview", replace(LETTERS, plan=(CUT,)))
    with tab.page.expect_download() as download:
        tab.page.get_by_role("button", name="Take along").click()
    with zipfile.ZipFile(download.value.path()) as archive:
        archive.extractall(tmp_path)
    (one,) = wb.Plan.load(tmp_path)
    assert list(one.sites) == [CUT.site]


def test_a_text_that_cannot_be_continued_is_asked_once(tab):
    steering = replace(LETTERS.steering, prompt="xyz")
    tab.open("steer", replace(LETTERS, steering=steering))
    tab.page.get_by_text("reads the letters").wait_for(timeout=10_000)
    assert tab.page.locator("[data-testid=stApp]").get_attribute("data-test-script-state") == (
        "notRunning"
    )


@pytest.mark.asset
def test_a_page_that_is_left_does_not_keep_the_worker(tab):
    steering = replace(Investigation().steering, new_tokens=200, seed=77)
    tab.page.goto(f"{tab.address}/steer?{urlencode(to_query(Investigation(steering=steering)))}")
    tab.page.get_by_role("button", name="Stop", exact=True).wait_for(timeout=60_000)
    tab.page.get_by_role("link", name="Overview").click()
    tab.page.locator(".st-key-page-overview h1").wait_for(timeout=20_000)
    tab.page.locator("[role=option]").nth(4).click()
    tab.page.get_by_text("after position 4").wait_for(timeout=10_000)
    tab.settle("overview")


@pytest.mark.asset
def test_a_long_prompt_stays_light(tab):
    state = Investigation(prompt="The cat sat on the mat. " * 60, target=None, foil=None)
    tab.page.goto(f"{tab.address}/?{urlencode(to_query(state))}")
    tab.page.locator("[role=option]").first.wait_for(timeout=60_000)
    options = tab.page.locator("[role=option]")
    assert options.count() == 300
    assert options.last.get_attribute("id") == "t420"
    tab.page.get_by_role("button", name="earlier").click()
    assert options.first.get_attribute("id") == "t0"
    tab.settle("overview")


@pytest.mark.asset
def test_a_stream_can_be_stopped_and_keeps_what_it_wrote(tab):
    steering = replace(Investigation().steering, new_tokens=200, seed=11)
    state = Investigation(steering=steering)
    tab.page.goto(f"{tab.address}/steer?{urlencode(to_query(state))}")
    stop = tab.page.get_by_role("button", name="Stop", exact=True)
    stop.wait_for(timeout=60_000)
    tab.page.wait_for_function(
        """() => [...document.querySelectorAll('*')]
          .some(n => n.shadowRoot?.querySelectorAll('.piece').length > 8)""",
        timeout=60_000,
    )
    stop.click()
    tab.page.get_by_text("stopped").wait_for(timeout=10_000)
    assert tab.page.locator(".st-key-page-steer .piece").count() >= 8
