# SPDX-License-Identifier: MIT
"""The data sets, a file each."""

from openseg.data.datasets.camvid import CamVid
from openseg.data.datasets.folder import FolderDataset
from openseg.data.datasets.scenes import ContextScenes

__all__ = ["CamVid", "ContextScenes", "FolderDataset"]
