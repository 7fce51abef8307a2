"""``python -m recipes.place.group [FOLDER]``: be the group whose spec standard input holds.

FOLDER is its own, for temporary files, and is removed at the end.
"""

import sys

from recipes.place.group.local import be_group

if __name__ == "__main__":
    be_group(sys.stdin.read(), sys.argv[1] if len(sys.argv) > 1 else None)
