"""The ATLAS application: its core (`ATLAS.ATLAS.ATLAS`) takes every store from `modules.storage`.

`python -m ATLAS` runs its services together.
"""
