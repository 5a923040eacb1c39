"""Live view of a run's folder, in the browser and in the terminal; it reads and never writes.

    reader = RunReader(Path("runs/mine"))
    reader.poll()                       # reads what is new
    state_of(reader)                    # the state in words and numbers, as JSON values

`run_reader` follows the files, `steps` holds the telemetry and thins it, `state` and `story` put
into words what has happened, `server` serves the page and `terminal` draws a frame of text.
"""

from trainenv.watch.run_reader import RunReader
from trainenv.watch.state import state_of

__all__ = ["RunReader", "state_of"]
