"""Who handed in what: submissions out of a folder or a zip archive, by the names that the systems give them."""

import datetime
import hashlib
import re
import unicodedata
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from .sandbox import MIB

LARGEST = 16 * MIB  # of a notebook; with a hundred figures in it one has a few

# Canvas: smithzoe_LATE_4711_98765_homework-1.ipynb, in which 4711 is the user
CANVAS = re.compile(r"(?P<name>[^_/]+)(?:_LATE)?_(?P<number>\d+)_\d+_[^/]*")
# Moodle: "Zoë Smith_4711_assignsubmission_file_/homework.ipynb" (or "..._file_homework.ipynb"), 4711 the participant
MOODLE = re.compile(r"(?P<name>[^/]+?)_(?P<number>\d+)_assignsubmission_[a-z]+(?:_[^/]*)?")
# Gradescope: submission_4711/homework.ipynb
GRADESCOPE = re.compile(r"(?P<name>submission_(?P<number>\d+))")


@dataclass(frozen=True)
class Submission:
    """One student's notebook file. `number` is the student's in Canvas or Moodle, if the name tells."""

    student: str
    number: str
    source: Path  # the file, or the archive that holds it
    member: str  # its path inside
    modified: float
    size: int

    @property
    def id(self):
        """A name for files: the student's, made safe, and short."""
        plain = unicodedata.normalize("NFC", self.student)
        safe = re.sub(r"[^\w.-]+", "-", plain).strip(".-")[:60] or "student"
        if safe != plain:  # two names may look alike once they are safe
            safe += "-" + hashlib.sha256(readable(plain).encode()).hexdigest()[:6]
        return f"{safe}-{self.number}" if self.number else safe

    def text(self):
        """The notebook's text.

        Raises:
            ValueError: it is too large, or cannot be read.
        """
        if self.size > LARGEST:
            raise ValueError(f"the file has {self.size / MIB:.0f} MB, more than the {LARGEST // MIB} that are read")
        try:
            if self.source.is_dir():
                with open(self.source / self.member, "rb") as file:
                    data = file.read(LARGEST + 1)
            else:
                with zipfile.ZipFile(self.source) as archive, archive.open(self.member) as file:
                    data = file.read(LARGEST + 1)  # whatever the archive says about the size
        except (OSError, RuntimeError, NotImplementedError, zipfile.BadZipFile, EOFError) as error:
            raise ValueError(f"the file cannot be read ({type(error).__name__})") from error
        if len(data) > LARGEST:
            raise ValueError(f"the file has more than the {LARGEST // MIB} MB that are read")
        return data.decode("utf-8-sig", errors="replace")


def collect(source):
    """The submissions in a folder or zip archive, one a student, and those that a newer one replaces.

    A student is recognized by the name that Canvas, Moodle or Gradescope gives to the file or its
    folder; otherwise by the folder, or for files on the top level by the file's own name.

    Returns:
        (submissions, replaced), both sorted by student.

    Raises:
        ValueError: there is no such folder or archive, or no notebook in it.
    """
    source = Path(source)
    if source.is_dir():
        files = [(p.relative_to(source).as_posix(), p.lstat()) for p in source.rglob("*.ipynb") if is_own_file(p)]
        files = [(member, stat.st_mtime, stat.st_size) for member, stat in files]
    elif zipfile.is_zipfile(source):
        with zipfile.ZipFile(source) as archive:
            members = [m for m in archive.infolist() if m.filename.endswith(".ipynb") and not m.is_dir()]
        files = [(m.filename, datetime.datetime(*m.date_time).timestamp(), m.file_size) for m in members]
    else:
        raise ValueError(f"submissions: got {str(source)!r}, expected a folder or a zip archive of notebooks")
    hidden = (".", "__MACOSX")  # checkpoints, and macOS's shadows
    files = [f for f in files if not any(part.startswith(hidden) for part in PurePosixPath(f[0]).parts)]
    if not files:
        raise ValueError(f"submissions: got {str(source)!r}, expected notebooks (*.ipynb) in it")

    newest, replaced = {}, []
    for member, modified, size in sorted(files, key=lambda file: (file[1], file[0])):
        new = Submission(*who(member), source, member, modified, size)
        key = new.id.casefold()  # some file systems do not tell Zoe from zoe
        if key in newest:
            replaced.append(newest[key])
        newest[key] = new
    return sorted(newest.values(), key=lambda s: s.id), sorted(replaced, key=lambda s: s.id)


def readable(name):
    """A file name as text that can be written, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()


def is_own_file(path):
    """A link could lead anywhere on this machine."""
    return path.is_file() and not path.is_symlink()


def who(member):
    """(student, number) of a file by its path in the folder or archive."""
    path = PurePosixPath(member)
    for part in (*path.parts[-2::-1], path.stem):
        for pattern in (MOODLE, CANVAS, GRADESCOPE):
            if match := pattern.fullmatch(part):
                return match["name"], match["number"]
    return (path.parts[-2] if len(path.parts) > 1 else path.stem), ""
