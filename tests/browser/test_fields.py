"""The prompt, target and foil on the screen are those of the investigation, however one got there.

Notable: what a field shows is read from the browser: the server's own idea of it was right all the
time that the browser showed none.
"""

from dataclasses import replace

import pytest

from app.process import pages
from app.state import Investigation
from tests.browser.conftest import LETTERS, Tab

pytestmark = pytest.mark.browser
FIELDS = ("Prompt", "Target", "Foil")
WRITTEN = ("fbhadgecfbhad", "g", "a")


def fields(tab: Tab) -> tuple[str, ...]:
    """What stands in the three fields."""
    return tuple(tab.page.get_by_role("textbox", name=name).input_value() for name in FIELDS)


def visit(tab: Tab, name: str) -> None:
    tab.page.get_by_role("link", name=pages()[name].title, exact=True).click()
    tab.settle(name)


def back(tab: Tab, name: str) -> None:
    tab.page.go_back()
    tab.settle(name)


def choose(tab: Tab, model: str) -> None:
    tab.page.locator(".st-key-model-slot button").click()
    tab.page.get_by_role("textbox", name="Another model").fill(model)
    tab.page.keyboard.press("Enter")
    tab.page.wait_for_timeout(300)


def test_the_fields_follow_through_the_menu(tab):
    tab.open("overview", LETTERS)
    assert fields(tab) == WRITTEN
    for name in ("lens", "attention", "steer", "overview", "steer", "lens"):
        visit(tab, name)
        assert fields(tab) == WRITTEN, name


@pytest.mark.parametrize("name", ["lens", "steer"])
def test_the_fields_follow_from_a_deep_link_and_through_back(tab, name):
    tab.open(name, LETTERS)
    assert fields(tab) == WRITTEN
    visit(tab, "overview")
    assert fields(tab) == WRITTEN
    tab.page.locator("[role=option]").nth(3).click()
    tab.settle("overview")
    assert fields(tab) == WRITTEN
    for page in ("overview", name):
        back(tab, page)
        assert fields(tab) == WRITTEN, page


def test_the_fields_follow_what_is_typed_and_back(tab):
    tab.open("overview", LETTERS)
    tab.page.get_by_role("textbox", name="Prompt").fill("abcdab")
    tab.page.keyboard.press("Enter")
    tab.settle("overview")
    assert fields(tab) == ("abcdab", "", "")
    visit(tab, "lens")
    assert fields(tab) == ("abcdab", "", "")
    tab.page.get_by_role("textbox", name="Target").fill("d")
    tab.page.keyboard.press("Enter")
    tab.settle("lens")
    assert fields(tab) == ("abcdab", "d", "")
    for expected, page in ((("abcdab", "", ""), "lens"), (("abcdab", "", ""), "overview")):
        back(tab, page)
        assert fields(tab) == expected
    tab.page.go_back()
    tab.settle("overview")
    assert fields(tab) == WRITTEN


def test_the_text_to_continue_follows_too(tab):
    text = tab.page.get_by_role("textbox", name="Text to continue")
    tab.open("steer", replace(LETTERS, steering=replace(LETTERS.steering, prompt="abcda")))
    assert text.input_value() == "abcda"
    text.fill("")
    text.press("Enter")
    tab.settle("steer")
    assert text.input_value() == "cbhafdged"  # left empty, the example
    visit(tab, "lens")
    visit(tab, "steer")
    assert text.input_value() == "cbhafdged"


def test_what_is_typed_while_the_page_computes_is_kept(tab):
    tab.open("overview", LETTERS)
    prompt = tab.page.get_by_role("textbox", name="Prompt")
    prompt.fill("abcdab")
    prompt.press("Enter")
    prompt.press_sequentially("cda", delay=30)
    tab.settle("overview")
    assert prompt.input_value() == "abcdabcda"
    prompt.press("Enter")
    tab.settle("overview")
    assert "a b c d a b c d a".split() == tab.page.locator("[role=option] .text").all_inner_texts()


def test_a_prompt_left_for_another_click_does_not_bring_the_old_target_back(tab):
    tab.open("overview", LETTERS)
    tab.page.get_by_role("textbox", name="Prompt").fill("abcdab")
    tab.page.locator("[role=option]").nth(2).click()  # leaves the field, which sends it, and picks
    tab.settle("overview")
    assert fields(tab) == ("abcdab", "", "")


@pytest.mark.asset
def test_the_fields_follow_another_model_and_its_example(tab):
    tab.open("overview", Investigation())
    assert fields(tab)[0].startswith("When Mary")
    choose(tab, "induction")
    tab.settle("overview")
    assert fields(tab) == WRITTEN
    visit(tab, "attention")
    assert fields(tab) == WRITTEN


@pytest.mark.asset
def test_the_fields_follow_another_model_that_reads_the_same_prompt(tab):
    tab.open("overview", replace(LETTERS, target=None))
    choose(tab, "smollm2-135m-instruct")
    tab.settle("overview")
    assert fields(tab) == ("fbhadgecfbhad", "", "a")
    assert "smollm2" in tab.page.locator(".st-key-model-slot button").inner_text()


def test_a_query_that_completes_an_address_is_no_entry_of_its_own(tab):
    tab.open("overview", LETTERS)
    first = tab.page.evaluate("history.length")
    entries = []
    for address in ("/lens", "/lens?m=induction", "/lens?m=induction&pos=1", "/steer?pos=1"):
        tab.page.evaluate("address => history.pushState({}, '', address)", address)
        entries.append(tab.page.evaluate("history.length") - first)
        assert tab.page.url.endswith(address)
    assert entries == [1, 1, 2, 3]  # Back to a bare address would write it again, and never pass


def test_back_passes_a_click_in_the_menu(new_tab):
    tab = new_tab().open("lens", LETTERS)
    before = tab.page.evaluate("history.length")
    visit(tab, "overview")
    assert tab.page.evaluate("history.length") == before + 1
    back(tab, "lens")
    assert fields(tab) == WRITTEN
