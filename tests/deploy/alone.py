"""Runs the files of an export in a process that has neither optkit nor torch."""

import subprocess
import sys

# what may not be imported, in an isolated process whose path is the standard one and the export's folder
RUNNER = """
import os, runpy, sys
refused, folder, sys.argv = sys.argv[1].split(","), sys.argv[2], sys.argv[3:]

class Refusal:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in refused:
            raise ImportError(f"{name} is not to be imported here")

sys.meta_path.insert(0, Refusal())
sys.path.insert(0, folder)
if sys.argv[0] == "-c":
    exec(sys.argv[1], {"__name__": "__main__"})
else:
    runpy.run_path(os.path.join(folder, sys.argv[0]), run_name="__main__")
"""
ALL = ("optkit", "torch", "transformers", "torchvision", "torchao")


def run_alone(folder, *arguments, refused=ALL, cwd=None):
    """A script of an export's folder with its arguments, or ``-c CODE``; gives the finished process."""
    command = [sys.executable, "-I", "-c", RUNNER, ",".join(refused), str(folder), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd or folder, timeout=300)
