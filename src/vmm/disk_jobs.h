/*
 * Jobs on the disks of a VM that runs (block/live.h), one at a time on each: from a request on the control socket to
 * its answer.  A client that leaves does not end its job.
 *
 * Owner: struct vm.  Thread: the loop's.
 */
#ifndef VIXEN_VMM_DISK_JOBS_H
#define VIXEN_VMM_DISK_JOBS_H

struct vm;

/* All are cancelled and have ended when it returns; runs the loop. */
void disk_jobs_end(struct vm *vm);

#endif
