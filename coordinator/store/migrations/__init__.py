"""The schema's history: one module a revision in `versions/`, applied in order to whatever store is opened.

A change of `coordinator/store/schema.py` comes with a new revision, and `HEAD_REVISION` there names it. A revision is
never changed once released.
"""
