"""The verdict on one mutant: the nearest tests first, the further ones only if it survives them."""

import subprocess
import sys

PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]

if __name__ == "__main__":
    for tests in sys.argv[1:]:
        if code := subprocess.run([*PYTEST, *tests.split(",")]).returncode:
            sys.exit(code)
