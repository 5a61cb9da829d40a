"""Images in memory, and which of them a training step sees."""

from nearzero.data.folder import read_folder
from nearzero.data.images import Images, embedded

__all__ = ["Images", "embedded", "read_folder"]
