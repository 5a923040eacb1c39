"""Work over several processes.

`JobPool` shares a list of independent jobs between processes of this machine. Comparisons and the
data set of the world model are made with it:

    with job_pool(work, executor="local", workers=4) as pool:
        pool.run(jobs, on_result=keep, on_lost=note_failure)

With the executor `ray` or `ray://HOST:PORT` the same jobs are done on a Ray cluster:

- `executors`: names of executors, and `job_pool`, which makes either pool.
- `ray_cluster`: the connection; `ray_job_pool`: independent jobs; `ray_peer`: processes that hold
  state and answer messages, and values that they share.

The other modules train one model by the processes that `torchrun` has started:

- `processes`: what a run asks of them; `ddp` and `fsdp` are two kinds. `joining` picks one.
- `group`: the process group, and sentences for processes that were lost; `heartbeat` finds them.
- `control`, `controlled_run`: process 0 decides, and all make the same calls.
- `shards`: norms of tensors of which each process holds a part.
"""

from trainenv.distributed.executors import LOCAL, job_pool
from trainenv.distributed.job_pool import JobPool

__all__ = ["LOCAL", "JobPool", "job_pool"]
