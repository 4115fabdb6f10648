"""A method of one's own is one file and one line."""

import re
import shutil
import subprocess
import sys

from lib.paths import ROOT

NEW_METHOD = """
import pandas as pd
from lib.compressors import list_methods, method_table
from lib.experiments.method_comparison.plots import quality_vs_cost
from lib.measure.rows import group_of, rows_of
from lib.names import display_name
from lib.plots import (LOOKS)

rows = rows_of(["every_other"], [64, 32])
table = pd.DataFrame({"method": [*rows], "group": [*map(group_of, rows)], "length": 96})
table = table.assign(budget=64.0, cache_mib=1.0, ppl=[3.0, 4, 5, 6, 7])
table["ratio"] = table.ppl / 3
labels = ("MiB", "ratio")
fig = quality_vs_cost(table, {96: table[:1]}, "cache_mib", labels, bright=["every_other"])
looks = {x.get_label(): (x.get_color(), x.get_marker()) for x in fig.axes[0].lines}
assert "every_other" in list_methods() and "every_other" in set(method_table().method)
assert looks["every_other"] not in {(style.color, style.marker) for style in LOOKS.values()}
print(rows, [display_name(row) for row in rows])
"""


def test_one_file_and_one_line_make_a_method(tmp_path):
    """As docs/methods.md says it, in a copy of the package: a row, a name and a look of its own."""
    shutil.copytree(ROOT / "lib", tmp_path / "lib")
    page = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    text = page.split("\n## Add a method\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    (line,) = re.findall(r"`(from \.\w+ import \w+)`", text)
    folder = tmp_path / "lib" / "compressors"
    (folder / "every_other.py").write_text(example)
    imports = (folder / "__init__.py").read_text()
    last = "from .snapkv import SnapKV\n"
    (folder / "__init__.py").write_text(imports.replace(last, f"{last}{line}\n"))
    command = [sys.executable, "-c", NEW_METHOD]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for budget in (64, 32):
        assert f"'every_other_{budget}': EveryOther(budget={budget})" in done.stdout
        assert f", 'every_other_{budget}'" in done.stdout.split("[")[1]
