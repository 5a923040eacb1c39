"""Execute the notebooks and store their outputs, without times and other traces of the machine.

python docs/_site/notebooks.py                          # all of them, in place
python docs/_site/notebooks.py --out FOLDER NAME        # one of them, into a folder
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

NOTEBOOKS = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
SECONDS = 300  # longest time of a cell


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """Return a notebook with new outputs, executed in a kernel that works in `folder`.

    The kernel talks through files in `folder`, not through the network.
    """
    notebook = nbformat.read(path, as_version=4)
    kernel = AsyncKernelManager(
        kernel_name="python3", transport="ipc", connection_file=str(folder / "kernel.json")
    )
    NotebookClient(
        notebook,
        km=kernel,
        timeout=SECONDS,
        record_timing=False,
        resources={"metadata": {"path": str(folder)}},
    ).execute()
    notebook.metadata["language_info"] = {"name": "python"}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description="Execute the notebooks and store their outputs.")
    parser.add_argument("names", nargs="*", help="notebooks, without .ipynb (default: all)")
    parser.add_argument("--out", type=Path, default=NOTEBOOKS, help="folder of the results")
    args = parser.parse_args()
    # A hint of tqdm on a package for progress bars would be among the outputs.
    os.environ["PYTHONWARNINGS"] = "ignore:IProgress not found"
    os.environ["PYTHONPATH"] = os.pathsep.join(
        [str(NOTEBOOKS.parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    )
    for name in args.names or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        with TemporaryDirectory() as folder:
            notebook = execute(NOTEBOOKS / f"{name}.ipynb", Path(folder))
        nbformat.write(notebook, args.out / f"{name}.ipynb")
        print(f"{name}: {len(notebook.cells)} cells")


if __name__ == "__main__":
    main()
