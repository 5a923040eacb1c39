"""Names in the folder of a run that belong to its checkpoints."""

FOLDER = "checkpoints"  # folder of the checkpoints
# File in that folder that records the data and settings of the run; see `trainenv.records.made_of`.
MADE_OF = "made_of.json"
