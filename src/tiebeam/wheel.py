"""The wheel of the tiebeam that runs, made from its files: what images install, wherever it came from itself."""

from __future__ import annotations

import base64
import hashlib
import io
import zipfile
from importlib import metadata
from pathlib import Path

import tiebeam
from tiebeam.errors import ConfigError, Problem

_PACKAGE = Path(tiebeam.__file__).parent
_WHEN = (2020, 1, 1, 0, 0, 0)  # the same files make the same wheel
_KIND = "Wheel-Version: 1.0\nGenerator: tiebeam\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def name() -> str:
    """The name of the file."""
    return f"tiebeam-{tiebeam.__version__}-py3-none-any.whl"


def made() -> tuple[str, bytes]:
    """Name and content of the wheel."""
    try:
        about = metadata.distribution("tiebeam")
    except metadata.PackageNotFoundError:
        raise ConfigError(
            Problem("tiebeam is not installed, so no wheel of it can be made", "template build", "pip install -e .")
        ) from None
    info = f"tiebeam-{tiebeam.__version__}.dist-info"
    files = {f"tiebeam/{path.relative_to(_PACKAGE)}": path.read_bytes() for path in sorted(_PACKAGE.rglob("*")) if _belongs(path)}
    described = {"METADATA": about.read_text("METADATA"), "WHEEL": _KIND, "entry_points.txt": about.read_text("entry_points.txt")}
    files |= {f"{info}/{part}": text.encode() for part, text in described.items() if text}
    record = "".join(f"{path},sha256={_digest(content)},{len(content)}\n" for path, content in files.items()) + f"{info}/RECORD,,\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as wheel:
        for path, content in {**files, f"{info}/RECORD": record.encode()}.items():
            entry = zipfile.ZipInfo(path, _WHEN)
            entry.external_attr = 0o644 << 16
            entry.compress_type = zipfile.ZIP_DEFLATED
            wheel.writestr(entry, content)
    return name(), out.getvalue()


def _belongs(path: Path) -> bool:
    return path.is_file() and "__pycache__" not in path.parts


def _digest(content: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
