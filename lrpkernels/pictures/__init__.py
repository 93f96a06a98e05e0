"""Pictures of heatmaps: show, save, relevance by layer. Needs matplotlib (``pip install matplotlib``); docs/pictures.md."""

from .amounts import flow, show_flow
from .draw import draw_image, draw_map, relevance_colors
from .figures import picture, preset, save, show

__all__ = ["draw_image", "draw_map", "flow", "picture", "preset", "relevance_colors", "save", "show", "show_flow"]
