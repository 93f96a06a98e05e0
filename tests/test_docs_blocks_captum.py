"""The page "Coming from captum, Quantus, pytorch-grad-cam" runs as it is printed; and the helper that runs it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from doc_blocks import ROOT, blocks, run

from benchmarks import captum_agreement
from benchmarks.zennit_import import import_zennit

PAGE = ROOT / "docs" / "coming_from_captum.md"


@pytest.mark.filterwarnings("ignore")
def test_the_page_runs(tmp_path: Path) -> None:
    import_zennit()  # Quantus imports it, and it torchvision
    names, _ = run(PAGE, tmp_path)
    assert names["attribution"].shape == names["x"].shape and names["heatmaps"].shape == (4, 1, 32, 32)
    assert names["grayscale"].shape == names["fine"].shape == (4, 32, 32)
    assert [part.shape[1] for part in names["at_inputs"]] == [8, 16] and "theirs" in names


def test_the_command_runs_and_agrees() -> None:
    rows = captum_agreement.main(["--networks", "vgg11", "--size", "32", "--batch", "1"])
    assert [row["rule"] for row in rows[:3]] == list(captum_agreement.RULES)
    assert all(row["double"] <= 1e-10 for row in rows[:3])
    assert rows[4]["rule"] == "EpsilonLayerwise(1e-9)" and rows[4]["cosine"] > 0.999999 > 0.95 > rows[3]["cosine"]


PAGE_OF_ALL = """\
```python
a = 1
```
<!-- no-run -->
```python
raise SystemExit
```
1. An item:
   ```python
   if a:
       b = a + 1
   ```
~~~sh
rm -rf /
~~~
<!-- needs: no_such_package_at_all -->
```python
import no_such_package_at_all
```
````python
text = '''
```
'''
open("made", "w").write(text)
print(b)
````
"""


def test_blocks_are_found_and_run(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(PAGE_OF_ALL)
    assert [block.language for block in blocks(page, None)] == ["python", "python", "python", "sh", "python", "python"]
    assert [block.line for block in blocks(page)] == [2, 6, 10, 18, 21] and blocks(page)[
        2
    ].code == "if a:\n    b = a + 1\n"
    names, printed = run(page, tmp_path, {"given": torch.tensor(1)})
    assert names["b"] == 2 and printed == "2\n" and (tmp_path / "made").exists() and Path.cwd() != tmp_path
    page.write_text("Text.\n\n```python\nx = 1\nx / 0\n```\n")
    with pytest.raises(ZeroDivisionError) as caught:
        run(page, tmp_path)
    assert caught.traceback[-1].lineno + 1 == 5 and str(caught.traceback[-1].path) == str(page)
    page.write_text("<!-- no-run -->\n```python\nx = = 1\n```\n")
    with pytest.raises(SyntaxError):
        run(page, tmp_path)
