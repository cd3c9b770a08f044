#include "cli/convert.h"

#include <errno.h>
#include <fcntl.h>
#include <libgen.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* --- the place where the copy goes --- */

/* The file that will be replaced must not be in use, nor be any that is read. */
static int hold_old(struct convert *c)
{
	struct flock lock = { .l_type = F_WRLCK, .l_whence = SEEK_SET };
	const char *dst = c->file[1], *what = "convert the disk";
	struct stat st;
	c->held_fd = -1;
	if (lstat(dst, &st))
		return errno == ENOENT ? 0 : error_errno(&c->t->e, errno, "check the path", "create '%s'", dst);
	if (!c->force)
		return error_set(&c->t->e, EEXIST, "choose another name, or add --force to replace it", what,
				 "'%.150s' is there already", dst);
	if (!S_ISREG(st.st_mode))
		return error_set(&c->t->e, EINVAL, "choose another name", what, "'%.150s' is no ordinary file", dst);
	int ret = tool_not_in_chain(c->t, c->src, dst, what);
	if (ret)
		return ret;
	c->held_fd = open(dst, O_RDWR | O_CLOEXEC | O_NONBLOCK | O_NOCTTY);
	if (c->held_fd < 0)
		return error_errno(&c->t->e, errno, "check its permissions", "replace '%s'", dst);
	if (fcntl(c->held_fd, F_OFD_SETLK, &lock))
		return error_set(&c->t->e, EBUSY, "stop the VM first, or choose another name", what,
				 "'%.150s' is in use by another VM", dst);
	return 0;
}

static int directory_sync(const char *path)
{
	char copy[PATH_MAX];
	snprintf(copy, sizeof copy, "%s", path);
	int fd = open(dirname(copy), O_RDONLY | O_DIRECTORY | O_CLOEXEC), ret = 0;
	if (fd < 0)
		return 0;
	if (fsync(fd) && errno != EINVAL)
		ret = -errno;
	close(fd);
	return ret;
}

/* What came to be there meanwhile is not replaced. */
static int take_name(struct convert *c)
{
	const char *dst = c->file[1];
	int ret = c->force ? rename(c->partial, dst)
			   : renameat2(AT_FDCWD, c->partial, AT_FDCWD, dst, RENAME_NOREPLACE);
	if (ret && !c->force && (errno == EINVAL || errno == ENOSYS)) {
		ret = link(c->partial, dst);
		if (!ret)
			unlink(c->partial);
	}
	if (ret)
		return error_errno(&c->t->e, errno, "choose another name", "name the copy '%s'", dst);
	ret = directory_sync(dst);
	return ret ? error_errno(&c->t->e, -ret, "check the host's disk", "write '%s'", dst) : 0;
}

/* --- running --- */

static int convert_job(void *opaque)
{
	struct convert *c = opaque;
	return job_convert(&c->t->job, c->src, c->dst, &c->how, &c->t->e);
}

static int verify_job(void *opaque)
{
	struct convert *c = opaque;
	struct job_compare found = { 0 };
	int ret = job_compare(&c->t->job, c->src, c->dst, &found, &c->t->e);
	if (ret || !found.differ)
		return ret;
	return error_set(&c->t->e, EIO, "check the host's memory and disk, and start again", "verify the copy",
			 "it differs at byte %llu", (unsigned long long)found.offset);
}

/* Who could not read what is replaced shall not read the copy either. */
static int mode_keep(const struct convert *c)
{
	struct stat st;
	if (c->held_fd < 0)
		return 0;
	if (fstat(c->held_fd, &st) || chmod(c->partial, st.st_mode & 07777))
		return error_errno(&c->t->e, errno, "check its permissions", "give '%s' the permissions of the old one", c->partial);
	if (chown(c->partial, (uid_t)-1, st.st_gid) && st.st_mode & 0070)
		return chmod(c->partial, st.st_mode & 07707) ?
		       error_errno(&c->t->e, errno, "check its permissions", "change '%s'", c->partial) : 0;
	return 0;
}

static int fill(struct convert *c)
{
	c->new_keys.path[0] = c->create.secret_file;
	c->new_keys.n = c->create.secret_file ? 1 : 0;
	c->t->keys = &c->new_keys;
	int ret = mode_keep(c);
	if (!ret)
		ret = tool_open(c->t, &c->dst, c->partial, c->to, BLOCK_FRESH, "--to");
	if (ret)
		return ret;
	ret = block_run(c->t->loop, convert_job, c);
	if (!ret && c->verify)
		ret = block_run(c->t->loop, verify_job, c);
	ret = tool_close(c->t, c->dst, ret);
	if (!ret && c->resume)
		ret = resume_unchanged(&c->journal, c->src, &c->t->e);
	return ret ? ret : take_name(c);
}

static void ready(struct convert *c)
{
	c->create.size_bytes = block_size(c->src);
	c->create.final_path = c->file[1];
	if (!c->create.encrypt && !c->plain)
		tool_warn_plain(c->src, c->file[1]);
}

static int copy_made(struct convert *c)
{
	int ret;
	if (snprintf(c->partial, sizeof c->partial, "%s.partial.%d", c->file[1], (int)getpid()) >= PATH_MAX)
		return error_set(&c->t->e, ENAMETOOLONG, "choose a shorter name", "convert the disk", "its path is too long");
	ready(c);
	ret = c->create.encrypt ? key_or_ask(&c->create.secret_file, c->new_key_file, c->file[1], true, c->key_buf,
					     &c->t->e) : 0;
	if (!ret)
		ret = block_create(c->t->loop, c->partial, c->to, &c->create, &c->t->e);
	if (ret)
		return ret;
	ret = fill(c);
	if (ret && unlink(c->partial) && errno != ENOENT)
		fprintf(stderr, "vixen: remove '%s' failed: %s; remove it yourself\n", c->partial, strerror(errno));
	if (ret == -ECANCELED)
		snprintf(c->t->e.todo, sizeof c->t->e.todo, "nothing is left of the copy; start it again");
	return ret;
}

/* --- a copy that may go on later --- */

static json_t *how_words(const struct convert *c)
{
	const struct block_create *n = &c->create;
	return json_pack("{s:s, s:s, s:I, s:b, s:b, s:i, s:i, s:b}", "from", block_format(c->src), "to", c->to,
			 "bytes", (json_int_t)block_size(c->src), "compress", c->how.compress, "zstd", n->zstd, "cluster_bytes", (int)n->cluster_bytes,
			 "sparse_bytes", (int)c->how.sparse_bytes, "dense", c->how.dense);
}

static int note_safe(void *opaque, uint64_t below)
{
	return resume_note(&((struct convert *)opaque)->journal, below);
}

/* Cuts off what no flush covers for sure.  A crash may have left clusters that belong to nobody. */
static int cut_back(void *opaque)
{
	struct convert *c = opaque;
	struct block_check check = { 0 };
	uint64_t safe = c->journal.safe_bytes;
	int ret = strcmp(c->to, "qcow2") ? 0 : block_check(c->dst, BLOCK_REPAIR_LEAKS, &check, &c->t->e);
	if (!ret && (check.corruptions || check.errors || block_size(c->dst) < safe))
		ret = error_set(&c->t->e, EIO, "remove it and its journal, and start again", "go on with the conversion",
				"'%.150s' is damaged", c->partial);
	if (!ret && block_size(c->dst) > safe)
		ret = block_resize(c->dst, safe, BLOCK_SHRINK, &c->t->e);
	return !ret && c->create.size_bytes > safe ? block_resize(c->dst, c->create.size_bytes, 0, &c->t->e) : ret;
}

static int go_on(struct convert *c)
{
	int ret = tool_open(c->t, &c->dst, c->partial, c->to, 0, "--to");
	if (!ret)
		ret = tool_close(c->t, c->dst, block_run(c->t->loop, cut_back, c));
	return ret;
}

/* The journal is first, for sure: an older one that came back after a crash would vouch for what is made anew. */
static int begin(struct convert *c)
{
	int ret = resume_note(&c->journal, 0);
	if (!ret)
		ret = directory_sync(c->journal.journal);
	if (ret)
		return error_errno(&c->t->e, -ret, "check its permissions, and for space", "write '%s'", c->journal.journal);
	c->create.overwrite = true;
	return block_create(c->t->loop, c->partial, c->to, &c->create, &c->t->e);
}

static int copy_resumed(struct convert *c)
{
	int ret = resume_find(&c->journal, c->file[1], c->src, how_words(c), &c->t->e);
	if (ret)
		return ret;
	memcpy(c->partial, c->journal.partial, PATH_MAX);
	ready(c);
	c->how.from = c->journal.safe_bytes;
	c->how.safe = note_safe;
	c->how.opaque = c;
	ret = c->how.from ? go_on(c) : begin(c);
	if (!ret)
		ret = fill(c);
	if (!ret)
		resume_done(&c->journal);
	else if (ret == -ECANCELED || ret == -ENOSPC || ret == -EFBIG)
		snprintf(c->t->e.todo, sizeof c->t->e.todo, "'%.150s' holds what was copied: the same command goes on%s",
			 c->partial, ret == -ECANCELED ? "" : " when there is space");
	return ret;
}

int convert_run(struct convert *c)
{
	int ret = tool_path(c->t, c->file[0], c->src_path);
	c->t->keys = &c->keys;
	if (!ret)
		ret = tool_open(c->t, &c->src, c->src_path, c->from, BLOCK_READONLY, "--from");
	if (ret)
		return ret;
	ret = hold_old(c);
	if (!ret)
		ret = c->resume ? copy_resumed(c) : copy_made(c);
	resume_fini(&c->journal);
	if (c->held_fd >= 0)
		close(c->held_fd);
	return tool_close(c->t, c->src, ret);
}
