"""The notebook of the docs is run cell by cell on tiny models."""

import ast
import json
from pathlib import Path

from study import Parts

NOTEBOOK = Path(__file__).parents[2] / "docs" / "study.ipynb"


def test_the_notebook_runs_from_top_to_bottom(tmp_path, capsys):
    parts = Parts(tmp_path)
    small = {
        "TEACHER": str(parts.teacher), "STUDENT": str(parts.student), "TRAIN": str(parts.train),
        "TEST": str(parts.test),
        "OUTPUT": tmp_path / "study", "BUDGET": {"max_steps": 2, "batch_size": 4, "device": "cpu"},
    }  # fmt: skip
    space, shown = {}, []
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] != "code":
            continue
        tree = ast.parse("".join(cell["source"]))
        last = ast.Expression(tree.body.pop().value) if isinstance(tree.body[-1], ast.Expr) else None
        exec(compile(tree, "cell", "exec"), space)
        if last is not None:
            shown.append(eval(compile(last, "cell", "eval"), space))
        if "TEACHER" in space:
            space.update(small)
    study, table, differences, better, _, same = shown
    assert study._repr_html_().count("<tr") >= 8
    assert list(table.index) == ["student, before", "teacher", "fkl", "rkl", "jsd", "akl", "atkd", "ce"]
    assert list(differences.index) == ["rkl", "jsd", "akl", "atkd", "ce"]
    assert set(better.index) <= set(differences.index)
    assert same is True
    assert (tmp_path / "study" / "paper.tex").read_text().count("&") > 10
    assert len(capsys.readouterr().out.splitlines()) > 2
