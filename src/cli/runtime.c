#include "cli/runtime.h"

#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

#define NAMES_TRIED 1000u
#define LOCK_WHOLE { .l_type = F_WRLCK, .l_whence = SEEK_SET }

bool runtime_name_valid(const char *name)
{
	size_t n = 0;

	for (; name[n]; n++)
		if (!isalnum((unsigned char)name[n]) && (!n || !strchr("._-", name[n])))
			return false;
	return n > 0 && n <= RUNTIME_NAME_MAX;
}

/* --- the folder --- */

static int dir_path(char out[PATH_MAX])
{
	const char *xdg = getenv("XDG_RUNTIME_DIR");

	if (xdg && *xdg == '/')
		return snprintf(out, PATH_MAX, "%s/vixen", xdg);
	if (!geteuid())
		return snprintf(out, PATH_MAX, "/run/vixen");
	return snprintf(out, PATH_MAX, "/tmp/vixen-%u", (unsigned)geteuid());
}

/* Anybody may make a folder in /tmp: it must be ours alone. Descriptor, -ENOENT or another -errno. */
static int dir_open(bool make, char path[PATH_MAX], struct error *e)
{
	struct stat st;
	int fd;

	if (dir_path(path) >= PATH_MAX)
		return error_set(e, ENAMETOOLONG, "set XDG_RUNTIME_DIR to a shorter path", "open the folder of running VMs",
				 "its path is too long");
	if (make && mkdir(path, 0700) && errno != EEXIST)
		return error_errno(e, errno, "set XDG_RUNTIME_DIR to a folder of yours", "make the folder '%s'", path);
	fd = open(path, O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
	if (fd < 0)
		return error_errno(e, errno, "set XDG_RUNTIME_DIR to a folder of yours", "open the folder '%s'", path);
	if (fstat(fd, &st) || st.st_uid != geteuid() || (st.st_mode & 022)) {
		close(fd);
		return error_set(e, EPERM, "set XDG_RUNTIME_DIR to a folder of yours", "open the folder of running VMs",
				 "'%s' belongs to somebody else, or others may write to it", path);
	}
	return fd;
}

/* --- taking a name --- */

/* The lock, or -EAGAIN. Whoever frees a name removes the file under its lock: a lock on a file that has no name any
 * more is worth nothing. */
static int lock_take(int dir, const char *file)
{
	struct stat st;
	int fd;

	for (;;) {
		fd = openat(dir, file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0600);
		if (fd < 0)
			return -errno;
		struct flock lock = LOCK_WHOLE;
		if (fcntl(fd, F_OFD_SETLK, &lock)) {
			int err = errno;
			close(fd);
			return err == EACCES ? -EAGAIN : -err;
		}
		if (!fstat(fd, &st) && st.st_nlink)
			return fd;
		close(fd);
	}
}

static int socket_address(struct sockaddr_un *a, const char *dir, const char *name, struct error *e)
{
	*a = (struct sockaddr_un){ .sun_family = AF_UNIX };
	if (snprintf(a->sun_path, sizeof a->sun_path, "%.*s/%s.sock", (int)sizeof a->sun_path, dir, name) <
	    (int)sizeof a->sun_path)
		return 0;
	return error_set(e, ENAMETOOLONG, "use a shorter name, or set XDG_RUNTIME_DIR to a shorter path",
			 "address the VM's control socket", "its path '%.100s/%s.sock' is too long for a socket", dir, name);
}

static int socket_listen(const char *dir, const char *name, struct error *e)
{
	struct sockaddr_un a;
	int fd, ret = socket_address(&a, dir, name, e);

	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	unlink(a.sun_path);	/* a killed VM's; we have its lock */
	if (fd >= 0 && !bind(fd, (struct sockaddr *)&a, sizeof a) && !listen(fd, 16))
		return fd;
	ret = error_errno(e, errno, "set XDG_RUNTIME_DIR to a folder of yours", "make the control socket '%s'", a.sun_path);
	if (fd >= 0)
		close(fd);
	return ret;
}

static int name_take(struct runtime *r, int dir, const char *path, const char *name, struct error *e)
{
	char file[RUNTIME_NAME_MAX + 8];
	int ret;

	snprintf(file, sizeof file, "%s.lock", name);
	r->lock = lock_take(dir, file);
	if (r->lock < 0)
		return r->lock == -EAGAIN ? -EBUSY : error_errno(e, -r->lock, NULL, "lock the name '%s'", name);
	snprintf(r->name, sizeof r->name, "%s", name);
	r->listen = socket_listen(path, name, e);
	if (r->listen >= 0)
		return 0;
	ret = r->listen;
	unlinkat(dir, file, 0);
	close(r->lock);
	r->lock = -1;
	return ret;
}

/* The hint with what no name can have replaced, and room for a number. */
static void hint_clean(char out[RUNTIME_NAME_MAX + 1], const char *hint)
{
	size_t n = 0;

	for (; *hint && n < RUNTIME_NAME_MAX - 4; hint++)
		if (isalnum((unsigned char)*hint) || (n && strchr("._-", *hint)))
			out[n++] = *hint;
	out[n] = 0;
	if (!n)
		strcpy(out, "vm");
}

int runtime_claim(struct runtime *r, const char *wanted, const char *hint, struct error *e)
{
	char path[PATH_MAX], base[RUNTIME_NAME_MAX + 1], name[RUNTIME_NAME_MAX + 8];
	int dir, ret;

	*r = (struct runtime){ .lock = -1, .listen = -1 };
	dir = dir_open(true, path, e);
	if (dir < 0)
		return dir;
	if (wanted) {
		ret = name_take(r, dir, path, wanted, e);
		if (ret == -EBUSY)
			error_set(e, EBUSY, "use another --name, or stop that one: vixen stop NAME", "start the VM",
				  "a VM named '%s' is running", wanted);
	} else {
		hint_clean(base, hint);
		ret = name_take(r, dir, path, base, e);
		for (unsigned i = 2; ret == -EBUSY && i < NAMES_TRIED; i++) {
			snprintf(name, sizeof name, "%s-%u", base, i);
			ret = name_take(r, dir, path, name, e);
		}
	}
	close(dir);
	return ret;
}

void runtime_release(struct runtime *r)
{
	char path[PATH_MAX], file[RUNTIME_NAME_MAX + 8];
	int dir = r->lock < 0 ? -1 : dir_open(false, path, NULL);

	if (dir >= 0) {
		snprintf(file, sizeof file, "%s.sock", r->name);
		unlinkat(dir, file, 0);
		snprintf(file, sizeof file, "%s.lock", r->name);
		unlinkat(dir, file, 0);
		close(dir);
	}
	if (r->listen >= 0)
		close(r->listen);
	if (r->lock >= 0)
		close(r->lock);
	r->lock = r->listen = -1;
}

/* --- finding --- */

/* Only asks, so that nobody who takes the name at this moment is turned away. */
static bool name_runs(int dir, const char *name)
{
	struct flock lock = LOCK_WHOLE;
	char file[RUNTIME_NAME_MAX + 8];
	bool runs;
	int fd;

	snprintf(file, sizeof file, "%s.lock", name);
	fd = openat(dir, file, O_RDWR | O_CLOEXEC | O_NOFOLLOW);
	if (fd < 0)
		return false;
	runs = !fcntl(fd, F_OFD_GETLK, &lock) && lock.l_type != F_UNLCK;
	close(fd);
	return runs;
}

static int is_lock(const struct dirent *d)
{
	size_t n = strlen(d->d_name);

	return n > 5 && !strcmp(d->d_name + n - 5, ".lock");
}

int runtime_each(bool (*fn)(void *opaque, const char *name), void *opaque, struct error *e)
{
	char path[PATH_MAX];
	struct dirent **list = NULL;
	int dir = dir_open(false, path, e), n;
	bool more = true;

	if (dir < 0)
		return dir == -ENOENT ? 0 : dir;
	n = scandirat(dir, ".", &list, is_lock, alphasort);
	for (int i = 0; i < n; i++) {
		list[i]->d_name[strlen(list[i]->d_name) - 5] = 0;
		if (more && runtime_name_valid(list[i]->d_name) && name_runs(dir, list[i]->d_name))
			more = fn(opaque, list[i]->d_name);
		free(list[i]);
	}
	free(list);
	close(dir);
	return 0;
}

int runtime_connect(const char *name, struct error *e)
{
	char path[PATH_MAX];
	struct sockaddr_un a;
	int dir, fd = -1, ret;

	if (!runtime_name_valid(name))
		return error_set(e, EINVAL, "see vixen list", "reach the VM", "'%.80s' is no name of a VM", name);
	dir = dir_open(false, path, e);
	if (dir < 0 && dir != -ENOENT)
		return dir;
	if (dir < 0 || !name_runs(dir, name))
		ret = error_set(e, ENOENT, "see vixen list", "reach the VM", "no VM named '%s' is running", name);
	else
		ret = socket_address(&a, path, name, e);
	if (dir >= 0)
		close(dir);
	if (ret)
		return ret;
	fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (fd >= 0 && !connect(fd, (struct sockaddr *)&a, sizeof a))
		return fd;
	ret = error_errno(e, errno, "it may just be starting or ending: try again", "reach the VM '%s'", name);
	if (fd >= 0)
		close(fd);
	return ret;
}
