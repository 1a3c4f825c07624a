"""The server behind the page: examples in, probabilities out.

It keeps only the latest adapted classifiers, each under a random name that is known only to the
page that sent its examples: pages do not see each other's. It listens to this machine only, unless
another address is chosen; then everyone needs a token, which is part of the page's address.
"""

from __future__ import annotations

import asyncio
import base64
import errno
import io
import ipaddress
import logging
import os
import random
import secrets
import socket
import time
import unicodedata
from collections import OrderedDict
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import torch
from aiohttp import web
from omegaconf import DictConfig
from PIL import Image

from metadraw.command.config import check_path
from metadraw.errors import InputError
from metadraw.use.classifier import Answer, Classifier, FewShot

log = logging.getLogger(__name__)
T = TypeVar("T")

CLASSES, EXAMPLES, NAME = (2, 10), (1, 10), 40  # minimum and maximum; characters
_BODY = 4 * 2**20  # bytes of a request at most
_SIDE = 1024  # pixels of a drawing at most
_KEPT = 64  # classifiers
_WAITING = 16  # requests at a time; more are refused
_PAGE = Path(__file__).with_name("page.html")
_HEADERS = {
    # The page is one file and may talk to this server only.
    "Content-Security-Policy": "default-src 'self' 'unsafe-inline'; img-src 'self' data:",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}


def serve(cfg: DictConfig) -> None:
    """Serve ``cfg.ckpt_path`` on ``cfg.host`` and ``cfg.port`` until interrupted.

    Port 0 is any free one. The log shows the address to open.

    Raises:
        InputError: no such checkpoint, no such address, or the port is taken.
    """
    check_path(cfg, "ckpt_path", "a checkpoint")
    if type(cfg.port) is not int or not 0 <= cfg.port < 65536:
        raise InputError(
            f"port={cfg.port}: must be a whole number from 1 to 65535, or 0 for any free port"
        )
    meta_learner = FewShot(cfg.ckpt_path)
    # Before loading the drawings, which may take a while.
    with _listen(cfg.host, cfg.port) as listener:
        address, port = listener.getsockname()[:2]
        local = ipaddress.ip_address(address).is_loopback
        token = None if local else secrets.token_hex(8)
        app = make_app(meta_learner, token)
        name = _for_url(str(cfg.host) if local else _reachable(address))
        log.info("draw on http://%s:%d/%s (Ctrl-C ends it)", name, port, token or "")
        if token:
            log.info("anyone in your network who has this link can use the page")
        web.run_app(app, sock=listener, print=None, access_log=None)


def make_app(meta_learner: FewShot, token: str | None = None) -> web.Application:
    """The application around one checkpoint.

    Args:
        meta_learner: the checkpoint.
        token: the first part of each path, for an address that others can reach; `None` for this
            machine only, whose name requests must use.
    """

    @web.middleware
    async def guard(
        request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    ) -> web.StreamResponse:
        """Refuse other senders, and report errors in one line."""
        try:
            _check_sender(request, token)
            response = await handler(request)
        except InputError as error:
            response = web.json_response({"error": str(error)}, status=400)
        except web.HTTPException as error:
            response = web.json_response({"error": error.reason}, status=error.status)
        response.headers.update(_HEADERS)
        return response

    app = web.Application(client_max_size=_BODY, middlewares=[guard])
    app.add_routes(_Handlers(meta_learner).routes(f"/{token}" if token else ""))
    return app


def _check_sender(request: web.Request, token: str | None) -> None:
    """Refuse requests without the token, and those of other sites' pages in this browser.

    Raises:
        web.HTTPException: refused.
    """
    given = request.path.split("/")[1]
    if token and not secrets.compare_digest(given.encode(), token.encode()):
        raise web.HTTPForbidden(reason="the token is missing or wrong: open the link of demo.py")
    # A foreign page whose domain name was redirected to this machine still sends that name.
    if not _names_this_machine(request.host, token is None):
        raise web.HTTPForbidden(reason=f"host {request.host}: not this machine")
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise web.HTTPForbidden(reason=f"origin {origin}: not this page")
    if request.method == "POST" and request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType(reason="expected application/json")


def _names_this_machine(host: str, local: bool) -> bool:
    """Whether a ``Host`` header names this machine, which no foreign domain name does."""
    name = ""
    try:
        name = urlsplit(f"//{host}").hostname or ""
        address = ipaddress.ip_address(name)
    except ValueError:  # a name
        mine = socket.gethostname().lower()
        return name == "localhost" or (not local and name in (mine, f"{mine}.local"))
    return address.is_loopback or not local


def _listen(host: Any, port: int) -> socket.socket:
    """A listening socket.

    Raises:
        InputError: not an address of this machine, or a port that cannot be used.
    """
    expected = "expected 127.0.0.1 for this machine only, or 0.0.0.0 for all of its addresses"
    if not isinstance(host, str) or not host:  # for a socket, no host means all addresses
        raise InputError(f"host={'null' if host is None else host}: {expected}")
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    except (OSError, UnicodeError) as error:
        raise InputError(f"host={host}: there is no such address; {expected}") from error
    try:
        both = family == socket.AF_INET6 and socket.has_dualstack_ipv6()
        return socket.create_server(address[:2], family=family, dualstack_ipv6=both)
    except OSError as error:
        if error.errno == errno.EADDRNOTAVAIL:
            raise InputError(f"host={host}: not an address of this machine; {expected}") from error
        reason = os.strerror(error.errno) if error.errno else error
        raise InputError(f"port={port}: cannot be used ({reason}): try another") from error


def _reachable(address: str) -> str:
    """The address at which others reach a listening socket, as far as it can be found."""
    if not ipaddress.ip_address(address).is_unspecified:
        return address
    # Nothing is sent: this only asks which of this machine's addresses would be the sender's.
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))  # reserved for examples (RFC 5737)
        except OSError:
            return socket.gethostname()
        return str(probe.getsockname()[0])


def _for_url(name: str) -> str:
    return f"[{name}]" if ":" in name else name


class _Handlers:
    def __init__(self, meta_learner: FewShot) -> None:
        self.meta_learner = meta_learner
        self.ways = meta_learner.ways or CLASSES
        self.kept: OrderedDict[str, Classifier] = OrderedDict()
        self.waiting = 0
        # One at a time, because all share the network's hooks. On one core: the browser needs
        # another, and threads that wait for each other are slower than one.
        self.worker = ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,))
        try:
            meta_learner.data.setup()
        except InputError as error:
            log.info("no real drawings available: %s", error)

    def routes(self, prefix: str) -> list[web.RouteDef]:
        pages = {prefix or "/", f"{prefix}/"}
        return [
            *(web.get(path, self.page) for path in pages),
            web.get(f"{prefix}/about", self.about),
            web.get(f"{prefix}/real", self.real),
            web.post(f"{prefix}/adapt", self.adapt),
            web.post(f"{prefix}/weakest", self.weakest),
            web.post(f"{prefix}/predict", self.predict),
        ]

    async def page(self, request: web.Request) -> web.StreamResponse:
        return web.Response(text=_PAGE.read_text(encoding="utf-8"), content_type="text/html")

    async def about(self, request: web.Request) -> web.StreamResponse:
        """The limits of the checkpoint, and whether its pictures are drawings, for the page."""
        algorithm = type(self.meta_learner.learner.algorithm).__name__
        kind = {"algorithm": algorithm, "ink": self.meta_learner.data.ink}
        limits = {"ways": self.ways, "examples": EXAMPLES[1], "name": NAME}
        return web.json_response({**kind, **limits})

    async def real(self, request: web.Request) -> web.StreamResponse:
        """Examples of random classes that the network was not trained on."""
        data = self.meta_learner.data
        if not hasattr(data, "drawings"):
            raise InputError("there are no real drawings on this machine")
        ways, shots = (_number(request.query, key) for key in ("ways", "shots"))
        _within("classes", ways, self.ways)
        _within("examples", shots, EXAMPLES)
        known = data.splits["test"]
        if len(known) < self.ways[0]:
            raise InputError(f"the meta-test split has only {len(known)} classes")
        names = random.sample(known, min(ways, len(known)))
        images = data.drawings.images
        chosen = []
        for name in names:
            of_class = images[data.drawings.classes.index(name)]
            rows = random.sample(range(len(of_class)), min(shots, len(of_class)))
            examples = [_as_url(255 - of_class[row] if data.ink else of_class[row]) for row in rows]
            chosen.append({"name": name, "examples": examples})
        return web.json_response({"classes": chosen})

    async def adapt(self, request: web.Request) -> web.StreamResponse:
        classes = _field(await _json(request), "classes", list)
        _within("classes", len(classes), self.ways)
        examples: dict[str, list[Image.Image]] = {}
        for each in classes:
            name, drawings = _name(_field(each, "name", str)), _field(each, "examples", list)
            if not 0 < len(name) <= NAME:
                raise InputError(f"class {name!r}: a name has 1 to {NAME} characters")
            if name in examples:
                raise InputError(f"two classes are called {name!r}: each needs its own name")
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
        classifier, drawing = self._classifier(body), _image(_field(body, "drawing", str))
        began = time.perf_counter()

        def answers() -> list[Answer]:
            [seen] = self.meta_learner.prepare([drawing])
            return [classifier.answer([seen], adapted) for adapted in (True, False)]

        after, before = await self._work(answers)
        found = {
            "after": after.probabilities[0].tolist(),
            "before": before.probabilities[0].tolist(),
            "none": bool(after.none[0]),
        }
        return web.json_response(found | {"ms": _since(began)})

    async def weakest(self, request: web.Request) -> web.StreamResponse:
        """The class that another example would help most, by its place among the classes."""
        classifier = self._classifier(await _json(request))
        name = await self._work(classifier.weakest)
        return web.json_response({"place": classifier.classes.index(name)})

    def _classifier(self, body: Any) -> Classifier:
        """The adapted classifier that a request names.

        Raises:
            web.HTTPGone: it is no longer kept.
        """
        token = _field(body, "id", str)
        classifier = self.kept.get(token)
        if classifier is None:
            raise web.HTTPGone(reason="these examples are no longer kept: adapt again")
        self.kept.move_to_end(token)
        return classifier

    async def _work(self, work: Callable[[], T]) -> T:
        if self.waiting >= _WAITING:
            raise web.HTTPTooManyRequests(reason="too many requests at once: try again in a moment")
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
        raise InputError(f"{key}: expected a {kind.__name__}")
    return value


def _number(query: Any, key: str) -> int:
    try:
        return int(query[key])
    except (KeyError, ValueError) as error:
        raise InputError(f"{key}: expected a whole number") from error


def _name(typed: str) -> str:
    """A name without invisible differences."""
    return " ".join(unicodedata.normalize("NFC", typed).split())


def _within(what: str, number: int, limits: tuple[int, int]) -> None:
    if not limits[0] <= number <= limits[1]:
        expected = " to ".join(str(limit) for limit in sorted(set(limits)))
        raise InputError(f"{number} {what}: expected {expected}")


def _image(url: Any) -> Image.Image:
    """A PNG image in a data URL, as from a canvas."""
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
