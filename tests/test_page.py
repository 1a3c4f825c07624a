"""The page to draw on: its server by requests, and the whole in a real browser, if there is one."""

import asyncio
import base64
import io
import json
import shutil
import threading
from contextlib import contextmanager

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from PIL import Image, ImageDraw
from points import HANGS

import metadraw
from metadraw import FewShot, InputError
from metadraw.page.server import make_app, serve
from metadraw.train import train


@pytest.fixture
def meta_learner(tiny_for, tmp_path):
    """Trained for one epoch on synthetic drawings."""
    train(metadraw.compose(*tiny_for("unicorn_maml"), "trainer.max_epochs=1"))
    return FewShot(tmp_path / "run" / "checkpoints" / "best.ckpt")


def png(offset=0, size=100, kind="PNG"):
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).line([(10 + offset, 10), (60, 90), (90, 20)], 0, 5)
    stream = io.BytesIO()
    image.save(stream, kind)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def examples(names=("cat", "dog")):
    return {"classes": [{"name": n, "examples": [png(5 * i)]} for i, n in enumerate(names)]}


def talk(meta_learner, conversation):
    """A conversation with the server: a coroutine that takes its client."""

    async def main():
        async with TestClient(TestServer(make_app(meta_learner))) as client:
            return await conversation(client)

    return asyncio.run(main())


def test_adapt_and_predict(meta_learner):
    async def conversation(client):
        page = await client.get("/")
        assert page.headers["Content-Security-Policy"].startswith("default-src 'self'")
        text = await page.text()
        assert "http://" not in text.replace("http://www.w3.org", "")
        assert "https://" not in text
        first = await (await client.post("/adapt", json=examples())).json()
        other = await (await client.post("/adapt", json=examples(("a", "b", "c")))).json()
        assert first["classes"] == ["cat", "dog"]
        assert first["id"] != other["id"]
        for found, ways in ((first, 2), (other, 3)):
            asked = {"id": found["id"], "drawing": png()}
            answer = await (await client.post("/predict", json=asked)).json()
            assert sum(answer["after"]) == pytest.approx(1, abs=1e-5)
            # Before adaptation, this algorithm takes all classes for the same.
            assert answer["before"] == pytest.approx([1 / ways] * ways)
            direct = meta_learner.adapt(
                {c["name"]: [decoded(e) for e in c["examples"]] for c in examples_of(ways)}
            ).probabilities([decoded(png())])
            assert answer["after"] == pytest.approx(direct[0].tolist(), abs=1e-5)

    def examples_of(ways):
        return examples(("cat", "dog") if ways == 2 else ("a", "b", "c"))["classes"]

    def decoded(url):
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))

    talk(meta_learner, conversation)


def test_real_drawings_are_of_meta_test(meta_learner):
    async def conversation(client):
        found = await (await client.get("/real?ways=6&shots=3")).json()
        assert len(found["classes"]) == 6
        for each in found["classes"]:
            assert each["name"] in meta_learner.data.splits["test"]
            assert len(each["examples"]) == 3
        return await (await client.post("/adapt", json=found)).json()

    assert len(talk(meta_learner, conversation)["classes"]) == 6


WRONG = {
    "not json": ("/adapt", "{", 400, "not JSON"),
    "no classes": ("/adapt", {}, 400, "classes: right is a list"),
    "one class": ("/adapt", examples(["a"]), 400, "1 classes: right is 2 to 10"),
    "many classes": ("/adapt", examples("abcdefghijk"), 400, "11 classes: right is 2 to 10"),
    "same names": ("/adapt", examples(["a", "a"]), 400, "names are different"),
    "long name": ("/adapt", examples(["a", "b" * 41]), 400, "1 to 40 letters"),
    "no png": (
        "/adapt",
        {"classes": [{"name": n, "examples": ["x"]} for n in "ab"]},
        400,
        "a drawing cannot be read",
    ),
    "jpeg": (
        "/adapt",
        {"classes": [{"name": n, "examples": [png(kind="JPEG")]} for n in "ab"]},
        400,
        "a drawing cannot be read",
    ),
    "large": (
        "/adapt",
        {"classes": [{"name": n, "examples": [png(size=1100)]} for n in "ab"]},
        400,
        "1100 x 1100 pixels, more than 1024",
    ),
    "unknown": ("/predict", {"id": "x", "drawing": png()}, 410, "adapt again"),
    "body": ("/adapt", {"classes": "x" * (5 * 2**20)}, 413, "Too Large"),
    "real": ("/real?ways=50&shots=1", None, 400, "50 classes: right is 2 to 10"),
    "number": ("/real?ways=a", None, 400, "ways: right is a whole number"),
    "path": ("/../secret", None, 404, "Not Found"),
}


def test_what_the_server_refuses(meta_learner):
    async def conversation(client):
        for path, body, status, says in WRONG.values():
            if body is None:
                answer = await client.get(path)
            else:
                data = body if isinstance(body, str) else json.dumps(body)
                answer = await client.post(
                    path, data=data, headers={"Content-Type": "application/json"}
                )
            text = (await answer.json())["error"]
            assert (answer.status, says in text) == (status, True), (path, answer.status, text)
        plain = await client.post("/adapt", data="{}", headers={"Content-Type": "text/plain"})
        assert plain.status == 415
        elsewhere = await client.get("/", headers={"Host": "elsewhere.example:80"})
        assert elsewhere.status == 403

    talk(meta_learner, conversation)


def test_too_much_at_once_is_sent_away(meta_learner, monkeypatch):
    """None of 40 is answered before the server has had to decide about all of them."""
    adapt, all_asked = meta_learner.adapt, threading.Event()
    monkeypatch.setattr(meta_learner, "adapt", lambda e: all_asked.wait(HANGS) and adapt(e))

    async def conversation(client):
        many = [asyncio.create_task(client.post("/adapt", json=examples())) for _ in range(40)]
        for sent_away in range(24):
            await asyncio.wait(many, return_when=asyncio.FIRST_COMPLETED)
            first = next(task for task in many if task.done())
            assert first.result().status == 429, f"{sent_away} were sent away"
            many.remove(first)
        all_asked.set()
        return [answer.status for answer in await asyncio.gather(*many)]

    assert talk(meta_learner, conversation) == [200] * 16


@pytest.mark.parametrize(
    ("typed", "says"),
    [
        (["ckpt_path=no.ckpt"], "there is no such file"),
        ([], "ckpt_path is missing"),
        (["ckpt_path=no.ckpt", "port=70000"], "port=70000"),
    ],
)
def test_serve_refuses(typed, says, tmp_path):
    cfg = metadraw.compose(*typed, f"paths.output_dir={tmp_path}", config="demo")
    with pytest.raises(InputError, match=says):
        serve(cfg)


# ---- in a browser ----------------------------------------------------------------------------


@contextmanager
def running(meta_learner):
    """The server in a thread of its own; gives its address."""
    loop = asyncio.new_event_loop()
    runner = web.AppRunner(make_app(meta_learner))

    async def start():
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return site._server.sockets[0].getsockname()[1]

    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    port = asyncio.run_coroutine_threadsafe(start(), loop).result(30)
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(30)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()


@pytest.fixture(params=[(1100, 900), (390, 844)], ids=["desk", "phone"])
def browser(request):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    width, height = request.param
    mobile = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 1}}
    options.add_experimental_option("mobileEmulation", mobile)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    found = webdriver.Chrome(options, webdriver.ChromeService(driver))
    try:
        yield found
    finally:
        found.quit()


def wait(browser, condition, what):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, 20, 0.05).until(lambda b: condition(b), what)


def css(browser, selector):
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


def draw(browser, points):
    from selenium.webdriver.common.action_chains import ActionChains

    [pad] = css(browser, "#pad")
    middle = pad.size["width"] / 2
    chain = ActionChains(browser, duration=20)
    chain.move_to_element_with_offset(pad, *(int(p - middle) for p in points[0])).click_and_hold()
    for x, y in points[1:]:
        chain.move_to_element_with_offset(pad, int(x - middle), int(y - middle))
    chain.release().perform()


ZIGZAG = [(40, 200), (90, 60), (140, 200), (190, 60), (240, 200)]
BOX = [(60, 60), (220, 60), (220, 220), (60, 220), (60, 60)]


def test_drawing_in_a_browser(browser, meta_learner, tmp_path):
    from selenium.webdriver.common.keys import Keys

    with running(meta_learner) as address:
        browser.get(address)
        for label, points in enumerate([ZIGZAG, BOX]):
            draw(browser, points)
            css(browser, "#targets button")[label].click()
            wait(browser, lambda b, n=label: len(css(b, ".example")) == n + 1, "an example")
        wait(browser, lambda b: "Adapted to 2" in css(b, "#status")[0].text, "adapted")
        draw(browser, [(x + 10, y + 5) for x, y in ZIGZAG])
        wait(browser, lambda b: all(c.text.endswith("%") for c in css(b, ".chance")), "a chance")
        chances = [int(c.text[:-2]) for c in css(browser, ".chance")]
        assert sum(chances) in (99, 100, 101)
        browser.save_screenshot(str(tmp_path / "page.png"))
        assert not browser.execute_script(
            "return document.documentElement.scrollWidth > document.documentElement.clientWidth"
        ), "wider than the window"

        css(browser, "#undo")[0].click()
        wait(browser, lambda b: not css(b, ".chance")[0].text, "no drawing, no chance")
        assert not css(browser, "#undo")[0].is_enabled()

        # By keyboard: a line down and right, then to the second class by its number.
        [pad] = css(browser, "#pad")
        pad.send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 8, *[Keys.ARROW_RIGHT] * 8, Keys.SPACE, "2")
        wait(browser, lambda b: len(css(b, ".example")) == 3, "the example drawn by keys")
        css(browser, ".example")[2].click()
        wait(browser, lambda b: len(css(b, ".example")) == 2, "one example less")

        css(browser, "#fill")[0].click()
        wait(browser, lambda b: len(css(b, ".example")) == 15, "real drawings")
        wait(browser, lambda b: "Adapted to 5" in css(b, "#status")[0].text, "adapted again")

        exported = json.dumps({"classes": examples(["x", "y", "z"])["classes"]})
        (tmp_path / "examples.json").write_text(exported)
        css(browser, "#import")[0].send_keys(str(tmp_path / "examples.json"))
        wait(browser, lambda b: "Adapted to 3" in css(b, "#status")[0].text, "imported")
        names = [e.get_attribute("value") for e in css(browser, ".class input")]
        assert names == ["x", "y", "z"]
        css(browser, "#empty")[0].click()
        wait(browser, lambda b: not css(b, ".example"), "all removed")
        wrong = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not wrong
