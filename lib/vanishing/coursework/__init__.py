"""Coursework: hand out the exercises of some chapters, and grade a class of notebooks safely.

    python -m vanishing.coursework assign chain-rule --out homework-1
    python -m vanishing.coursework grade submissions.zip --assignment homework-1 --out grades-1

The instructor's guide in the book tells the rest. Nothing else in the library imports this.
"""
