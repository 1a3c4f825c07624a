"""Every figure of README and docs/ comes from a committed file; their examples pass the checks."""

import csv
import re
import shutil
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
}
#: Other tests write or check the figures on these pages.
ELSEWHERE = ("docs/layers.md", "docs/operations.md", "docs/promises.md")
_MARKED = re.compile(r"<!-- made by benchmarks/readme\.py: \w+ -->.*?<!-- end -->", re.DOTALL)
#: A number with the unit of a measurement, or with an interval.
_FIGURE = re.compile(
    r"(\d[\d,.]*)(?: ± [\d.]+)?\s?(?:%|ms|s|seconds|minutes|hours|kB|MB|GB|points|times)(?!\w)"
    r"(?!\s+interval)|(\d[\d.]*) ±"
)


@pytest.fixture
def readme(monkeypatch):
    """The module that makes the blocks."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import readme

    return readme


def blocks_of(text):
    return re.findall(r"made by benchmarks/readme\.py: (\w+)", text)


@pytest.mark.parametrize("page", PAGES)
def test_pages_say_what_the_committed_files_say(readme, page):
    assert page in readme.pages()
    assert readme.renewed(PAGES[page], page) == PAGES[page], "python benchmarks/readme.py"


def test_every_block_stands_on_one_page(readme):
    marked = [name for text in PAGES.values() for name in blocks_of(text)]
    assert len(set(marked)) == len(marked)
    assert set(readme.BLOCKS) <= set(marked)


def test_readme_can_be_read_at_once():
    assert len(PAGES["README.md"].splitlines()) <= 200


def test_every_compared_algorithm_is_described(readme):
    assert list(readme.METHODS) == list(readme.ALGORITHMS)


@pytest.mark.parametrize("page", [page for page in PAGES if page not in ELSEWHERE])
def test_no_figure_stands_outside_of_the_blocks_unless_a_file_beside_it_has_it(page):
    """Each figure of a paragraph or table is in one of the files that it links."""
    for paragraph in _MARKED.sub("", PAGES[page]).split("\n\n"):
        links = re.findall(r"\]\(([\w./-]+)\)", paragraph)
        files = [(ROOT / page).parent / link for link in links if link.endswith((".md", ".csv"))]
        linked = "".join(file.read_text(encoding="utf-8") for file in files)
        for figure in _FIGURE.finditer(paragraph):
            assert (figure[1] or figure[2]) in linked, f"{figure[0]!r} in {paragraph!r}"


@pytest.mark.parametrize(
    ("sentence", "figure"),
    [
        ("at 53.28 ± 0.92 %, which", "53.28"),
        ("takes 386 ms", "386"),
        ("1,288 ms", "1,288"),
        ("is 2.4 points lower", "2.4"),
        ("4.6 ± 0.6 better", "4.6"),
        ("0.7 GB, 53 kB", "0.7"),
        ("a 95 % interval of 5-way 1-shot tasks, 345 classes", None),
    ],
)
def test_what_counts_as_a_figure(sentence, figure):
    found = _FIGURE.search(sentence)
    assert (found and (found[1] or found[2])) == figure


FILES = {
    "benchmarks/results/5-way-1-shot.md": "algorithms, accuracy",
    "benchmarks/results/5-way-5-shot.md": "algorithms",
    "benchmarks/results/label-permutations.md": "findings",
    "benchmarks/results/maml_pp-ablation.md": "ablation",
    "results/report/runs.csv": "reproduced",
    "checkpoints/results.md": "best",
    "results/quickstart/runs.csv": "measured",
    "benchmarks/results/episodes.md": "measured",
    "benchmarks/results/speed-settings.md": "speed, speed_5_way",
    "benchmarks/results/chunks.md": "chunks",
    "benchmarks/results/gpu-steps.md": "gpu",
    "benchmarks/results/gpu-precision.md": "gpu",
    "benchmarks/results/speed-algorithms.md": "first_order",
    "benchmarks/results/speed-memory.md": "costs",
    "benchmarks/results/training.md": "costs",
    "benchmarks/results/page.md": "costs",
}


def with_other_figures(path):
    """A file whose tables have 4 for 3 and so on, except in the names of rows."""
    after = str.maketrans("0123456789", "1234567890")
    if path.suffix == ".csv":
        with path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, rows[0])
            writer.writeheader()
            for row in rows:
                writer.writerow(row | {"test/acc": row["test/acc"].translate(after)})
        return
    lines = []
    for line in path.read_text().splitlines():
        first, bar, rest = line.removeprefix("|").partition(" | ")
        lines.append(f"|{first}{bar}{rest.translate(after)}" if line.startswith("| ") else line)
    path.write_text("\n".join(lines))


@pytest.mark.parametrize(
    ("file", "name"), [(file, name) for file, names in FILES.items() for name in names.split(", ")]
)
def test_other_figures_in_a_file_are_others_on_the_page(readme, file, name, monkeypatch, tmp_path):
    """Nothing in a block is typed by hand."""
    for folder in ("results", "benchmarks/results", "checkpoints"):
        shutil.copytree(ROOT / folder, tmp_path / folder)
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    (page,) = (page for page, text in PAGES.items() if name in blocks_of(text))
    before = readme.block(name, page)
    assert before in PAGES[page]
    with_other_figures(tmp_path / file)
    assert readme.block(name, page) != before


def test_links_of_a_block_lead_to_the_files_from_any_page(readme):
    assert "](checkpoints/results.md)" in readme.block("best", "README.md")
    assert "](../checkpoints/results.md)" in readme.block("best", "docs/report.md")


def test_peers_of_a_newer_table_come_by_the_names_of_their_columns(readme, monkeypatch, tmp_path):
    """Wherever these columns are, and however many others there are."""
    file = tmp_path / "benchmarks/results/speed-settings.md"
    file.parent.mkdir(parents=True)
    file.write_text(
        "| task | jax_scan, s to compile | jax_scan, ms | loop / metadraw | metadraw, ms "
        "| metadraw, GB | metadraw, ms | jax_scan, GB |\n"
        "| --- | --- | --- | --- | --- | --- | --- | --- |\n"
        "| 5-way 1-shot | 7 | 400 | 4.2 | 304 | 0.7 | 1 | failed |\n"
    )
    monkeypatch.setattr(readme, "ROOT", tmp_path)
    assert readme.speed() == [
        "| task | metadraw | JAX, `scan` | loop / metadraw |",
        "| --- | --- | --- | --- |",
        "| 5-way 1-shot | 304, 0.7 | 400, failed | 4.2 |",
    ]


# ---- the examples of new files, pasted --------------------------------------------------------


def examples():
    """The files that README and docs/extending.md say to write, by path; the same in both."""
    texts = {}
    for page in ("README.md", "docs/extending.md"):
        found = re.findall(r"```(?:python|yaml)\n# (\S+/\S+)\n(.*?)```", PAGES[page], re.DOTALL)
        for path, text in found:
            assert texts.setdefault(path, text) == text, f"{path} differs on {page}"
    return texts


@pytest.fixture(scope="module")
def pasted(tmp_path_factory):
    """A copy of the project with every example where its first line says."""
    folder = tmp_path_factory.mktemp("pasted")
    for name in ("src", "configs"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("*.egg-info"))
    (folder / "tests").mkdir()
    tests = (f"tests/{name}.py" for name in ("conftest", "points", "test_meta_gradients"))
    for name in ("pyproject.toml", *tests):
        shutil.copy(ROOT / name, folder / name)
    new = []
    for path, text in examples().items():
        target = folder / path
        if target.exists():  # the reference
            before, below, after = target.read_text().partition("\n}\n")
            target.write_text(f"{before}{below}\n\n{text}\n{after}")
        else:
            target.write_text(text)
            new.append(target)
    assert [path.name for path in new if path.suffix == ".py"] == [
        "sign_maml.py",
        "perceptron.py",
        "array_file.py",
        "absolute_error.py",
    ]
    return folder, new


def check(module, *arguments, cwd, **environment):
    done = subprocess.run(
        [sys.executable, "-m", module, *map(str, arguments)],
        cwd=cwd,
        env=ENVIRONMENT | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_pasted_examples_pass_lint_format_and_types(pasted):
    folder, new = pasted
    reference = folder / "tests" / "test_meta_gradients.py"
    code = [path for path in new if path.suffix == ".py"]
    check("ruff", "check", "--no-cache", *code, reference, cwd=folder)
    check("ruff", "format", "--no-cache", "--check", *code, cwd=folder)
    check("mypy", *code, cwd=ROOT)


def test_a_pasted_algorithm_passes_the_tests_of_meta_gradients(pasted):
    folder, _ = pasted
    chosen = "(per_task_autograd and sign_maml) or every_algorithm_has_a_reference"
    where = {"PYTHONPATH": str(folder / "src")}
    done = check("pytest", "-k", chosen, "-p", "no:cacheprovider", cwd=folder, **where)
    passed = re.search(r"(\d+) passed", done)
    assert passed
    assert int(passed[1]) > 1, done
