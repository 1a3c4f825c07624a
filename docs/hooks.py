"""MkDocs hooks: the site also contains the repository files that its pages link to.

Pages link to files outside docs/ by relative paths, ``../src/metadraw/training/learner.py``, which
work on any Git host. The site gets a copy of each such file below repository/: Markdown and other
text as pages, anything else unchanged. Links therefore do not depend on a Git host, and always show
the version that the pages describe.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).resolve().parents[1]
#: Path and fragment of a Markdown link within the repository.
_LINK = re.compile(r"(?<=\]\()(?!\w+:|[#/])([^)#\s]+)(#[^)\s]*)?(?=\))")
_LANGUAGES = {".py": "python", ".toml": "toml", ".yaml": "yaml", ".cff": "yaml"}
_AS_THEY_ARE = (".ckpt", ".csv", ".ipynb", ".png", ".svg")
_NOT_SEARCHED = "---\nsearch:\n  exclude: true\n---\n\n"


def on_files(files: Files, config: MkDocsConfig) -> None:
    """Add the files outside docs/ that pages link to, and those that these link to in turn."""
    waiting = [f"docs/{file.src_uri}" for file in files.documentation_pages()]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(_copy(path, config))
        for link in _LINK.finditer(_markdown(path)):
            target = _target(path, link[1])
            if target not in seen and (ROOT / target).exists():
                seen.add(target)
                waiting.append(target)


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links of a page in docs/ to the copies."""
    uri = page.file.src_uri
    return markdown if uri.startswith("repository/") else _linked(markdown, f"docs/{uri}")


def _copy(path: str, config: MkDocsConfig) -> File:
    """A file or folder of the repository for the site."""
    source, uri = ROOT / path, _place(path)
    if uri.endswith(".md"):
        text = _linked(_markdown(path), path)
        if not text:
            language = _LANGUAGES.get(source.suffix, "text")
            text = f"# {path}\n\n~~~~~~ {language}\n{source.read_text(encoding='utf-8')}\n~~~~~~\n"
        return File.generated(config, uri, content=_NOT_SEARCHED + text)
    return File.generated(config, uri, abs_src_path=str(source))


def _markdown(path: str) -> str:
    """The Markdown of a file, or a list of a folder's files; otherwise empty."""
    source = ROOT / path
    if source.is_dir():
        names = sorted(p.name for p in source.iterdir() if p.name[0] not in "._")
        folder = posixpath.basename(path)
        return f"# {path}\n\n" + "".join(f"- [{name}]({folder}/{name})\n" for name in names)
    return source.read_text(encoding="utf-8") if source.suffix == ".md" else ""


def _target(path: str, link: str) -> str:
    """The path in the repository that a link in ``path`` points to."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(path), link))


def _place(path: str) -> str:
    """The path of a repository file in the site's sources."""
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if (ROOT / path).is_dir():
        return f"repository/{path}/index.md"
    page = not path.endswith((".md", *_AS_THEY_ARE))
    return f"repository/{path}{'.md' if page else ''}"


def _linked(markdown: str, path: str) -> str:
    """The Markdown of a file, with links to their targets on the site."""

    def moved(link: re.Match[str]) -> str:
        target = _target(path, link[1])
        if not (ROOT / target).exists():
            return link[0]  # MkDocs reports it as broken
        start = posixpath.dirname(_place(path)) or "."
        return posixpath.relpath(_place(target), start) + (link[2] or "")

    return _LINK.sub(moved, markdown)
