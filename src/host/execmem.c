#include "host/execmem.h"

#include <errno.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int execmem_init(struct execmem *m, size_t size_bytes, struct error *e)
{
	memset(m, 0, sizeof *m);
	int fd = memfd_create("vixen-code", MFD_CLOEXEC), err;
	if (fd < 0 || ftruncate(fd, (off_t)size_bytes) < 0)
		goto fail;
	m->size_bytes = size_bytes;
	m->rw = mmap(NULL, size_bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
	if (m->rw == MAP_FAILED)
		goto fail;
	m->rx = mmap(NULL, size_bytes, PROT_READ | PROT_EXEC, MAP_SHARED, fd, 0);
	if (m->rx == MAP_FAILED)
		goto fail_rx;
	close(fd);
	return 0;
fail_rx:
	err = errno;
	munmap(m->rw, size_bytes);
	errno = err;
fail:
	err = errno;
	if (fd >= 0)
		close(fd);
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
