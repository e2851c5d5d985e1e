"""The device of a part: waiting for it, and giving its memory back."""

from __future__ import annotations

import gc

from gpu_job import Job


def synchronize(job: Job) -> None:
    """Waits for the device."""
    if job.cuda:
        import torch

        torch.cuda.synchronize()


def release(job: Job) -> int | None:
    """Gives memory on the device back; the most that was taken since the last call, in bytes."""
    gc.collect()
    if not job.cuda:
        return None
    import torch

    most = int(torch.cuda.max_memory_allocated())
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    return most
