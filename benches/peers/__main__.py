"""List the peers and which of them could run here."""

import torch

from benches.machine import default_device
from benches.no_options import no_options
from benches.peers import every_peer


def main() -> None:
    device: torch.device = default_device()
    for peer in every_peer():
        print(f"{peer.operation:22} {peer.name:22} {peer.missing(device) or 'can run'}")


if __name__ == "__main__":
    no_options(__doc__)
    main()
