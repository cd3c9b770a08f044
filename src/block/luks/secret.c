#include "block/luks/secret.h"

#include <errno.h>
#include <fcntl.h>
#include <openssl/crypto.h>
#include <sys/mman.h>
#include <unistd.h>

static size_t pages(size_t len)
{
	size_t page = (size_t)sysconf(_SC_PAGESIZE);

	return (len + page - 1) / page * page;
}

void *secret_memory(size_t len)
{
	void *p = mmap(NULL, pages(len ? len : 1), PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (p == MAP_FAILED)
		return NULL;
	madvise(p, pages(len ? len : 1), MADV_DONTDUMP);
	(void)!mlock(p, pages(len ? len : 1));
	return p;
}

void secret_memory_free(void *p, size_t len)
{
	if (!p)
		return;
	OPENSSL_cleanse(p, len);
	munmap(p, pages(len ? len : 1));
}

static int fill(struct secret *s, int fd)
{
	ssize_t n = 1;

	while (s->len <= SECRET_MAX && n) {
		n = read(fd, s->bytes + s->len, SECRET_MAX + 1 - s->len);
		if (n < 0 && errno != EINTR)
			return -errno;
		s->len += n > 0 ? (size_t)n : 0;
	}
	return s->len > SECRET_MAX ? -EFBIG : 0;
}

int secret_read(struct secret *s, const char *path, struct error *e)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC | O_NOCTTY), ret;

	*s = (struct secret){ .path = path };
	if (fd < 0)
		return error_errno(e, errno, "check the path and its permissions", "open key file '%s'", path);
	s->bytes = secret_memory(SECRET_MAX + 1);
	ret = s->bytes ? fill(s, fd) : -ENOMEM;
	close(fd);
	if (ret)
		error_errno(e, -ret, "use a file with a passphrase of at most 64 KiB", "read key file '%s'", path);
	else if (s->len && s->bytes[s->len - 1] == '\n')
		s->bytes[--s->len] = 0;
	if (!ret && !s->len)
		ret = error_set(e, EINVAL, "give a passphrase of at least one byte", "read the key file", "it is empty");
	if (ret)
		secret_fini(s);
	return ret;
}

void secret_fini(struct secret *s)
{
	secret_memory_free(s->bytes, SECRET_MAX + 1);
	*s = (struct secret){ 0 };
}
