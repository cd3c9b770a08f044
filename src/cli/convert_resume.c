#include "cli/convert_resume.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/block.h"
#include "cli/image_tool.h"

#define VERSION 1
#define FILES_MAX 1024u

/* --- what the source is --- */

static int not_watched(const char *path, struct error *e)
{
	return error_set(e, ENOTSUP, "leave --resume out", "convert the disk",
			 "'%.150s' is no ordinary file: nobody could tell later whether it has changed", path);
}

static json_int_t ns_of(const struct timespec *t)
{
	return (json_int_t)t->tv_sec * 1000000000 + t->tv_nsec;
}

/* The time of the inode's change as well: nobody can set it back. */
static int file_describe(json_t *files, const char *path, struct error *e)
{
	struct stat st;
	if (stat(path, &st))
		return error_errno(e, errno, "check the path", "open '%s'", path);
	if (!S_ISREG(st.st_mode))
		return not_watched(path, e);
	char *whole = realpath(path, NULL);
	json_t *name = json_text(whole ? whole : path);
	json_array_append_new(files, json_pack("{s:o, s:I, s:I, s:I, s:I}", "path", name, "bytes", (json_int_t)st.st_size,
					       "changed_ns", ns_of(&st.st_mtim), "touched_ns", ns_of(&st.st_ctim),
					       "inode", (json_int_t)st.st_ino));
	free(whole);
	return 0;
}

/* Each file of the chain. */
static int source_describe(json_t *files, struct block *src, struct error *e)
{
	struct block_file *list = calloc(FILES_MAX, sizeof *list);
	unsigned n = list ? block_files(src, list, FILES_MAX) : 0;
	int ret = list ? 0 : error_errno(e, ENOMEM, NULL, "convert the disk");
	if (!ret && (!n || n > FILES_MAX))
		ret = not_watched(block_path(src), e);
	for (unsigned i = 0; i < n && !ret; i++)
		ret = file_describe(files, list[i].path, e);
	struct block_info info;
	for (unsigned depth = 0; !ret && !block_info(src, depth, &info); depth++)
		if (block_path_remote(info.path))
			ret = not_watched(info.path, e);
	free(list);
	return ret;
}

/* --- the journal --- */

int resume_note(struct resume *r, uint64_t safe_bytes)
{
	char tmp[PATH_MAX];
	struct stat st = { 0 };
	if (snprintf(tmp, sizeof tmp, "%s.new", r->journal) >= PATH_MAX)
		return -ENAMETOOLONG;
	if (safe_bytes && stat(r->partial, &st))
		return -errno;
	json_t *j = json_pack("{s:i, s:O, s:I, s:I}", "version", VERSION, "identity", r->identity, "safe_bytes",
			      (json_int_t)safe_bytes, "inode", (json_int_t)st.st_ino);
	char *text = json_dumps(j, JSON_INDENT(2) | JSON_SORT_KEYS);
	json_decref(j);
	int fd = text ? open(tmp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644) : -1;
	size_t len = text ? strlen(text) : 0;
	int ret = !text ? -ENOMEM : fd < 0 ? -errno : 0;
	if (!ret && write(fd, text, len) != (ssize_t)len)
		ret = -ENOSPC;
	if (!ret && fsync(fd))
		ret = -errno;
	if (fd >= 0)
		close(fd);
	free(text);
	if (!ret && rename(tmp, r->journal))
		ret = -errno;
	if (ret)
		unlink(tmp);
	return ret;
}

static int refuse(const struct resume *r, struct error *e, const char *why)
{
	char todo[256];
	snprintf(todo, sizeof todo, "remove '%.200s' to start again", r->journal);
	return error_set(e, ESTALE, todo, "go on with the conversion", "%s", why);
}

static int identity_match(const struct resume *r, const json_t *found, struct error *e)
{
	if (!json_equal(json_object_get(found, "source"), json_object_get(r->identity, "source")))
		return refuse(r, e, "the source, or a backing file of it, has changed since it began");
	if (!json_equal(found, r->identity))
		return refuse(r, e, "it was begun with other options");
	return 0;
}

/* Is the copy there, and the one that the journal speaks of? */
static int partial_match(struct resume *r, uint64_t inode, struct error *e)
{
	struct stat st;
	if (lstat(r->partial, &st)) {
		r->safe_bytes = 0;
		return errno == ENOENT ? 0 : error_errno(e, errno, "check the path", "open '%s'", r->partial);
	}
	if (!S_ISREG(st.st_mode))
		return refuse(r, e, "the partial copy is no ordinary file");
	if (r->safe_bytes && (uint64_t)st.st_ino != inode)
		return refuse(r, e, "the partial copy is another file than the one begun");
	return 0;
}

static int journal_read(struct resume *r, struct error *e)
{
	json_error_t where;
	json_t *j = json_load_file(r->journal, 0, &where), *found = json_object_get(j, "identity");
	json_int_t safe = 0, inode = 0;
	int version = 0;
	bool good = !json_unpack(j, "{s:i, s:I, s:I}", "version", &version, "safe_bytes", &safe, "inode", &inode) &&
		    version == VERSION && safe >= 0 && safe % 512 == 0 && json_is_object(found);
	int ret = good ? identity_match(r, found, e) : refuse(r, e, "its journal cannot be read");
	if (!ret) {
		r->safe_bytes = (uint64_t)safe;
		ret = partial_match(r, (uint64_t)inode, e);
	}
	json_decref(j);
	return ret;
}

int resume_find(struct resume *r, const char *dst, struct block *src, json_t *how, struct error *e)
{
	json_t *files = json_array();
	int ret;
	*r = (struct resume){ .identity = json_pack("{s:o, s:o}", "source", files, "how", how) };
	if (snprintf(r->partial, PATH_MAX, "%s.partial", dst) >= PATH_MAX ||
	    snprintf(r->journal, PATH_MAX, "%s.partial.journal", dst) >= PATH_MAX)
		return error_set(e, ENAMETOOLONG, "choose a shorter name", "convert the disk", "its path is too long");
	if (!r->identity)
		return error_errno(e, ENOMEM, NULL, "convert the disk");
	ret = source_describe(files, src, e);
	if (ret)
		return ret;
	if (!access(r->journal, F_OK))
		return journal_read(r, e);
	if (!access(r->partial, F_OK))
		return error_set(e, EEXIST, "remove it, or choose another name", "convert the disk",
				 "'%.150s' is there, and no journal says what it holds", r->partial);
	return 0;
}

int resume_unchanged(const struct resume *r, struct block *src, struct error *e)
{
	json_t *now = json_array();
	int ret = source_describe(now, src, e);
	if (!ret && !json_equal(now, json_object_get(r->identity, "source")))
		ret = refuse(r, e, "the source, or a backing file of it, changed while it was copied");
	json_decref(now);
	return ret;
}

void resume_done(struct resume *r)
{
	unlink(r->journal);
}

void resume_fini(struct resume *r)
{
	json_decref(r->identity);
	r->identity = NULL;
}
