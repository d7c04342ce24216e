"""Who handed in what: submissions out of a folder or a zip archive, by the names that the systems give them."""

import datetime
import hashlib
import re
import unicodedata
import zipfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from .sandbox import MIB

LARGEST = 16 * MIB  # of a notebook; with a hundred figures in it one has a few

# Canvas: smithzoe_LATE_4711_98765_homework-1.ipynb, in which 4711 is the user; smithzoe_4711_text.html for an online
# text or link; LATE_anon_Zx3fa_98765_homework-1.ipynb where names are hidden
CANVAS = re.compile(
    r"(?P<name>[^/]+?)(?P<late>_LATE)?_(?P<number>\d+)_(?:\d+_[^/]*|text|link)"
    r"|(?P<hidden_late>LATE_)?(?P<hidden>anon_[A-Za-z0-9]+)_\d+_[^/]*"
)
# Moodle: "Zoë Smith_4711_assignsubmission_file_/homework.ipynb" (or "..._file_homework.ipynb"), 4711 the participant
MOODLE = re.compile(r"(?P<name>[^/]+?)_(?P<number>\d+)_assignsubmission_[a-z]+(?:_[^/]*)?")
# Gradescope: submission_4711/homework.ipynb
GRADESCOPE = re.compile(r"(?P<name>submission_(?P<number>\d+))")


class Student(NamedTuple):
    """Whose a file is, as far as its name tells."""

    name: str
    number: str = ""  # the student's in `system`
    system: str = ""  # "canvas" or "moodle"
    late: bool = False


@dataclass(frozen=True)
class Submission:
    """What one student handed in."""

    who: Student
    source: Path  # the folder or archive
    member: str  # the file's path inside
    modified: float
    size: int

    @property
    def id(self):
        """A name for files: the student's, made safe, and short."""
        plain = unicodedata.normalize("NFC", self.who.name)
        safe = re.sub(r"[^\w.-]+", "-", plain).strip(".-")[:60] or "student"
        if safe != plain:  # two names may look alike once they are safe
            safe += "-" + hashlib.sha256(readable(plain).encode()).hexdigest()[:6]
        return f"{safe}-{self.who.number}" if self.who.number else safe

    @property
    def is_notebook(self):
        return is_notebook(self.member)

    def text(self):
        """The notebook's text.

        Raises:
            ValueError: it is no notebook, too large, or cannot be read.
        """
        if not self.is_notebook:
            empty = self.member.endswith("/")
            raise ValueError("there is nothing in the folder" if empty else "the file is not a notebook (.ipynb)")
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


def collect(source, level=None):
    """What each student handed in, out of a folder or zip archive.

    A student is recognized by the name that Canvas, Moodle or Gradescope gives to a file or its folder. Elsewhere
    each notebook and each folder is a student's, and a folder that holds all the others does not count.

    Args:
        source: folder or zip archive.
        level: how far down the students' files or folders are: 1 at the top, 2 in folders there (sections, say).
            By default 1, but then a folder there with several notebooks is an error.

    Returns:
        (submissions, left_out): the submissions sorted by student, also of those who handed in no notebook; of files
        that are not looked at, (file, why).

    Raises:
        ValueError: there is no such folder or archive, no notebook in it, or it is not clear whose they are.
    """
    source = Path(source)
    if source.is_dir():
        files = files_of_folder(source)
    elif zipfile.is_zipfile(source):
        files = files_of_archive(source)
    else:
        raise ValueError(f"submissions: got {str(source)!r}, expected a folder or a zip archive of notebooks")
    hidden = (".", "__MACOSX")  # checkpoints, and macOS's shadows
    files = [f for f in files if not any(part.startswith(hidden) for part in PurePosixPath(f[0]).parts)]
    if not any(is_notebook(member) for member, *_ in files):
        raise ValueError(f"submissions: got {str(source)!r}, expected notebooks (*.ipynb) in it")

    by_student, left_out = {}, []
    for (member, modified, size), found in zip(files, who([member for member, *_ in files], level)):
        if found is None:
            left_out.append((member, "has no name of a student's"))
        else:
            new = Submission(found, source, member, modified, size)
            by_student.setdefault(new.id.casefold(), []).append(new)  # some file systems do not tell Zoe from zoe
    submissions = []
    for handed_in in by_student.values():
        *others, counts = sorted(handed_in, key=lambda s: (s.is_notebook, s.modified, s.member))
        submissions.append(counts)
        left_out += [(s.member, f"is older than another notebook of {s.who.name}") for s in others if s.is_notebook]
    return sorted(submissions, key=lambda s: s.id), sorted(left_out)


def is_notebook(member):
    return member.lower().endswith(".ipynb")


def files_of_folder(folder):
    """(path inside, time, size) of a folder's files and, with a slash at the end, empty folders."""
    found = []
    for path in folder.rglob("*"):
        if path.is_symlink():  # it could lead anywhere on this machine
            continue
        if path.is_file() or not any(path.iterdir()):
            stat = path.stat()
            found.append((path.relative_to(folder).as_posix() + "/" * path.is_dir(), stat.st_mtime, stat.st_size))
    return found


def files_of_archive(path):
    """The same of a zip archive's."""
    with zipfile.ZipFile(path) as archive:
        members = archive.infolist()
    full = {f"{parent}/" for m in members for parent in PurePosixPath(m.filename).parents}
    return [
        (m.filename, datetime.datetime(*m.date_time).timestamp(), m.file_size)
        for m in members if m.filename not in full
    ]  # fmt: skip


def who(members, level=None):
    """The `Student` of each file by its path in the folder or archive; None where it is nobody's."""
    paths = [PurePosixPath(member).parts for member in members]
    while len(paths) > 1 and len({parts[0] for parts in paths}) == 1 and min(map(len, paths)) > 1:
        if recognized(paths[0][:1], 1):  # all of it is one student's
            break
        paths = [parts[1:] for parts in paths]
    found = [recognized(parts, level or 1) for parts in paths]

    places, by_a_system = {}, any(found)  # of those whose names no system gave: where the student's things are
    for i, (parts, member) in enumerate(zip(paths, members)):
        if found[i]:
            continue
        own = parts[: level or 1]
        if len(own) < len(parts) or member.endswith("/"):
            places[i] = own
        elif is_notebook(member) or not by_a_system:  # which would have named it
            places[i] = (*own[:-1], PurePosixPath(own[-1]).stem)
    if level is None:
        inside = Counter(own for i, own in places.items() if len(paths[i]) > 1 and is_notebook(members[i]))
        for own, several in inside.items():
            if several > 1:
                raise ValueError(
                    f"level: got {several} notebooks in {own[0]!r}, expected 1 (--level 1) if a folder is one "
                    "student's, 2 (--level 2) if it holds the files or folders of several"
                )
    alike = Counter(own[-1].casefold() for own in {tuple(map(str.casefold, own)) for own in places.values()})
    for i, own in places.items():
        found[i] = Student(own[-1] if alike[own[-1].casefold()] == 1 else "/".join(own))
    return found


def recognized(parts, level):
    """The `Student` in a path as one of the systems names it, or None."""
    folders, stem = parts[:-1], PurePosixPath(parts[-1]).stem
    for part in (*folders, stem, parts[-1]):
        if match := MOODLE.fullmatch(part):
            return Student(match["name"], match["number"], "moodle")
        if match := GRADESCOPE.fullmatch(part):
            return Student(match["name"])
    if len(parts) == level and (match := CANVAS.fullmatch(stem)):  # deeper down names are the students' own
        if match["hidden"]:
            return Student(match["hidden"], late=bool(match["hidden_late"]))
        return Student(match["name"], match["number"], "canvas", bool(match["late"]))
    return None


def readable(name):
    """A file name as text that can be written, whatever bytes it is made of."""
    return name.encode("utf-8", "backslashreplace").decode()
