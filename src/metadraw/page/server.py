"""The server behind the page: examples in, probabilities out, on this machine alone.

It keeps nothing but the latest adapted classifiers, each under a random name that only the page
knows that sent its examples: people at several pages do not meet.
"""

from __future__ import annotations

import asyncio
import base64
import io
import logging
import random
import secrets
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import torch
from aiohttp import web
from omegaconf import DictConfig, OmegaConf
from PIL import Image

from metadraw.classifier import Classifier, FewShot
from metadraw.errors import InputError

log = logging.getLogger(__name__)
T = TypeVar("T")

CLASSES, EXAMPLES, NAME = (2, 10), (1, 10), 40  # least and most; letters
_BODY = 4 * 2**20  # bytes of a request at most
_SIDE = 1024  # pixels of a drawing at most
_KEPT = 64  # classifiers
_WAITING = 16  # requests at a time, the next one is sent away
_PAGE = Path(__file__).with_name("page.html")
_HEADERS = {
    # The page is one file and may talk to this server alone.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}


def serve(cfg: DictConfig) -> None:
    """Serve ``cfg.ckpt_path`` on ``http://127.0.0.1:cfg.port`` until interrupted.

    Raises:
        InputError: no such checkpoint, or the port is taken.
    """
    if OmegaConf.is_missing(cfg, "ckpt_path"):
        raise InputError("ckpt_path is missing: right is ckpt_path=PATH of a checkpoint")
    if type(cfg.port) is not int or not 0 < cfg.port < 65536:
        raise InputError(f"port={cfg.port}: must be a whole number from 1 to 65535")
    app = make_app(FewShot(cfg.ckpt_path))
    log.info("draw on http://127.0.0.1:%d (Ctrl-C ends it)", cfg.port)
    try:
        web.run_app(app, host="127.0.0.1", port=cfg.port, print=None, access_log=None)
    except OSError as error:
        raise InputError(
            f"port={cfg.port}: cannot be used ({error.strerror}): try another"
        ) from error


def make_app(meta_learner: FewShot) -> web.Application:
    """The application around one checkpoint."""
    app = web.Application(client_max_size=_BODY, middlewares=[_guard])
    app.add_routes(_Handlers(meta_learner).routes())
    return app


@web.middleware
async def _guard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    """Refuse other sites' pages, and tell what is wrong in one line."""
    # A page elsewhere whose name was made to lead here still sends that name.
    if request.host.rpartition(":")[0] not in ("127.0.0.1", "localhost"):
        return web.json_response({"error": f"host {request.host}: not this machine"}, status=403)
    if request.method == "POST" and request.content_type != "application/json":
        return web.json_response({"error": "right is application/json"}, status=415)
    try:
        response = await handler(request)
    except InputError as error:
        response = web.json_response({"error": str(error)}, status=400)
    except web.HTTPException as error:
        response = web.json_response({"error": error.reason}, status=error.status)
    response.headers.update(_HEADERS)
    return response


class _Handlers:
    def __init__(self, meta_learner: FewShot) -> None:
        self.meta_learner = meta_learner
        self.kept: OrderedDict[str, Classifier] = OrderedDict()
        self.waiting = 0
        # One at a time: a network's hooks are its own. On one core: the browser needs another, and
        # threads that wait for each other are slower than one.
        self.worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        try:
            meta_learner.data.setup()
        except InputError as error:
            log.info("no real drawings to fill in: %s", error)

    def routes(self) -> list[web.RouteDef]:
        return [
            web.get("/", self.page),
            web.get("/real", self.real),
            web.post("/adapt", self.adapt),
            web.post("/predict", self.predict),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def real(self, request: web.Request) -> web.StreamResponse:
        """Examples of random classes that the network was not trained on."""
        data = self.meta_learner.data
        if not hasattr(data, "drawings"):
            raise InputError("there are no real drawings on this machine")
        ways, shots = (_number(request.query, key) for key in ("ways", "shots"))
        _within("classes", ways, CLASSES)
        _within("examples", shots, EXAMPLES)
        names = random.sample(data.splits["test"], min(ways, len(data.splits["test"])))
        images = data.drawings.images
        found = []
        for name in names:
            of_class = images[data.drawings.classes.index(name)]
            rows = random.sample(range(len(of_class)), min(shots, len(of_class)))
            examples = [_as_url(255 - of_class[row] if data.ink else of_class[row]) for row in rows]
            found.append({"name": name, "examples": examples})
        return web.json_response({"classes": found})

    async def adapt(self, request: web.Request) -> web.StreamResponse:
        classes = _field(await _json(request), "classes", list)
        _within("classes", len(classes), CLASSES)
        examples: dict[str, list[Image.Image]] = {}
        for each in classes:
            name, drawings = _field(each, "name", str).strip(), _field(each, "examples", list)
            if not 0 < len(name) <= NAME or name in examples:
                raise InputError(f"class {name!r}: names are different, 1 to {NAME} letters each")
            _within(f"examples of {name!r}", len(drawings), EXAMPLES)
            examples[name] = [_image(drawing) for drawing in drawings]
        began = time.perf_counter()
        classifier = await self._work(lambda: self.meta_learner.adapt(examples))
        token = secrets.token_urlsafe(16)
        self.kept[token] = classifier
        while len(self.kept) > _KEPT:
            self.kept.popitem(last=False)
        about = {"algorithm": classifier.about["algorithm"], "steps": classifier.about["steps"]}
        return web.json_response(
            {"id": token, "classes": classifier.classes, "ms": _since(began), **about}
        )

    async def predict(self, request: web.Request) -> web.StreamResponse:
        body = await _json(request)
        token, drawing = _field(body, "id", str), _image(_field(body, "drawing", str))
        classifier = self.kept.get(token)
        if classifier is None:
            raise web.HTTPGone(reason="these examples are no longer kept: adapt again")
        self.kept.move_to_end(token)
        began = time.perf_counter()

        def chances() -> list[list[float]]:
            [seen] = self.meta_learner.prepare([drawing])
            return [
                classifier.probabilities([seen], adapted)[0].tolist() for adapted in (True, False)
            ]

        after, before = await self._work(chances)
        return web.json_response({"after": after, "before": before, "ms": _since(began)})

    async def _work(self, work: Callable[[], T]) -> T:
        if self.waiting >= _WAITING:
            raise web.HTTPTooManyRequests(reason="too much at once: try again in a moment")
        self.waiting += 1
        try:
            return await asyncio.get_running_loop().run_in_executor(self.worker, work)
        finally:
            self.waiting -= 1


async def _json(request: web.Request) -> Any:
    try:
        return await request.json()
    except ValueError as error:
        raise InputError("the request is not JSON") from error


def _field(body: Any, key: str, kind: type[T]) -> T:
    value = body.get(key) if isinstance(body, dict) else None
    if not isinstance(value, kind):
        raise InputError(f"{key}: right is a {kind.__name__}")
    return value


def _number(query: Any, key: str) -> int:
    try:
        return int(query[key])
    except (KeyError, ValueError) as error:
        raise InputError(f"{key}: right is a whole number") from error


def _within(what: str, number: int, limits: tuple[int, int]) -> None:
    if not limits[0] <= number <= limits[1]:
        raise InputError(f"{number} {what}: right is {limits[0]} to {limits[1]}")


def _image(url: Any) -> Image.Image:
    """A PNG image in a data URL, as a canvas gives it."""
    head, _, data = url.partition(",") if isinstance(url, str) else ("", "", "")
    try:
        if head != "data:image/png;base64":
            raise ValueError("not a PNG data URL")
        image = Image.open(io.BytesIO(base64.b64decode(data, validate=True)), formats=["PNG"])
        if max(image.size) > _SIDE:  # known before anything is decoded
            raise ValueError(f"{image.size[0]} x {image.size[1]} pixels, more than {_SIDE}")
        image.load()
    except Exception as error:  # a damaged image raises nearly anything
        raise InputError(f"a drawing cannot be read: {' '.join(str(error).split())}") from error
    return image


def _as_url(pixels: Any) -> str:
    image = Image.fromarray(pixels if pixels.ndim == 2 else pixels.transpose(1, 2, 0).squeeze())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()


def _since(began: float) -> float:
    return round(1000 * (time.perf_counter() - began), 1)
