#include "host/execmem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>

/* The second mapping is made by mremap() of length 0, which duplicates a shared one: shared anonymous memory, unlike a
 * memfd, is where perf looks its map files up. */
int execmem_init(struct execmem *m, size_t size_bytes, struct error *e)
{
	int err;

	memset(m, 0, sizeof *m);
	m->size_bytes = size_bytes;
	m->rw = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (m->rw == MAP_FAILED)
		goto fail;
	m->rx = mremap(m->rw, 0, size_bytes, MREMAP_MAYMOVE);
	if (m->rx == MAP_FAILED)
		goto fail_rx;
	if (!mprotect(m->rx, size_bytes, PROT_READ | PROT_EXEC))
		return 0;
	err = errno;
	munmap(m->rx, size_bytes);
	errno = err;
fail_rx:
	err = errno;
	munmap(m->rw, size_bytes);
	errno = err;
fail:
	err = errno;
	memset(m, 0, sizeof *m);
	return error_errno(e, err, "check memory limits and whether this host forbids executable memory",
			   "map %zu MiB for translated code", size_bytes >> 20);
}

void execmem_fini(struct execmem *m)
{
	if (m->rw) {
		munmap(m->rw, m->size_bytes);
		munmap(m->rx, m->size_bytes);
	}
	memset(m, 0, sizeof *m);
}
