"""Parts of HTML reports: templates, and pictures as text."""

from __future__ import annotations

import base64
import io

from jinja2 import Environment, PackageLoader, Template
from PIL import Image

from segpipe.progress import duration


def template(name: str) -> Template:
    """A page of the package; what it is filled with is escaped."""
    templates = Environment(
        loader=PackageLoader("segpipe", "."), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    templates.filters["duration"] = duration
    return templates.get_template(name)


def jpeg(picture: Image.Image) -> str:
    """A picture as a URI that holds it."""
    return embedded(jpeg_file(picture), "jpeg")


def jpeg_file(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()


def embedded(file: bytes, kind: str) -> str:
    """An image file of this kind (jpeg or png) as a URI that holds it."""
    return f"data:image/{kind};base64,{base64.b64encode(file).decode()}"
