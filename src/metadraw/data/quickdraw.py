"""Quick, Draw!: 345 classes of doodles (Google, CC BY 4.0)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from metadraw.data.datamodule import EpisodeDataModule
from metadraw.data.drawings import Drawings, load_quickdraw


class QuickDraw(EpisodeDataModule):
    """Episodes of Quick, Draw! drawings.

    Args:
        source: ``auto``, ``google``, ``npm`` or ``path``, see `load_quickdraw`.
        samples_per_class: drawings per class, in memory; or ``all``, on disk.
        drawings_seed: which drawings of a class are chosen.
        path: folder of ``<class>.npy`` files, with ``source="path"`` only.
        cache_dir: where downloaded drawings are kept.
        base_url: where ``google`` reads ``<class>.npy`` files from.
        **episodes: what `EpisodeDataModule` takes.
    """

    def __init__(
        self,
        *,
        source: str,
        samples_per_class: int | str,
        drawings_seed: int,
        path: str | Path | None,
        cache_dir: str | Path,
        base_url: str,
        **episodes: Any,
    ) -> None:
        super().__init__(**episodes)
        self.options = {
            "source": source,
            "samples_per_class": samples_per_class,
            "seed": drawings_seed,
            "path": path,
            "cache_dir": cache_dir,
            "base_url": base_url,
        }

    def load(self) -> Drawings:
        """All 345 classes from the chosen source; see `load_quickdraw`."""
        return load_quickdraw(**self.options)  # type: ignore[arg-type]
