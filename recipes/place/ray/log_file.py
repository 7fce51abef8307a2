"""What Ray has written down of a process, on the node that it ran on."""

from pathlib import Path


def last_lines(folder: str, pid: int, num_lines: int) -> str:
    """The end of what Ray has written down of a process of this node."""
    found: list[str] = []
    for path in sorted(Path(folder).glob(f"worker-*-{pid}.*")):
        lines = path.read_text(errors="replace").splitlines()
        found += [line for line in lines if not line.startswith((":job_id:", ":actor_name:"))]
    return "\n".join(found[-num_lines:])
