"""Small pictures of images, as text that a page can hold."""

import base64
import io

import numpy as np
from numpy.typing import NDArray

THUMBNAIL = 96  # pixels a side, at most


def png_of(image: NDArray[np.uint8]) -> str:
    """Return an image `[c, h, w]` as a PNG file in base 64, shrunk where it is large."""
    from PIL import Image  # here, because the command line must list its commands without waiting for it

    picture = Image.fromarray(image[0] if len(image) == 1 else np.ascontiguousarray(image.transpose(1, 2, 0)))
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    picture.save(content, "PNG")
    return base64.b64encode(content.getvalue()).decode()
