"""The page in a real browser. Skipped where Debian's chromium or Playwright is not installed."""

import shutil

import httpx
import pytest
from served import Served
from serving_helpers import fake_bundle, hybrid_parts, load_fake

from serving.api.access.tokens import issue
from serving.api.application import build
from serving.runtime.settings import ServingSettings
from setrec.scoring.hybrid import HybridWeights

sync_api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(BROWSER is None, reason="there is no chromium")
WEIGHTS = HybridWeights(
    slots={"collaborative": 1.0, "semantic": 0.5}, components={"transitions_near": 3.0, "text_similarity": 2.0}
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("page")
    fake_bundle(place / "b", **hybrid_parts(WEIGHTS))
    return place


@pytest.fixture(scope="module")
def url(folder):
    served = Served(build(folder / "b", ServingSettings(auth="off", store=str(folder / "live.db")), load_fake))
    yield served.url
    served.close()


@pytest.fixture(scope="module")
def browser():
    with sync_api.sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def page(browser):
    """A page that notes whatever the browser complains about, and every address it asks."""
    opened = browser.new_page()
    opened.complaints, opened.asked = [], []
    opened.on(
        "console", lambda message: message.type in ("error", "warning") and opened.complaints.append(message.text)
    )
    opened.on("pageerror", lambda error: opened.complaints.append(str(error)))
    opened.on("request", lambda request: opened.asked.append(request.url))
    yield opened
    opened.close()


def expect(locator):
    return sync_api.expect(locator)


# A busy machine takes longer than the five seconds of the library's default; nothing is asserted of time.
sync_api.expect.set_options(timeout=60_000)


def test_items_are_found_and_clicked_into_a_history_that_is_answered_with_reasons(page, url):
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("60 items")
    page.get_by_label("Search by title").fill("«7»")
    page.get_by_role("button", name="Add Title «7» to the history").click()
    expect(page.locator("#history li")).to_have_count(1)
    expect(page.locator("#items li")).to_have_count(10)
    expected = httpx.post(f"{url}/v1/recommend", json={"history": ["item-7"], "explain": True}).json()
    assert page.locator("#items b").all_inner_texts() == [item["title"] for item in expected["items"]]
    page.locator("#items summary").first.click()
    expect(page.locator("#items details").first).to_contain_text("collaborative")
    expect(page.locator("#items summary").first).to_contain_text("Title «7»")
    assert page.complaints == []
    assert {address.split("/v1")[0].rstrip("/").split("/page")[0] for address in page.asked} == {url}


def test_sliders_filters_and_new_items_change_the_answer(page, url):
    page.goto(url)
    page.get_by_label("Search by title").fill("«7»")
    page.get_by_role("button", name="Add Title «7» to the history").click()
    expect(page.locator("#items li")).to_have_count(10)
    plain = page.locator("#items b").all_inner_texts()
    page.get_by_label("transitions_near").fill("0")
    page.get_by_label("Diversity").fill("0.9")
    expect(page.locator("#diversity-value")).to_have_text("0.90")
    body = {"history": ["item-7"], "diversity": 0.9, "factors": {"transitions_near": 0}}
    other = [item["title"] for item in httpx.post(f"{url}/v1/recommend", json=body).json()["items"]]
    assert other != plain
    expect(page.locator("#items b")).to_have_text(other)
    page.get_by_label("with the attribute").select_option("genre")
    page.get_by_label("equal to").select_option("b")
    expect(page.locator("#items li").first).to_contain_text("genre: a, b")
    expect(page.locator("#items li .attributes", has_text="genre: a, b")).to_have_count(10)
    page.get_by_label("without training interactions").check()
    body |= {"filter": {"attribute": "genre", "equals": "b"}, "new_only": True}
    new = [item["title"] for item in httpx.post(f"{url}/v1/recommend", json=body).json()["items"]]
    expect(page.locator("#items b")).to_have_text(new)


def test_the_keyboard_alone_is_enough(page, url):
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("60 items")
    page.get_by_label("Search by title").focus()
    page.keyboard.type("«12»")
    expect(page.locator("#found li")).to_have_count(1)
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")
    expect(page.locator("#items li")).to_have_count(10)
    page.locator("#items button", has_text="Similar").first.focus()
    page.keyboard.press("Enter")
    expect(page.locator("#similar li")).to_have_count(10)
    expect(page.locator("#similar-title")).to_be_focused()
    names = page.evaluate(
        "[...document.querySelectorAll('input,select,button')].filter(e => !e.closest('[hidden]')"
        " && !e.labels?.length && !e.getAttribute('aria-label') && !e.textContent.trim()).map(e => e.outerHTML)"
    )
    assert names == []  # every control has a name that a screen reader can say


def test_a_users_live_history_is_shown_and_answered(page, url):
    events = [{"user_id": "visitor", "item_id": f"item-{n}", "time": 1000.0 + n} for n in (4, 9)]
    assert httpx.post(f"{url}/v1/events", json={"events": events}).status_code == 200
    page.goto(url)
    page.get_by_label("A user's live history").fill("visitor")
    page.get_by_role("button", name="Load").click()
    expect(page.locator("#history span")).to_have_text(["Title «4»", "Title «9»"])
    expect(page.locator("#items li")).to_have_count(10)


def test_a_title_with_markup_stays_text(page, url):
    page.goto(url)
    expect(page.locator("#model")).to_contain_text("60 items")
    page.evaluate("add({item_id: 'item-1', title: '<img src=x onerror=alert(1)>'})")
    expect(page.locator("#history span")).to_have_text("<img src=x onerror=alert(1)>")
    assert page.locator("#history img").count() == 0


def test_dark_and_light_differ_and_both_have_contrast(page, url):
    def colours():
        return page.evaluate(
            "(() => { const s = getComputedStyle(document.body); return [s.color, s.backgroundColor]; })()"
        )

    def luminance(colour):
        parts = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(",")]
        linear = [part / 12.92 if part <= 0.03928 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    found = []
    for scheme in ("light", "dark"):
        page.emulate_media(color_scheme=scheme)
        page.goto(url)
        found.append(colours())
        low, high = sorted(map(luminance, found[-1]))
        assert (high + 0.05) / (low + 0.05) > 7  # WCAG 2, level AAA
    assert found[0] != found[1]


def test_a_token_is_asked_for_where_one_is_needed(page, folder):
    token = issue(folder / "tokens.json", "reader", ["read"])
    served = Served(build(folder / "b", ServingSettings(tokens=folder / "tokens.json"), load_fake))
    try:
        page.goto(served.url)
        expect(page.locator("#status")).to_contain_text("a bearer token is required")
        page.get_by_label("Token with the scope").fill(token)
        page.get_by_role("button", name="Use").click()
        expect(page.locator("#model")).to_contain_text("60 items")
        expect(page.locator("#token-form")).to_be_hidden()
    finally:
        served.close()


def test_the_documentation_lists_every_route_from_local_files(page, url):
    page.goto(f"{url}/docs")
    expect(page.locator(".opblock-summary-path", has_text="/v1/recommend")).to_be_visible()
    routes = sum(len(methods) for methods in httpx.get(f"{url}/openapi.json").json()["paths"].values())
    expect(page.locator(".opblock")).to_have_count(routes)
    assert page.complaints == []
    assert all(address.startswith((url, "data:")) for address in page.asked)
