"""README.md and docs/: their code runs, their commands compose, their links are valid.

Parts of README that test_command_line.py, test_shipped.py and test_readme.py run are left out here.
"""

import importlib
import importlib.util
import pydoc
import re
import shlex
import shutil
import subprocess
import sys
from argparse import ArgumentParser

import numpy as np
import pytest
import yaml
from conftest import ROOT
from points import ENVIRONMENT, HANGS

import metadraw
from metadraw.command.config import CONFIGS
from metadraw.training.train import train

DOCS = ROOT / "docs"
PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted(DOCS.glob("*.md")))
}


def code(page, language):
    """The code blocks of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", PAGES[page], re.DOTALL | re.MULTILINE)


# ---- Python and YAML -------------------------------------------------------------------------


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "python")])
def test_python_compiles(page):
    for block in code(page, "python"):
        compile(block, page, "exec")


@pytest.mark.parametrize("page", [page for page in PAGES if code(page, "yaml")])
def test_yaml_is_valid(page):
    for block in code(page, "yaml"):
        assert isinstance(yaml.safe_load(block), dict)


#: First line: the test that runs it.
RUN = {
    "README.md": {
        "import metadraw": "test_readme_python_runs",
        "# src/metadraw/algorithms/sign_maml.py": "test_readme_examples_train",
        "from metadraw import Classifier, FewShot": "test_readme_example_runs",
    },
    "docs/extending.md": {
        "# src/metadraw/algorithms/sign_maml.py": "test_readme_examples_train",
        "# tests/test_meta_gradients.py": "test_a_pasted_algorithm_passes_the_tests",
        "# src/metadraw/models/perceptron.py": "test_examples_train",
        "# src/metadraw/data/array_file.py": "test_examples_train",
        "# src/metadraw/objectives/absolute_error.py": "test_examples_train",
    },
    "docs/in-use.md": {
        "from metadraw import Classifier, FewShot": "test_a_classifier_of_own_classes",
        "from metadraw import FewShot": "test_a_picture_of_none_of_the_classes",
        "import metadraw": "test_a_checkpoint_in_python",
    },
}


def test_every_python_block_is_run_by_a_test():
    found = {
        page: [block.partition("\n")[0] for block in code(page, "python")]
        for page in PAGES
        if code(page, "python")
    }
    assert found == {page: list(blocks) for page, blocks in RUN.items()}
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").glob("*.py"))
    for blocks in RUN.values():
        for test in blocks.values():
            assert f"def {test}" in tests


def block_of(page, first):
    (block,) = (b for b in code(page, "python") if b.partition("\n")[0] == first)
    return block


def test_a_classifier_of_own_classes(own_pictures):
    names: dict = {}
    exec(block_of("docs/in-use.md", "from metadraw import Classifier, FewShot"), names)
    assert names["classifier"].about["examples"] == {"cat": 2, "dog": 1}
    assert names["classifier"].probabilities(["new.png"]).shape == (1, 2)


def test_a_picture_of_none_of_the_classes(own_pictures):
    names: dict = {}
    exec(block_of("docs/in-use.md", "from metadraw import FewShot"), names)
    assert names["answer"].probabilities.shape == (1, 2)
    assert names["answer"].none.tolist() == names["classifier"].none_of_these(["new.png"])


def test_a_checkpoint_in_python(synthetic_folder, monkeypatch, capsys):
    block = block_of("docs/in-use.md", "import metadraw")
    own = ["data.source=path", f"data.path={synthetic_folder}", "data.samples_per_class=20"]
    assert '"data.shots=5"' in block
    monkeypatch.chdir(ROOT)
    names: dict = {}
    exec(block.replace('"data.shots=5"', f'"data.shots=5", *{own}'), names)
    assert len(capsys.readouterr().out.splitlines()) == 2  # before and after, without an inner loop
    assert names["outcome"].after.shape == (25, 25, 5)


ROOMS = {"model": "models", "data": "data", "objective": "objectives"}


@pytest.mark.parametrize(
    ("name", "group"),
    [("perceptron", "model"), ("array_file", "data"), ("absolute_error", "objective")],
)
def test_examples_train(tiny, tmp_path, monkeypatch, name, group):
    """Those of docs/extending.md, as a user writes them."""
    package = importlib.import_module(f"metadraw.{ROOMS[group]}")
    text = PAGES["docs/extending.md"]
    for path, block in re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", text, re.DOTALL):
        target = tmp_path / path
        if target.stem == name:
            target.parent.mkdir(parents=True)
            target.write_text(block, encoding="utf-8")
    folder = tmp_path / "src" / package.__name__.replace(".", "/")
    monkeypatch.setattr(package, "__path__", [*package.__path__, str(folder)])
    if group == "data":
        images = np.random.RandomState(0).randint(0, 255, (40, 8, 28, 28)).astype(np.uint8)
        np.save(tmp_path / "images.npy", images)
        tiny = [o for o in tiny if not re.match(r"data\.(source|path|samples)", o)]
        tiny.append(f"data.path={tmp_path / 'images.npy'}")
    if group == "objective":
        tiny = [o for o in tiny if not re.match(r"data\.(source|path|samples)|model\.", o)]
        tiny += ["data=sinusoids", "model=mlp"]
    tiny = [o for o in tiny if not o.startswith(f"{group}.hidden")] + ["trainer.max_epochs=1"]
    search = f"hydra.searchpath=[file://{tmp_path / 'configs'}]"
    found = train(metadraw.compose(search, f"{group}={name}", *tiny))
    assert 0 < found["test"]["loss"] < 10


# ---- commands --------------------------------------------------------------------------------


def without_blocks(text):
    return re.sub(r"^```.*?^```", "", text, flags=re.DOTALL | re.MULTILINE)


def commands():
    """Page and words of every ``python FILE ...`` in bash blocks and in inline code."""
    for page, text in PAGES.items():
        lines = "".join(code(page, "bash")).splitlines()
        inline = re.findall(r"`(python [^`]+)`", without_blocks(text))
        # test_command_line.py composes the lines of README.
        for line in dict.fromkeys(inline if page == "README.md" else [*lines, *inline]):
            words = shlex.split(line, comments=True)
            if words[:1] == ["python"] and words[1] != "-m":
                yield pytest.param(*words[1:2], words[2:], id=f"{page}-{line}")


@pytest.mark.parametrize(("program", "arguments"), list(commands()))
def test_commands_are_right(program, arguments, monkeypatch):
    assert (ROOT / program).exists()
    config = program.removesuffix(".py")
    if config in ("train", "eval", "adapt", "demo"):
        if not {"--config-dir", "--help"} & set(arguments):
            single = [a.split(",")[0] if a[-1] != "]" else a for a in arguments if a[0] != "-"]
            assert metadraw.compose(*single, config=config)
    elif config in ("compare", "report"):
        monkeypatch.syspath_prepend(str(ROOT))
        module, read = importlib.import_module(config), []

        def parse(self):
            read.append(parsed(self, arguments))
            raise SystemExit(0)

        parsed = ArgumentParser.parse_args
        monkeypatch.setattr(ArgumentParser, "parse_args", parse)
        with pytest.raises(SystemExit):
            module.main()
        assert read


def first_cells(page, column):
    """The code in a column of a page's first table, by the code in each row's first cell."""
    table = re.search(r"(?:^\|.*\n)+", PAGES[page], re.MULTILINE)[0].splitlines()[2:]
    rows = [row.strip("|").split(" | ") for row in table]
    return {row[0].strip("` "): set(re.findall(r"`(\w+)`", row[column])) for row in rows}


def test_tables_have_every_choice_of_the_configs():
    offered = first_cells("docs/configs.md", 1)
    offered["algorithm"] |= set(first_cells("docs/algorithms.md", 0))
    offered["data"] |= {
        "episodes",
        "tasks",
        "as_trained",
    }  # base configs of data sets, and that of eval.py
    for group, choices in offered.items():
        assert choices == {path.stem for path in (CONFIGS / group).glob("*.yaml")}, group


# ---- links -----------------------------------------------------------------------------------


def anchors(path):
    """Those of a Markdown file's headings, as Git hosts and MkDocs make them."""
    text = without_blocks(path.read_text(encoding="utf-8"))
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)#?([^)\s]*)\)", PAGES[page]):
        path = (ROOT / page).parent / target if target else ROOT / page
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT.resolve())
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"


def test_readme_leads_to_every_topic():
    """Each section of README links to a page of docs/, and the first page to all others."""
    sections = re.split(r"^## ", PAGES["README.md"], flags=re.MULTILINE)
    for section in sections:
        assert "](docs/" in section or section.startswith("Credits"), section
    index = set(re.findall(r"\]\(([\w-]+\.md)", PAGES["docs/index.md"]))
    assert index >= {path.name for path in DOCS.glob("*.md")} - {"index.md"}


# ---- the site --------------------------------------------------------------------------------


def test_the_navigation_has_every_page():
    def pages(items):
        for item in items:
            (value,) = item.values()
            yield from [value] if isinstance(value, str) else pages(value)

    listed = list(pages(yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]))
    assert len(listed) == len(set(listed))
    assert set(listed) == {path.name for path in DOCS.glob("*.md")}


def test_the_reference_names_what_there_is():
    names = re.findall(r"^::: (\S+)$", PAGES["docs/api.md"], re.MULTILINE)
    for name in names:
        found = pydoc.locate(name)
        assert found is not None, name
        assert found.__doc__, name
    public = {f"metadraw.{name}" for name in metadraw.__all__} - {"metadraw.__version__"}
    assert public <= set(names)


def build(folder, to):
    """Build the site of a folder; returns the finished process."""
    return subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(to)],
        cwd=folder,
        env=ENVIRONMENT | {"NO_MKDOCS_2_WARNING": "1", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=HANGS,
    )


@pytest.fixture
def needs_mkdocs():
    for module in ("mkdocs", "material", "mkdocstrings"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed")


@pytest.mark.usefixtures("needs_mkdocs")
def test_the_site_is_built_without_a_warning(tmp_path):
    done = build(ROOT, tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "meta_gradients" in (tmp_path / "api.html").read_text(encoding="utf-8")
    # Every link leads to a file of the site.
    for page in tmp_path.rglob("*.html"):
        if page.name == "404.html":  # whose links begin at the server's root
            continue
        for link in re.findall(r'(?:href|src)="(?![\w+]+:|#|//)([^"#?]+)', page.read_text("utf-8")):
            assert (page.parent / link).exists(), f"{page.relative_to(tmp_path)}: {link}"


@pytest.mark.usefixtures("needs_mkdocs")
def test_the_site_is_not_built_with_a_broken_link(tmp_path):
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in ROOT.iterdir():
        if path.name not in ("docs", "mkdocs.yml", "site") and path.name[0] != ".":
            (copy / path.name).symlink_to(path)
    shutil.copy(ROOT / "mkdocs.yml", copy)  # whose folder is that of the file, not of a link
    shutil.copytree(DOCS, copy / "docs", ignore=shutil.ignore_patterns("__pycache__"))
    links = ["missing.md", "../src/missing.py", "index.md#missing"]
    text = "\n".join(["# Design", *(f"[a link]({link})" for link in links)])
    (copy / "docs" / "design.md").write_text(text, encoding="utf-8")
    done = build(copy, tmp_path / "site")
    assert done.returncode == 1
    for link in links:
        assert f"'{link}'" in done.stdout + done.stderr
