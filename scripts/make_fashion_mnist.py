"""Makes src/nearzero/data/fashion_mnist.png from the Debian package dataset-fashion-mnist.

The first 200 training images of each of the 10 classes, as tiles of 28 x 28 pixels: 40 lines of 50, 4 lines a class.

    apt-get install dataset-fashion-mnist
    python scripts/make_fashion_mnist.py [/usr/share/datasets/fashion-mnist]
"""

import gzip
import struct
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SOURCE = Path(sys.argv[1] if len(sys.argv) > 1 else "/usr/share/datasets/fashion-mnist")
TARGET = Path(__file__).parents[1] / "src/nearzero/data/fashion_mnist.png"


def read_idx(path: Path) -> np.ndarray:
    """An idx file: two zero bytes, the type, the number of dimensions, each as a big-endian int32, then the bytes."""
    content = gzip.decompress(path.read_bytes())
    dims = content[3]
    shape = struct.unpack(f">{dims}I", content[4 : 4 + 4 * dims])
    return np.frombuffer(content, np.uint8, offset=4 + 4 * dims).reshape(shape)


def main() -> None:
    """Writes the sheet."""
    images, labels = read_idx(SOURCE / "train-images-idx3-ubyte.gz"), read_idx(SOURCE / "train-labels-idx1-ubyte.gz")
    tiles = np.concatenate([images[labels == label][:200] for label in range(10)])
    sheet = tiles.reshape(40, 50, 28, 28).swapaxes(1, 2).reshape(40 * 28, 50 * 28)
    Image.fromarray(sheet).save(TARGET, optimize=True)
    print(f"{TARGET}: {TARGET.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
