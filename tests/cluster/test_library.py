"""The library, as the README shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

README = Path(__file__).resolve().parents[2] / "README.md"


def test_the_example_of_the_readme_runs(tmp_path: Path) -> None:
    example = re.search(r"^```python\n(.*?)^```", README.read_text(), re.DOTALL | re.MULTILINE)
    assert example
    assert "/var/lib/dfs-app" in example[1]
    program = example[1].replace("/var/lib/dfs-app", str(tmp_path / "state"))
    (tmp_path / "report.pdf").write_bytes(os.urandom(3_333_333))
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, timeout=90, check=False
    )
    assert done.returncode == 0, done.stderr.decode()
    assert sum(map(int, done.stdout.split())) == 3_333_333
    assert done.stderr == b""
