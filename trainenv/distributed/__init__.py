"""Work over several processes.

`JobPool` shares a list of independent jobs between processes of this machine. Comparisons and the
data set of the world model are made with it:

    with JobPool(work, workers=4) as pool:
        pool.run(jobs, on_result=keep, on_lost=note_failure)
"""

from trainenv.distributed.job_pool import JobPool

__all__ = ["JobPool"]
