"""The page to draw on: its server, tested by requests, and ``demo.py`` in a browser, if any."""

import asyncio
import base64
import functools
import io
import json
import math
import shutil
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import ENVIRONMENT, ROOT
from PIL import Image, ImageDraw
from points import HANGS

import metadraw
from metadraw import FewShot, InputError
from metadraw.training.train import train
from metadraw.use.calibration import Calibration
from metadraw.use.page.server import make_app, serve


@pytest.fixture(scope="module")
def checkpoint_of(synthetic_folder, tmp_path_factory):
    """A checkpoint of an algorithm, trained for one epoch on synthetic drawings."""

    @functools.cache
    def make(algorithm):
        folder = tmp_path_factory.mktemp(algorithm)
        batches = [f"data.{split}_batches=1" for split in ("train", "val", "test")]
        data = ["data.source=path", f"data.path={synthetic_folder}", "data.samples_per_class=20"]
        run = ["trainer=cpu", "trainer.max_epochs=1", f"paths.output_dir={folder}"]
        small = ["data.tasks_per_batch=2", "model.hidden_channels=4", "algorithm.inner_steps=2"]
        quiet = ["callbacks.progress_bar.refresh_rate=0"]
        typed = [f"algorithm={algorithm}", *data, *batches, *small, *run, *quiet]
        train(metadraw.compose(*typed))
        return folder / "checkpoints" / "best.ckpt"

    return make


@pytest.fixture(scope="module")
def meta_learner(checkpoint_of):
    return FewShot(checkpoint_of("unicorn_maml"))


def png(offset=0, size=100, kind="PNG"):
    image = Image.new("L", (size, size), 255)
    ImageDraw.Draw(image).line([(10 + offset, 10), (60, 90), (90, 20)], 0, 5)
    stream = io.BytesIO()
    image.save(stream, kind)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def examples(names=("cat", "dog")):
    return {"classes": [{"name": n, "examples": [png(5 * i)]} for i, n in enumerate(names)]}


def talk(meta_learner, conversation, token=None):
    """A conversation with the server: a coroutine that takes its client."""

    async def main():
        async with TestClient(TestServer(make_app(meta_learner, token))) as client:
            return await conversation(client)

    return asyncio.run(main())


def test_adapt_and_predict(meta_learner, monkeypatch):
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
            # Before adaptation, all classes are equally likely for this algorithm.
            assert answer["before"] == pytest.approx([1 / ways] * ways)
            direct = meta_learner.adapt(
                {c["name"]: [decoded(e) for e in c["examples"]] for c in examples_of(ways)}
            ).probabilities([decoded(png())])
            assert answer["after"] == pytest.approx(direct[0].tolist(), abs=1e-5)
            assert answer["none"] is False
        monkeypatch.setattr(meta_learner, "calibration", Calibration(threshold=math.inf))
        assert (await (await client.post("/predict", json=asked)).json())["none"] is True

    def examples_of(ways):
        return examples(("cat", "dog") if ways == 2 else ("a", "b", "c"))["classes"]

    def decoded(url):
        return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2])))

    talk(meta_learner, conversation)


def test_the_class_that_another_example_would_help(meta_learner):
    async def conversation(client):
        body = examples(("cat", "dog", "owl"))
        for number in (0, 2):
            body["classes"][number]["examples"] *= 2
        found = await (await client.post("/adapt", json=body)).json()
        answer = await client.post("/weakest", json={"id": found["id"]})
        assert await answer.json() == {"place": 1}
        assert (await client.post("/weakest", json={"id": "x"})).status == 410

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
    "no classes": ("/adapt", {}, 400, "classes: expected a list"),
    "one class": ("/adapt", examples(["a"]), 400, "1 classes: expected 2 to 10"),
    "many classes": ("/adapt", examples("abcdefghijk"), 400, "11 classes: expected 2 to 10"),
    "same names": ("/adapt", examples(["a", "a"]), 400, "two classes are called 'a'"),
    "same to the eye": ("/adapt", examples(["caf\u00e9", " cafe\u0301 "]), 400, "two classes are"),
    "no name": ("/adapt", examples(["a", " "]), 400, "1 to 40 characters"),
    "long name": ("/adapt", examples(["a", "b" * 41]), 400, "1 to 40 characters"),
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
    "real": ("/real?ways=50&shots=1", None, 400, "50 classes: expected 2 to 10"),
    "number": ("/real?ways=a", None, 400, "ways: expected a whole number"),
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
        return await refused(client, "", with_token=False)

    talk(meta_learner, conversation)


async def refused(client, prefix, with_token):
    """Other sites' pages are refused, however they get here."""
    port = client.port
    for host, status in {
        f"127.0.0.1:{port}": 200,
        f"localhost:{port}": 200,
        f"[::1]:{port}": 200,
        "127.0.0.1": 200,  # port 80
        f"192.168.1.5:{port}": 200 if with_token else 403,
        f"{socket.gethostname()}.local": 200 if with_token else 403,
        f"elsewhere.example:{port}": 403,
        "127.0.0.1.elsewhere.example": 403,
        "[::1": 403,
    }.items():
        answer = await client.get(f"{prefix}/", headers={"Host": host})
        assert answer.status == status, host
    here = f"http://127.0.0.1:{port}"
    for origin, status in {
        here: 200,
        "http://elsewhere.example": 403,
        "null": 403,
        "http://[": 403,
    }.items():
        headers = {"Origin": origin, "Host": f"127.0.0.1:{port}"}
        answer = await client.post(f"{prefix}/adapt", json=examples(), headers=headers)
        assert answer.status == status, origin


def test_a_token_for_everything_on_the_network(meta_learner):
    async def conversation(client):
        for path in ("/", "/about", "/real?ways=2&shots=1", "/secre", "/secret2/", "/x/secret/"):
            answer = await client.get(path)
            assert (answer.status, (await answer.json())["error"]) == (
                403,
                "the token is missing or wrong: open the link of demo.py",
            ), path
        for path in ("/adapt", "/predict", "/wrong/adapt"):
            assert (await client.post(path, json=examples())).status == 403
        for path in ("/secret", "/secret/", "/secret/about"):
            assert (await client.get(path)).status == 200
        assert (await client.get("/secret/other")).status == 404
        await refused(client, "/secret", with_token=True)

    talk(meta_learner, conversation, token="secret")


def test_only_as_many_classes_as_can_be_learned(checkpoint_of):
    async def conversation(client):
        about = await (await client.get("/about")).json()
        assert (about["algorithm"], about["ways"]) == ("MAML", [5, 5])
        for path in ("/real?ways=4&shots=1", "/real?ways=6&shots=1"):
            answer = await client.get(path)
            assert "classes: expected 5" in (await answer.json())["error"]
        answer = await client.post("/adapt", json=examples())
        assert (await answer.json())["error"] == "2 classes: expected 5"
        assert (await client.post("/adapt", json=examples("abcde"))).status == 200

    talk(FewShot(checkpoint_of("maml")), conversation)


def test_too_much_at_once_is_sent_away(meta_learner, monkeypatch):
    """None of 40 requests is answered before the server has decided about all of them."""
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
        (["ckpt_path=null"], "ckpt_path=null: expected ckpt_path=PATH"),
        (["port=70000"], "port=70000: must be a whole number from 1"),
        (["port=null"], "port=None: must be a whole number"),
        (["port=http"], "port=http: must be a whole number"),
        (["host=nowhere.invalid"], "host=nowhere.invalid: there is no such address; expected 127"),
        (["host=192.0.2.77"], "host=192.0.2.77: not an address of this machine; expected 127"),
        (["host="], "host=: expected 127.0.0.1"),
        (["host=null"], "host=null: expected 127.0.0.1"),
    ],
)
def test_serve_refuses(typed, says, checkpoint_of, tmp_path):
    path = (
        [f"ckpt_path={checkpoint_of('unicorn_maml')}"] if typed and "ckpt" not in typed[0] else []
    )
    cfg = metadraw.compose(*path, *typed, f"paths.output_dir={tmp_path}", config="demo")
    with pytest.raises(InputError) as refused:
        serve(cfg)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use(host, checkpoint_of):
    with socket.create_server((host, 0)) as other:
        port = other.getsockname()[1]
        typed = [f"ckpt_path={checkpoint_of('unicorn_maml')}", f"host={host}", f"port={port}"]
        with pytest.raises(InputError, match=f"port={port}: cannot be used .*: try another"):
            serve(metadraw.compose(*typed, config="demo"))


# ---- demo.py in a browser --------------------------------------------------------------------


@contextmanager
def demo(checkpoint, folder, *typed):
    """``demo.py`` on a free port; yields its output up to the line with its address."""
    command = [sys.executable, "demo.py", f"ckpt_path={checkpoint}", "port=0", *typed]
    command += [f"hydra.run.dir={folder}"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **pipes) as process:
        try:
            said = []
            for line in process.stdout:
                said.append(line)
                if "draw on http" in line:
                    break
            else:
                pytest.fail(f"it ended: {said}")
            yield line.partition("draw on ")[2].split()[0], process
        finally:
            process.send_signal(signal.SIGINT)
            process.communicate(timeout=HANGS)


@pytest.fixture(scope="module")
def address(checkpoint_of, tmp_path_factory):
    with demo(checkpoint_of("unicorn_maml"), tmp_path_factory.mktemp("demo")) as (address, _):
        yield address


def chrome(width, height, touch):
    webdriver = pytest.importorskip("selenium.webdriver")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("Chromium and its driver are not installed")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in ("headless", "no-sandbox", "disable-gpu", "disable-background-networking"):
        options.add_argument(f"--{flag}")
    metrics = {"width": width, "height": height, "pixelRatio": 1 + touch, "touch": touch}
    mobile = {"deviceMetrics": metrics | {"mobile": touch}}
    options.add_experimental_option("mobileEmulation", mobile)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    return webdriver.Chrome(options, webdriver.ChromeService(driver))


@contextmanager
def watched(browser):
    """A browser that must have no errors at the end of the test."""
    try:
        yield browser
        assert not [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
    finally:
        browser.quit()


@pytest.fixture
def desk():
    with watched(chrome(1280, 900, False)) as browser:
        yield browser


@pytest.fixture
def phone():
    with watched(chrome(390, 844, True)) as browser:
        yield browser


@pytest.fixture(params=[(1280, 900, False), (390, 844, True)], ids=["desk", "phone"])
def browser(request):
    with watched(chrome(*request.param)) as browser:
        browser.pointer = "touch" if request.param[2] else "mouse"
        yield browser


def wait(browser, condition, what):
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, HANGS, 0.05).until(lambda b: condition(b), what)


def css(browser, selector):
    from selenium.webdriver.common.by import By

    return browser.find_elements(By.CSS_SELECTOR, selector)


def texts(browser, selector):
    return [element.text for element in css(browser, selector)]


def names(browser):
    return [field.get_attribute("value") for field in css(browser, ".class input")]


def draw(browser, points, pointer="mouse"):
    """One stroke; points are in 320ths of the drawing area."""
    from selenium.webdriver.common.actions.action_builder import ActionBuilder
    from selenium.webdriver.common.actions.pointer_input import PointerInput

    [pad] = css(browser, "#pad")
    actions = ActionBuilder(browser, mouse=PointerInput(pointer, "pointer"), duration=20)
    for number, point in enumerate(points):
        actions.pointer_action.move_to(
            pad, *(int((p / 320 - 0.5) * pad.size["width"]) for p in point)
        )
        if not number:
            actions.pointer_action.pointer_down()
    actions.pointer_action.pointer_up()
    actions.perform()


def import_(browser, classes, folder):
    (folder / "examples.json").write_text(json.dumps(classes))
    css(browser, "#import")[0].send_keys(str(folder / "examples.json"))


def opened(browser, address):
    browser.get(address)
    wait(browser, lambda b: "none yet" in css(b, "#status")[0].text, "the page")


def focused(browser):
    return browser.execute_script(
        "return document.activeElement.id || document.activeElement.ariaLabel"
    )


def chances(browser):
    """The probabilities that are shown, if all are."""
    found = texts(browser, ".chance")
    return found and all(chance.endswith("%") for chance in found) and found


ZIGZAG = [(40, 200), (90, 60), (140, 200), (190, 60), (240, 200)]
BOX = [(60, 60), (220, 60), (220, 220), (60, 220), (60, 60)]


def test_drawing_in_a_browser(browser, address, tmp_path):
    from selenium.webdriver.common.keys import Keys

    opened(browser, address)
    for label, points in enumerate([ZIGZAG, BOX]):
        draw(browser, points, browser.pointer)
        css(browser, "#targets button")[label].click()
        wait(browser, lambda b, n=label: len(css(b, ".example")) == n + 1, "an example")
    wait(browser, lambda b: "Adapted to 2" in css(b, "#status")[0].text, "adapted")
    draw(browser, [(x + 10, y + 5) for x, y in ZIGZAG], browser.pointer)
    wait(browser, chances, "a chance")
    # All at once: more of the drawing may still be arriving.
    shown, verdict, best = browser.execute_script(
        "const texts = s => [...document.querySelectorAll(s)].map(e => e.innerText.trim());"
        "return [texts('.chance'), texts('#verdict')[0], texts('.best .name')]"
    )
    shown = dict(zip(["first", "second"], (int(chance[:-2]) for chance in shown), strict=True))
    assert sum(shown.values()) in (99, 100, 101)
    # The verdict is the more probable class.
    assert shown[best[0]] == max(shown.values())
    assert verdict in (f"This looks like {best[0]}", f"Not sure, perhaps {best[0]}")
    assert browser.execute_script(
        "const page = document.documentElement; return page.scrollWidth <= page.clientWidth"
    ), "wider than the window"
    browser.save_screenshot(str(tmp_path / "page.png"))

    css(browser, "#undo")[0].click()
    wait(browser, lambda b: texts(b, ".chance") == ["", ""], "no drawing, no chance")
    assert not css(browser, "#clear")[0].is_enabled()

    # By keyboard: a line down and right, then to the second class by its number.
    [pad] = css(browser, "#pad")
    pad.send_keys(Keys.SPACE, *[Keys.ARROW_DOWN] * 8, *[Keys.ARROW_RIGHT] * 8, Keys.SPACE, "2")
    wait(browser, lambda b: len(css(b, ".example")) == 3, "the example drawn by keys")
    css(browser, ".example")[2].click()
    wait(browser, lambda b: len(css(b, ".example")) == 2, "one example less")
    # The keys are explained only on devices with a keyboard.
    for explained in css(browser, "#keys, #targets kbd"):
        assert explained.is_displayed() == (browser.pointer == "mouse")

    css(browser, "#fill")[0].click()
    wait(browser, lambda b: len(css(b, ".example")) == 15, "real drawings")
    wait(browser, lambda b: "Adapted to 5" in css(b, "#status")[0].text, "adapted again")
    import_(browser, examples(["x", "y", "z"]), tmp_path)
    wait(browser, lambda b: "Adapted to 3" in css(b, "#status")[0].text, "imported")
    assert names(browser) == ["x", "y", "z"]
    css(browser, "#empty")[0].click()
    wait(browser, lambda b: not css(b, ".example"), "all removed")


def test_the_page_says_which_class_to_draw_next(browser, address, tmp_path):
    def hint():
        """The verdict, the class that is marked, and whether both are in view with the drawing."""
        return browser.execute_script(
            "scrollTo(0, 0); const next = [...document.querySelectorAll('#targets .next')];"
            "const seen = [verdict, pad, ...next].every(e => {"
            "const { top, bottom, right } = e.getBoundingClientRect();"
            "return top >= 0 && bottom <= innerHeight && right <= innerWidth; });"
            "return [verdict.innerText, next.map(e => e.title), seen,"
            "verdict.scrollWidth <= verdict.clientWidth]"
        )

    opened(browser, address)
    classes = examples(["lollipop", "hat", "tent"])
    classes["classes"][0]["examples"] *= 2
    classes["classes"][2]["examples"] *= 3
    import_(browser, classes, tmp_path)
    wanted = ["Try it, or draw another hat", ["hat"], True, True]
    wait(browser, lambda b: hint() == wanted, "a hint")
    browser.save_screenshot(str(tmp_path / "hint.png"))
    draw(browser, ZIGZAG, browser.pointer)
    wait(browser, chances, "chances")
    assert hint()[1] == []  # the marks are now those of the drawing
    for _ in range(2):
        css(browser, "#undo")[0].click()
    wait(browser, lambda b: "none yet" in css(b, "#status")[0].text, "no example")
    css(browser, "#more")[0].click()
    import_(browser, examples(["a", "b"]), tmp_path)
    wait(browser, lambda b: "draw another" in hint()[0], "a hint again")
    css(browser, "#more")[0].click()
    wait(browser, lambda b: hint()[:2] == ["Try it, or draw a first class 3", ["class 3"]], "")


def resized(browser, width, height, ratio):
    """Another screen with touch."""
    metrics = {"width": width, "height": height, "deviceScaleFactor": ratio, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    wait(browser, lambda b: b.execute_script("return innerHeight") == height, "resized")


@pytest.mark.parametrize("count", [2, 5, 10])
def test_all_probabilities_are_in_view_beside_the_drawing(count, phone, address, tmp_path):
    opened(phone, address)
    called = [f"{number} is a class with a name of 40 letters"[:40] for number in range(count)]
    import_(phone, examples(called), tmp_path)
    wait(phone, lambda b: f"Adapted to {count}" in css(b, "#status")[0].text, "adapted")
    draw(phone, ZIGZAG, "touch")
    wait(phone, chances, "chances")
    for width, height in [(390, 844), (360, 640), (320, 568), (667, 375)]:
        resized(phone, width, height, 3)
        side, seen, apart = phone.execute_script(
            "scrollTo(0, 0); const box = e => e.getBoundingClientRect();"
            "const all = s => [...document.querySelectorAll(s)];"
            "const inside = ({ left, top, right, bottom, width }) => width && left >= 0 && top >= 0"
            " && right <= innerWidth && bottom <= innerHeight;"
            "return [inside(box(pad)) && box(pad).width,"
            "all('.chance, .bars').filter(e => inside(box(e))).length,"
            "all('.name').every(e => box(e).right <= box(e.nextElementSibling).left)]"
        )
        assert side >= 176, (width, height)
        assert seen == 2 * count, (width, height)
        assert apart, "a name covers its probability"


# Ink at two corners of the smallest bitmap, and at the edges of the drawing area.
CORNERS = [(1, 1), (160, 40), (319, 319)]


def test_thumbnails_are_whole_and_sharp(browser, address, tmp_path):
    def painted():
        """Side in pixels of the screen and of the picture; the ink's box; dark and grey pixels."""
        return browser.execute_script(
            "return [...document.querySelectorAll('.example canvas')].map(c => {"
            "const { data } = c.getContext('2d').getImageData(0, 0, c.width, c.height);"
            "const dark = [], grey = [];"
            "for (let i = 0; i < c.width * c.height; i++)"
            " if (data[4 * i] < 64) dark.push(i); else if (data[4 * i] < 192) grey.push(i);"
            "const ink = [...dark, ...grey], xs = ink.map(i => i % c.width),"
            " ys = ink.map(i => Math.floor(i / c.width));"
            "return [c.clientWidth * devicePixelRatio, c.width, [Math.min(...xs), Math.min(...ys),"
            " Math.max(...xs), Math.max(...ys)], dark.length, grey.length] })"
        )

    def check(count):
        wait(browser, lambda b: [p[0] for p in painted()] == [p[1] for p in painted()], "sharp")
        wait(browser, lambda b: all(p[3] for p in painted()), "painted")
        assert len(painted()) == count
        for _, side, box, *_ in painted():
            assert min(box) > 0.05 * side
            assert max(box) < 0.95 * side
            assert max(box[2] - box[0], box[3] - box[1]) > 0.7 * side

    bitmap = Image.new("L", (28, 28), 255)
    ImageDraw.Draw(bitmap).line([(0, 0), (10, 4), (27, 27)], 0, 1)
    stream = io.BytesIO()
    bitmap.save(stream, "PNG")
    url = "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
    opened(browser, address)
    import_(browser, {"classes": [{"name": n, "examples": [url, png()]} for n in "ab"]}, tmp_path)
    wait(browser, lambda b: "Adapted to 2" in css(b, "#status")[0].text, "adapted")
    draw(browser, CORNERS, browser.pointer)
    css(browser, "#targets button")[0].click()
    wait(browser, lambda b: len(css(b, ".example")) == 5, "an example")
    check(5)
    if browser.pointer == "touch":  # with small pixels, a bitmap is enlarged
        for screen in [(390, 844, 2), (412, 915, 3)]:
            resized(browser, *screen)
            check(5)
            *_, dark, grey = painted()[0]
            assert dark > grey, "blurred"


def test_whatever_was_done_can_be_undone(desk, address, tmp_path):
    from selenium.webdriver.common.keys import Keys

    def seen():
        return names(desk), *desk.execute_script(
            "const pictures = one => [...one.querySelectorAll('canvas')].map(c => c.picture);"
            "return [[...document.querySelectorAll('.class')].map(pictures), pad.toDataURL()]"
        )

    def by_keys():
        desk.execute_script("document.activeElement.blur()")
        css(desk, "body")[0].send_keys(Keys.CONTROL, "z")

    def type_name():
        css(desk, ".class input")[1].send_keys(" too", Keys.ENTER)

    opened(desk, address)
    import_(desk, examples(["x", "y", "z"]), tmp_path)
    wait(desk, lambda b: "Adapted to 3" in css(b, "#status")[0].text, "imported")
    actions = [
        lambda: draw(desk, ZIGZAG),
        lambda: css(desk, "#clear")[0].click(),
        lambda: draw(desk, BOX),
        lambda: css(desk, "#targets button")[1].click(),
        type_name,
        lambda: css(desk, ".example")[0].click(),
        lambda: css(desk, ".remove")[0].click(),
        lambda: css(desk, "#more")[0].click(),
        lambda: css(desk, "#fill")[0].click(),
        lambda: css(desk, "#empty")[0].click(),
        lambda: import_(desk, examples(["p", "q"]), tmp_path),
    ]
    states = [seen()]
    for number, action in enumerate(actions):
        action()
        wait(desk, lambda b: seen() != states[-1], f"action {number}")
        states.append(seen())
    # A reload loses nothing, and earlier changes can still be undone.
    desk.refresh()
    wait(desk, lambda b: "Adapted to 2" in css(b, "#status")[0].text, "the page again")
    assert seen() == states[-1]
    for number, state in reversed(list(enumerate(states[:-1]))):
        if number % 2:
            css(desk, "#undo")[0].click()
        else:
            by_keys()
        wait(desk, lambda b, state=state: seen() == state, f"action {number} undone")
    wait(desk, lambda b: "Adapted to 3" in css(b, "#status")[0].text, "adapted to them again")


def test_names_and_focus(desk, address):
    from selenium.webdriver.common.keys import Keys

    opened(desk, address)
    field = css(desk, ".class input")[0]
    field.send_keys(Keys.CONTROL, "a")
    # Reported immediately, not when the field loses focus.
    field.send_keys("second")
    assert "Another class is called second" in css(desk, ".problem")[0].text
    field.send_keys(" one")
    assert texts(desk, ".problem") == ["", ""]
    field.send_keys(Keys.ENTER)
    wait(desk, lambda b: texts(b, "#targets button")[0].endswith("second one"), "renamed")
    assert focused(desk) == "Name of class 1"
    field.send_keys("s", Keys.TAB)
    assert names(desk) == ["second ones", "second"]
    assert focused(desk) == "Name of class 2"  # both Remove are disabled
    # A click while a name is typed is not lost, nor is the keyboard focus.
    draw(desk, BOX)
    css(desk, ".class input")[1].send_keys("!")
    css(desk, "#targets button")[1].click()
    wait(desk, lambda b: len(css(b, ".example")) == 1, "an example")
    assert names(desk) == ["second ones", "second!"]
    assert focused(desk) == "pad"
    for _ in range(2):
        draw(desk, ZIGZAG)
        css(desk, "#pad")[0].send_keys("2")
    wait(desk, lambda b: len(css(b, ".example")) == 3, "three examples")
    css(desk, ".example")[1].send_keys(Keys.ENTER)
    wait(desk, lambda b: len(css(b, ".example")) == 2, "two examples")
    assert focused(desk) == "Remove example 2 of second!"
    css(desk, ".example")[1].send_keys(Keys.ENTER)
    assert focused(desk) == "Remove example 1 of second!"
    # If two names are the same, no class is lost.
    css(desk, ".class input")[0].send_keys(Keys.CONTROL, "a")
    css(desk, ".class input")[0].send_keys("second!", Keys.ENTER)
    draw(desk, BOX)
    css(desk, "#targets button")[0].click()
    wait(desk, lambda b: "Adapted to 2" in css(b, "#status")[0].text, "two classes")
    assert all("Another class" in text for text in texts(desk, ".problem"))


def test_a_checkpoint_of_fixed_ways(desk, checkpoint_of, tmp_path):
    with demo(checkpoint_of("maml"), tmp_path) as (address, _):
        opened(desk, address)
        assert len(css(desk, ".class")) == 5
        assert "(MAML) learns exactly 5 classes" in css(desk, "#fixed")[0].text
        assert not any(button.is_displayed() for button in css(desk, "#more, .remove"))
        draw(desk, BOX)
        css(desk, "#targets button")[3].click()
        lacking = "Still without an example: first, second, class 3, class 5."
        wait(desk, lambda b: css(b, "#status")[0].text == lacking, "what is lacking")
        import_(desk, examples("abc"), tmp_path)
        wait(desk, lambda b: "has 3 classes; 5 can" in css(b, "#status")[0].text, "refused")
        css(desk, "#fill")[0].click()
        wait(desk, lambda b: "Adapted to 5" in css(b, "#status")[0].text, "adapted")
        draw(desk, ZIGZAG)
        wait(desk, chances, "five chances")


def test_from_another_device(desk, checkpoint_of, tmp_path):
    with demo(checkpoint_of("unicorn_maml"), tmp_path, "host=0.0.0.0") as (address, process):
        assert "anyone in your network who has this link" in process.stdout.readline()
        root, _, token = address.rpartition("/")
        assert len(token) == 16
        with pytest.raises(urllib.error.HTTPError, match="403"):
            urllib.request.urlopen(root)
        opened(desk, address)
        css(desk, "#fill")[0].click()
        wait(desk, lambda b: "Adapted to 5" in css(b, "#status")[0].text, "adapted")
        draw(desk, ZIGZAG)
        wait(desk, chances, "five chances")
