"""The command line: `python -m vanishing.coursework assign | grade | gradescope`."""

import argparse
import signal
import sys
from pathlib import Path

from .sandbox import SandboxError


def parser():
    """The commands and their options."""
    main = argparse.ArgumentParser(
        prog="python -m vanishing.coursework",
        description="Hand out exercises of the book and grade a class's notebooks.",
    )
    commands = main.add_subparsers(dest="command", required=True)
    a = commands.add_parser("assign", help="write the files of an assignment")
    a.add_argument("topics", nargs="+", metavar="TOPIC", help="chapters, such as chain-rule")
    a.add_argument(
        "--out", required=True, metavar="DIR", help="a new folder: student/ to hand out, instructor/ to keep"
    )
    a.add_argument("--title", default="", help="by default made of the topics")
    a.add_argument("--seed", type=int, help="of the hidden inputs (default: a random one, kept in assignment.json)")
    a.add_argument("--install", default="", metavar="WHAT", help="what pip installs on Colab, such as git+https://...")
    a.add_argument("--seconds", type=float, help="that a notebook may take when graded (default: 10 a chapter)")
    a.add_argument("--call-seconds", type=float, default=2, help="that a cell or a call may take (default: 2)")
    g = commands.add_parser("grade", help="grade a folder or zip archive of notebooks")
    g.add_argument("submissions", metavar="SUBMISSIONS", help="folder or zip, as Canvas, Moodle, Gradescope give it")
    g.add_argument("--assignment", required=True, metavar="DIR", help="the folder that `assign` wrote")
    g.add_argument(
        "--out", required=True, metavar="DIR", help="for results, feedback and tables; may hold earlier ones"
    )
    g.add_argument("--level", type=int, choices=[1, 2], metavar="N",
                   help="the students' files or folders are at the top (1), or in folders there, such as sections (2)")  # fmt: skip
    g.add_argument("--seconds", type=float, help="for a notebook, instead of the assignment's")
    g.add_argument("--call-seconds", type=float, help="for a cell or a call, instead of the assignment's")
    g.add_argument("--again", action="store_true", help="keep no result of an earlier run")
    g.add_argument("--jobs", type=int, help="processes (default: twice the cores)")
    g.add_argument("--trust", action="store_true",
                   help="DANGEROUS: run students' code without a sandbox, with your own rights over this machine")  # fmt: skip
    s = commands.add_parser("gradescope", help="grade one submission inside Gradescope's container")
    s.add_argument("root", type=Path, help="/autograder")
    return main


def main():
    """Run a command; what is wrong with its arguments is said in a line."""
    options = parser().parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C, and with it the workers
    try:
        if options.command == "assign":
            from .assign import assign

            assignment = assign(
                options.topics, options.out, title=options.title, seed=options.seed, install=options.install,
                call_seconds=options.call_seconds, seconds=options.seconds,
            )  # fmt: skip
            total = sum(points for *_, points in assignment["points"])
            print(f"{len(assignment['exercises'])} exercises, {total:g} points.")
            print(f"Hand out:  {options.out}/student/\nKeep:      {options.out}/instructor/ (it holds the solutions)")
            if not assignment["install"]:
                print("Where the package is missing, students cannot install it from the notebook: say --install.")
        elif options.command == "grade":
            from .grade import grade

            kind = "trust" if options.trust else "bubblewrap"
            results = grade(
                options.submissions, options.assignment, options.out, level=options.level, again=options.again,
                call_seconds=options.call_seconds, seconds=options.seconds, kind=kind, jobs=options.jobs,
            )  # fmt: skip
            print(f"{len(results)} students. Open {options.out}/summary.html, which says what to look at.")
        else:
            from .grade import grade_on_gradescope

            grade_on_gradescope(options.root)
    except (OSError, ValueError, SandboxError) as error:
        sys.exit(str(error))
    except KeyboardInterrupt:
        print("\nStopped. What was graded is kept: the same command goes on from there.", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
