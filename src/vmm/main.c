/*
 * vixen-vmm: the process of one VM.  Started by vixen with three inherited file descriptors:
 *
 *   vixen-vmm CONFIG-FD CONSOLE-FD CONTROL-FD
 *
 * CONFIG-FD: JSON (vmm/vm_config.h); CONSOLE-FD: a stream socket, or -1; CONTROL-FD: a listening socket, or -1.
 */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "vmm/vm.h"

#define CONFIG_MAX (1 << 20)

static int config_read(struct vm_config *c, int fd, struct error *e)
{
	struct stat st;
	if (fstat(fd, &st) || st.st_size <= 0 || st.st_size > CONFIG_MAX)
		return error_set(e, EINVAL, "start it through vixen run", "read the VM's configuration",
				 "file descriptor %d holds none", fd);
	void *p = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	if (p == MAP_FAILED)
		return error_errno(e, errno, NULL, "read the VM's configuration");
	int ret = vm_config_decode(c, p, (size_t)st.st_size, e);
	munmap(p, (size_t)st.st_size);
	close(fd);
	return ret;
}

int main(int argc, char **argv)
{
	struct error e = { 0 };
	struct vm_config c = { 0 };
	struct vm *vm = NULL;
	if (argc != 4) {
		fprintf(stderr, "vixen: start vixen-vmm failed: it takes three file descriptors; use vixen run\n");
		return VM_EXIT_USAGE;
	}
	int code = VM_EXIT_FAILED;
	if (!config_read(&c, atoi(argv[1]), &e) && !vm_new(&vm, &c, atoi(argv[2]), atoi(argv[3]), &e))
		code = vm_run(vm, &e);
	if (code == VM_EXIT_FAILED || code == VM_EXIT_CRASHED)
		error_print(&e);
	vm_free(vm);
	vm_config_fini(&c);
	return code;
}
