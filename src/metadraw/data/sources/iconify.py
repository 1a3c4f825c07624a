"""Icons from npm packages of Iconify: one package per icon set, 0.7 to 3.1 MB each to fetch.

Every set has its own author and licence. Packages are pinned and checked like those of drawings;
nothing of them is executed.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable
from typing import NamedTuple

from metadraw.data.sources import npm
from metadraw.errors import InputError


class IconSet(NamedTuple):
    """One icon set: its package, and what its licence asks to be named."""

    version: str
    sha512: str
    author: str
    licence: str
    lines: bool = False  # drawn in lines, rather than filled

    def package(self, name: str) -> str:
        """The package of the set of this name, ``NAME@VERSION``."""
        return f"@iconify-json/{name}@{self.version}"


SETS = {
    "noto": IconSet(
        "1.2.9",
        "DQiuXENbun41ch+XPSV55H9FaWKpHTyz46YIKtSaKYD4fIDDzL1tR6H4np/T38jfrTAeI3rcKF0mqHYeZVAuaw==",
        "Google Inc",
        "Apache-2.0",
    ),
    "noto-v1": IconSet(
        "1.2.5",
        "/DsVMius69Q0fRS53z7QK1TROSuar606jiIx+laXtdsYGMXpf6LtHBx6CGfoo3UHHb/XpBsw+1L1x3eyPqMuVA==",
        "Google Inc",
        "Apache-2.0",
    ),
    "twemoji": IconSet(
        "1.2.5",
        "uKpuIEV0v6K5BW3Mjdyl+XKFVAbbcPxAgifKvEMtZoUZB5+YiY5zaMm2uNNCxyXzAWU9yNLlj41WU6/mvgALsw==",
        "Twitter",
        "CC-BY-4.0",
    ),
    "openmoji": IconSet(
        "1.2.29",
        "vXdhkqcXVSO6suy+m9LbcUM3OdVyuNOtpV8/als/WqfkQIRxevL5Geb/g+6GH/Qwnq1OqksEmaDGTCmZ5nFKJQ==",
        "OpenMoji",
        "CC-BY-SA-4.0",
    ),
    "fluent-emoji-flat": IconSet(
        "1.2.6",
        "RY47RgPb47fYUiyrA64sIOL0+UU02s29sXpNBbIQRBUlPlfNFTKUmZDERGuxDs/7yNGWqQYvuaSYM1M4fRXlUw==",
        "Microsoft Corporation",
        "MIT",
    ),
    "fluent-emoji-high-contrast": IconSet(
        "1.2.6",
        "esqhZPpkrF7sNX3NsLoh8KW64okEr/bzko7WNnFP+qTJGAqDPDYjp0925yxuivXy3HtVQB8xhIKu3+Nq1byX5w==",
        "Microsoft Corporation",
        "MIT",
    ),
    "emojione": IconSet(
        "1.2.3",
        "T9+T3HIbJNLKKsmxYKlaYhvnHYkz/HNYTV7SHCXVZPfeUi4FqskY70YeN8yYAZT8cCv7w5vJxS4Q1m8zb9CMMg==",
        "Emoji One",
        "CC-BY-4.0",
    ),
    "ph": IconSet(
        "1.2.2",
        "PgkEZNtqa8hBGjHXQa4pMwZa93hmfu8FUSjs/nv4oUU6yLsgv+gh9nu28Kqi8Fz9CCVu4hj1MZs9/60J57IzFw==",
        "Phosphor Icons",
        "MIT",
        lines=True,
    ),
}


def load(name: str, icons: Iterable[str]) -> dict[str, str]:
    """Icons of one set.

    Args:
        name: of the set, one of `SETS`.
        icons: their names in the set.

    Returns:
        SVG by name.

    Raises:
        InputError: see `npm.pack`; or the package has no such icon.
    """
    package = SETS[name].package(name)
    content = npm.pack(package, SETS[name].sha512)
    with tarfile.open(fileobj=io.BytesIO(content), mode="r:gz") as files:
        member = files.extractfile("package/icons.json")
        assert member is not None  # a link or folder; the checksum rules it out
        held = json.load(member)
    found = {}
    for icon in icons:
        if icon not in held["icons"]:
            raise InputError(f"{package} has no icon {icon}")
        # Iconify's JSON: what is inside of the SVG, and a size if it is not the set's.
        sizes = {**held, **held["icons"][icon]}
        found[icon] = (
            '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" '
            f'viewBox="0 0 {sizes["width"]} {sizes["height"]}">{sizes["body"]}</svg>'
        )
    return found
