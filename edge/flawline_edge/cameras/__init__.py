"""Where pictures come from: one narrow protocol, and what stands behind it."""

from flawline_edge.cameras.camera import Camera, CameraFrame, PictureLost, Truth, open_camera
from flawline_edge.cameras.newest import NewestFrame

__all__ = ["Camera", "CameraFrame", "NewestFrame", "PictureLost", "Truth", "open_camera"]
