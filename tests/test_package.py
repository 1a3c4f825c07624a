"""``pip install .`` gives a package that works in any folder, without the repository."""

import json
import shutil
import subprocess
import sys
from importlib.metadata import version

import pytest
import torch
from conftest import ENVIRONMENT, ROOT

import metadraw
from metadraw.command.config import CONFIGS

_USE = """
import json, sys
import metadraw
cfg = metadraw.compose("algorithm=fomaml", *sys.argv[1:])
data, learner = metadraw.build(cfg)
gradients, _ = learner.meta_gradients(data.episodes("train")(__import__("torch").arange(2)))
norms = {name: value.norm().item() for name, value in gradients.items()}
evaluation = metadraw.compose("ckpt_path=x", config="eval")
print(json.dumps([metadraw.__file__, metadraw.__version__, norms, evaluation.ckpt_path]))
"""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """A folder with the package, as pip installs it from a copy's source distribution."""
    folder = tmp_path_factory.mktemp("package")
    copy, target = folder / "copy", folder / "installed"
    copy.mkdir()
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("*.egg-info"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    # Neither step needs a connection: setuptools is installed, dependencies are left out.
    build = f"from setuptools.build_meta import build_sdist; build_sdist({str(folder)!r})"
    run([sys.executable, "-c", build], copy)
    (source,) = folder.glob("*.tar.gz")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-build-isolation"]
    run([*pip, "--target", target, source], folder)
    return target


def run(command, folder, **environment):
    done = subprocess.run(
        command, cwd=folder, env=ENVIRONMENT | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_an_installed_package_works_in_an_empty_folder(installed, tiny, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    used = [sys.executable, "-c", _USE, *tiny]
    file, number, norms, ckpt_path = json.loads(
        run(used, empty, PYTHONPATH=str(installed)).splitlines()[-1]
    )
    assert file == str(installed / "metadraw" / "__init__.py")
    assert number == metadraw.__version__
    assert ckpt_path == "x"
    data, learner = metadraw.build(metadraw.compose("algorithm=fomaml", *tiny))
    gradients, _ = learner.meta_gradients(data.episodes("train")(torch.arange(2)))
    assert norms == {name: pytest.approx(g.norm().item()) for name, g in gradients.items()}


def test_an_installed_package_has_every_file(installed):
    def files(folder):
        kept = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
        return {str(path) for path in kept if path.suffix != ".pyc"}

    package = files(installed / "metadraw")
    assert package == files(ROOT / "src" / "metadraw") | {f"configs/{f}" for f in files(CONFIGS)}


def test_without_timm(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)  # cannot be imported
    with pytest.raises(Exception, match=r"model=timm: .* pip install 'metadraw\[timm\]'"):
        metadraw.build(metadraw.compose("model=timm"))


def test_version():
    assert metadraw.__version__ == version("metadraw")
