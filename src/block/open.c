/* Opening, creating and closing disks, from outside coroutines or inside. */
#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "block/block_private.h"
#include "block/luks/secret.h"
#include "host/loop.h"

int block_run(struct loop *l, int (*fn)(void *arg), void *arg)
{
	return co_run(l, fn, arg);
}

/* --- running to the end: the disk's own completions first, so that nobody else's callbacks run if need not be --- */

static int step_env(void *opaque)
{
	struct block_env *env = opaque;

	if (!aio_in_flight(env->aio))
		return loop_step(env->loop);
	aio_wait(env->aio);
	return 0;
}

int block_do(struct block_env *env, int (*fn)(void *), void *arg)
{
	return co_run_by(env->co, fn, arg, step_env, env);
}

/* --- open --- */

struct opening {
	struct block *b;
	const char *path;
	const struct block_options *o;
	struct error *e;
};

static int open_main(void *opaque)
{
	struct opening *op = opaque;
	unsigned flags = op->o->flags;
	struct secret secret = { 0 };
	struct node_open how = { .o = op->o, .path = op->path, .secret = &secret,
				 .readonly = flags & (BLOCK_READONLY | BLOCK_EPHEMERAL) };
	struct node *n;
	int ret = node_co_open(&n, op->b->env, op->path, &how, op->e);

	secret_fini(&secret);
	if (ret)
		return ret;
	if (flags & BLOCK_EPHEMERAL && !(flags & BLOCK_READONLY)) {
		struct node *base = n;

		ret = overlay_new(&n, base, op->e);
		if (ret) {
			node_co_close(base);
			return ret;
		}
	}
	op->b->root = n;
	return 0;
}

static int env_for(struct block *b, struct loop *l, const struct block_options *o, struct error *e)
{
	if (o->beside) {
		b->env = o->beside->env;
		b->env->refs++;
	} else {
		b->env = env_new(l, o->flags & BLOCK_NO_IO_URING, e);
	}
	return b->env ? 0 : -ENOMEM;
}

int block_open_with(struct block **out, struct loop *l, const char *path, const struct block_options *o,
		    struct error *e)
{
	struct block *b = calloc(1, sizeof(*b));
	struct opening op = { b, path, o, e };
	int ret;

	if (!b)
		return error_errno(e, ENOMEM, NULL, "open disk '%s'", path);
	b->waiting_tail = &b->waiting;
	ret = env_for(b, l, o, e);
	if (!ret)
		ret = block_do(b->env, open_main, &op);
	if (ret) {
		env_put(b->env);
		free(b);
		return ret;
	}
	*out = b;
	return 0;
}

int block_open(struct block **out, struct loop *l, const char *path, const char *format, unsigned flags,
	       struct error *e)
{
	return block_open_with(out, l, path, &(struct block_options){ .format = format, .flags = flags }, e);
}

/* --- close --- */

static int close_main(void *opaque)
{
	struct block *b = opaque;

	block_throttle(b, NULL, NULL);	/* what waits may go */
	block_on_full(b, NULL, NULL);	/* and what is stuck fails */
	while (b->in_flight)	/* a completion may submit more */
		block_co_idle(b);
	throttle_free(b->throttle);
	ASSERT(!b->waiting && !b->held && !b->plugged);
	return node_co_close(b->root);
}

int block_close(struct block *b)
{
	int ret;

	if (!b)
		return 0;
	ret = block_do(b->env, close_main, b);
	while (b->idle) {
		struct request *r = b->idle;

		b->idle = r->next;
		free(r);
	}
	env_put(b->env);
	free(b);
	return ret;
}

void block_interrupt(struct block *b)
{
	node_interrupt(b->root);
}

/* --- create --- */

struct creation {
	struct block_env *env;
	const char *path;
	const struct driver *driver;
	const struct block_create *c;
	struct error *e;
};

/* The backing file is opened once: it must be there, and its size is the default. */
static int backing_look(struct creation *cr, struct block_create *c)
{
	const struct block_options o = { .format = c->backing_format,
					 .flags = BLOCK_READONLY | BLOCK_SHARE | BLOCK_LOCKED };
	struct node_open how = { .o = &o, .readonly = true };
	char *path = node_path_relative(cr->path, c->backing_path);
	struct node *n;
	int ret;

	if (!path)
		return error_errno(cr->e, ENOMEM, NULL, "create disk '%s'", cr->path);
	how.path = path;
	ret = node_co_open(&n, cr->env, path, &how, cr->e);
	free(path);
	if (ret)
		return ret;
	if (!c->size_bytes)
		c->size_bytes = n->size_bytes;
	if (!c->backing_format)
		c->backing_format = n->ops->name;
	return node_co_close(n);
}

static int preallocate(struct creation *cr)
{
	const struct block_options o = { .format = cr->driver->name };
	const struct node_open how = { .o = &o, .path = cr->path };
	struct node *n;
	int ret = node_co_open(&n, cr->env, cr->path, &how, cr->e), close_ret;

	if (ret)
		return ret;
	ret = cr->driver->co_preallocate(n, cr->c->preallocate, cr->e);
	close_ret = node_co_close(n);
	if (!ret && close_ret)
		error_errno(cr->e, -close_ret, "check the host's disk", "create disk '%s'", cr->path);
	return ret ? ret : close_ret;
}

static int create_main(void *opaque)
{
	struct creation *cr = opaque;
	const struct block_options o = { 0 };
	const struct node_open how = { .o = &o, .path = cr->path };
	struct block_create c = *cr->c;
	struct node *file;
	int ret = c.backing_path ? backing_look(cr, &c) : 0, close_ret;

	if (!ret)
		ret = node_co_open_protocol(&file, cr->env, cr->path, &how, cr->e);
	if (ret)
		return ret;
	ret = cr->driver->co_create(file, &c, cr->e);
	if (!ret) {
		ret = node_co_flush(file);
		if (ret)
			error_errno(cr->e, -ret, "check the host's disk", "create disk '%s'", cr->path);
	}
	close_ret = node_co_close(file);
	if (!ret && !close_ret && c.preallocate && cr->driver->co_preallocate)
		ret = preallocate(cr);
	return ret ? ret : close_ret;
}

static int subformat_good(const struct driver *d, const char *name, const char *what, struct error *e)
{
	char todo[128] = "leave it out";
	size_t at = 0;

	for (const char *const *s = d->subformats; name && s && *s; s++) {
		if (!strcmp(*s, name))
			return 0;
		at += (size_t)snprintf(todo + at, sizeof(todo) - at, "%s%s", at ? ", " : "use one of: ", *s);
	}
	return name ? error_set(e, EINVAL, todo, what, "%s has no subformat '%.40s'", d->name, name) : 0;
}

static int creatable(const struct driver **out, const char *path, const char *format, const struct block_create *c,
		     struct error *e)
{
	char what[192], todo[128] = "use one of: ";

	snprintf(what, sizeof(what), "create disk '%.150s'", path);
	*out = driver_find(format);
	if (!*out || !block_format_known(format, true)) {
		block_format_names(todo + strlen(todo), sizeof(todo) - strlen(todo), true, ", ");
		return error_set(e, EINVAL, todo, what, "format '%s' cannot be created", format);
	}
	if (c->size_bytes % SECTOR)
		return error_set(e, EINVAL, "round it up", what, "its size is not a multiple of 512");
	if (c->size_bytes > INT64_MAX)
		return error_set(e, EFBIG, NULL, what, "it is too large");
	return subformat_good(*out, c->subformat, what, e);
}

int block_create(struct loop *l, const char *path, const char *format, const struct block_create *c, struct error *e)
{
	struct creation cr = { .path = path, .c = c, .e = e };
	int ret = creatable(&cr.driver, path, format, c, e);

	if (ret)
		return ret;
	cr.env = env_new(l, false, e);
	if (!cr.env)
		return -ENOMEM;
	ret = file_driver.co_make(path, c->overwrite, e);
	if (!ret) {
		ret = block_do(cr.env, create_main, &cr);
		if (ret)
			unlink(path);
	}
	env_put(cr.env);
	return ret;
}
