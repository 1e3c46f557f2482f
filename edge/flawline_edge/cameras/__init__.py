"""Where pictures come from: one narrow protocol, and what stands behind it."""

from flawline_edge.cameras.camera import Camera, CameraFrame, PictureLost, Truth, open_camera
from flawline_edge.cameras.newest import NewestFrame
from flawline_edge.cameras.window import FrameWindow

__all__ = ["Camera", "CameraFrame", "FrameWindow", "NewestFrame", "PictureLost", "Truth", "open_camera"]
