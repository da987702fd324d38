"""Single small files by their path, wherever they lie: in Cloud Storage, on this machine, or where else Beam's FileSystems reach."""

from __future__ import annotations

from apache_beam.io.filesystems import FileSystems

from tiebeam import gcs


def join(folder: str, *names: str) -> str:
    """The path of what lies in a folder."""
    return "/".join([folder.rstrip("/"), *names]) if gcs.is_gcs(folder) else FileSystems.join(folder, *names)


def read(path: str) -> bytes:
    """The content of a file; OSError when it cannot be had."""
    if gcs.is_gcs(path):
        return gcs.read(path)
    with FileSystems.open(path) as file:
        return file.read()


def write(path: str, data: bytes) -> None:
    """Makes a file, or replaces the one that is there, in one step."""
    if gcs.is_gcs(path):
        gcs.put(path, data)
        return
    folder = FileSystems.split(path)[0]
    if not FileSystems.exists(folder):
        FileSystems.mkdirs(folder)
    with FileSystems.create(f"{path}.new") as file:
        file.write(data)
    FileSystems.rename([f"{path}.new"], [path])


def exists(path: str) -> bool:
    """Whether there is a file, or a folder with something in it."""
    if gcs.is_gcs(path):
        return gcs.find(path) is not None or next(gcs.below(f"{path.rstrip('/')}/"), None) is not None
    return FileSystems.exists(path)


def ending(folder: str, suffix: str) -> list[str]:
    """The paths of the files directly in a folder whose names end so; none when there is no such folder."""
    if gcs.is_gcs(folder):
        return [found.path for found in gcs.below(f"{folder.rstrip('/')}/", deep=False) if found.path.endswith(suffix)]
    return [m.path for match in FileSystems.match([FileSystems.join(folder, f"*{suffix}")]) for m in match.metadata_list]


def remove(path: str) -> None:
    """Removes a file."""
    if gcs.is_gcs(path):
        gcs.remove(path)
    else:
        FileSystems.delete([path])
