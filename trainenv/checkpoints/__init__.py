"""Checkpoints: a snapshot as a file, exact or compact, safe against crashes and hostile bytes.

`store` keeps a folder of them, `file` is one, `schema` says what is in it; `convert` comes from and
goes to plain torch.
"""

FOLDER = "checkpoints"  # where they are in the folder of a run
MADE_OF = (
    "made_of.json"  # beside them: what the run is trained with, see `trainenv.records.made_of`
)
