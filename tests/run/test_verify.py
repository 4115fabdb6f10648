"""`python -m lib.run.verify`: what was changed in committed results is told, and nothing else."""

import pytest
from conftest import write_notebook

from lib.paths import ROOT, all_notebooks
from lib.results.manifest import read_manifest
from lib.run.verify import defaults_changed, differences, has_quality, read_rows

TABLE = """\
import pandas as pd
from lib import save_table
rows = {"method": ["a", "b"], "ppl": [12.345, 1 / 3], "n": [cache, 6], "tpot_ms": [1.5, 2.5]}
rows["tpot_ms_q1"] = pd.Timestamp.now().microsecond
save_table(pd.DataFrame(rows), "small")"""


@pytest.fixture
def lab(sandbox):
    write_notebook(sandbox.root / "notebooks" / "01_good.ipynb", TABLE)
    speed = 'import pandas as pd\nimport lib\nlib.save_table(pd.DataFrame({"x_s": [0.5]}), "speed")'
    write_notebook(sandbox.root / "notebooks" / "02_speed.ipynb", speed)
    (sandbox.root / "params.yaml").write_text("01_good: {cache: 7}\n")
    done = sandbox.call("python", "-m", "lib.run", "--params", "params.yaml")
    assert done.returncode == 0, done.stderr
    return sandbox


def test_a_changed_number_is_told(lab):
    table, manifest = lab.results / "tables" / "small.csv", lab.results / "manifest.json"
    table.write_text(table.read_text().replace("12.345", "12.3451"))
    before = lab.files()
    done = lab.call("python", "-m", "lib.run.verify")
    assert done.stdout.splitlines() == [
        "01_good ... DIFFERS",
        "  tables/small.csv: row 1, ppl: 12.3451 committed, 12.345 now",
        "02_speed ... nothing to compare",
    ], done.stderr
    assert done.returncode == 1
    assert lab.files() == before
    manifest.write_text(manifest.read_text().replace('"machine": "', '"machine": "another '))
    done = lab.call("python", "-m", "lib.run.verify", "01")  # within the tolerance between machines
    assert (done.returncode, done.stdout) == (0, "01_good ... the same\n"), done.stderr
    manifest.write_text(
        manifest.read_text().replace('"parameters_sha256": "', '"parameters_sha256": "0')
    )
    done = lab.call("python", "-m", "lib.run.verify", "01")
    assert "its defaults have changed since these results were made: run it again" in done.stdout
    assert done.returncode == 1
    for wrong in (("02",), ("--results", "nowhere")):  # nothing compared is no agreement
        done = lab.call("python", "-m", "lib.run.verify", *wrong)
        assert done.returncode == 1
        assert "error: nothing was compared: " in done.stderr


@pytest.mark.parametrize("folder", ["results", "results/smollm2"])
def test_committed_results_are_of_todays_parameters(folder):
    entries = read_manifest(ROOT / folder).values()
    made = {entry["notebook"]: entry for entry in entries}
    known = [notebook for notebook in all_notebooks() if notebook.stem in made]
    assert len(known) > 8
    assert [x.stem for x in known if defaults_changed(x, made[x.stem])] == []


@pytest.mark.parametrize(
    ("now", "same_here", "same_elsewhere"),
    [
        ("15.7", True, True),
        ("15.7001", False, True),
        ("15.72", False, False),
        ("", False, False),
        ("nan", False, False),
    ],
)
def test_tolerance(now, same_here, same_elsewhere):
    committed, again = [{"method": "a", "ppl": "15.7"}], [{"method": "a", "ppl": now}]
    assert (differences(committed, again, 0) == []) == same_here
    assert (differences(committed, again, 1e-3) == []) == same_elsewhere


def test_texts_rows_and_columns_count():
    row = {"method": "a", "ppl": "15.7"}
    assert differences([row], [row | {"method": "b"}], 1e-3) == [
        "row 1, method: a committed, b now"
    ]
    assert differences([row], [row, row], 1e-3) == ["1 rows committed, 2 now"]
    assert differences([row], [{"method": "a"}], 1) == ["row 1, ppl: 15.7 committed, None now"]
    noise = [{"difference_nats": "6e-06"}], [{"difference_nats": "2e-06"}]
    assert differences(*noise, 1e-3) == []
    assert differences(*noise, 0)


def test_measured_columns_are_left_out(tmp_path):
    table = tmp_path / "a.csv"
    measured = "tpot_ms,tpot_ms_q1,ttft_s,cache_mib,tokens_per_s,static_speedup_q3,limit_%"
    table.write_text(f"method,n,{measured},nll\na,6,1.5,1.5,1.5,1.5,1.5,1.5,1.5,2.25\n")
    assert read_rows(table) == [{"method": "a", "n": "6", "nll": "2.25"}]
    assert has_quality(read_rows(table))
    table.write_text(f"method,n,{measured}\na,6.0,1.5,1.5,1.5,1.5,1.5,1.5,1.5\n")
    assert not has_quality(read_rows(table))
    table.write_text("rule,method,ppl\nfastest,a,1.5\n")
    assert read_rows(table) == []
