#include "cli/image_tool.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/stat.h>
#include <unistd.h>

#include "cli/catalog.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"
#include "host/loop.h"

/* --- Ctrl-C and progress --- */

static void on_signal(void *opaque, uint32_t events)
{
	struct tool *t = opaque;
	struct signalfd_siginfo info;
	(void)events;
	if (read(t->signal_fd, &info, sizeof info) != sizeof info)
		return;
	t->job.cancel = true;
	for (unsigned i = 0; i < TOOL_DISKS; i++)
		if (t->open[i])
			block_interrupt(t->open[i]);
}

void progress_begin(struct progress *p)
{
	*p = (struct progress){ .tty = isatty(STDERR_FILENO), .percent = -1 };
}

void progress_step(struct progress *p, uint64_t done, uint64_t total)
{
	static const char bar[] = "########################################";
	int percent = total ? (int)((double)done * 100 / (double)total) : 100;
	if (!p->tty || percent == p->percent)
		return;
	p->percent = percent;
	fprintf(stderr, "\r[%-40.*s] %3d%%\033[K", percent * (int)(sizeof bar - 1) / 100, bar, percent);
}

void progress_end(struct progress *p)
{
	if (p->percent >= 0)
		fprintf(stderr, "\n");
}

static void on_progress(void *opaque, uint64_t done, uint64_t total)
{
	progress_step(&((struct tool *)opaque)->progress, done, total);
}

int stop_signals_open(void)
{
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGINT);
	sigaddset(&set, SIGTERM);
	sigaddset(&set, SIGHUP);
	sigprocmask(SIG_BLOCK, &set, NULL);
	int fd = signalfd(-1, &set, SFD_CLOEXEC | SFD_NONBLOCK);
	return fd < 0 ? -errno : fd;
}

static int watch_signals(struct tool *t)
{
	t->signal_fd = stop_signals_open();
	if (t->signal_fd < 0)
		return t->signal_fd;
	t->watch = loop_fd_add(t->loop, t->signal_fd, EPOLLIN, on_signal, t);
	return t->watch ? 0 : -ENOMEM;
}

int tool_init(struct tool *t, const char *verb, bool changes)
{
	*t = (struct tool){ .verb = verb, .signal_fd = -1 };
	progress_begin(&t->progress);
	t->job.progress = on_progress;
	t->job.opaque = t;
	signal(SIGXFSZ, SIG_IGN);	/* past ulimit -f writes fail with EFBIG instead */
	t->loop = loop_new();
	if (!t->loop)
		return error_errno(&t->e, errno, "raise the limit on open files", "make an event loop");
	int ret = changes ? watch_signals(t) : 0;
	return ret ? error_errno(&t->e, -ret, "raise the limit on open files", "watch for signals") : 0;
}

int tool_fini(struct tool *t, int ret)
{
	progress_end(&t->progress);
	if (t->watch)
		loop_fd_del(t->watch);
	if (t->signal_fd >= 0)
		close(t->signal_fd);
	loop_free(t->loop);
	if (ret == -ECANCELED) {
		fprintf(stderr, "vixen: %s failed: interrupted; %s\n", t->verb,
			t->e.todo[0] ? t->e.todo : "start it again");
		return EXIT_INTERRUPTED;
	}
	if (ret < 0)
		error_print(&t->e);
	return ret < 0 ? EXIT_FAILED : ret;
}

/* --- files --- */

int tool_path(struct tool *t, const char *ref, char out[PATH_MAX])
{
	struct image img;
	int ret = catalog_find(&img, ref, &t->e);
	if (!ret)
		memcpy(out, img.disk, PATH_MAX);
	return ret;
}

/* Puts b into the place of old, if there is one. */
static void remember(struct tool *t, const struct block *old, struct block *b)
{
	for (unsigned i = 0; i < TOOL_DISKS; i++)
		if (t->open[i] == old) {
			t->open[i] = b;
			return;
		}
}

int tool_open(struct tool *t, struct block **out, const char *path, const char *format, unsigned flags,
	      const char *format_option)
{
	char buf[KEY_PATH_BYTES];
	bool given = t->keys && t->keys->n;
	struct block_options o = { .format = format, .flags = flags };
	if (given)
		block_secrets(&o, t->keys->path, t->keys->n);
	int ret = block_open_with(out, t->loop, path, &o, &t->e);
	if (ret == -ENOKEY && !given && isatty(STDIN_FILENO)) {
		ret = passphrase_ask(path, false, buf, &t->e);
		o.secret_file = buf;
		if (!ret)
			ret = block_open_with(out, t->loop, path, &o, &t->e);
	}
	if (ret && strstr(t->e.todo, ",format="))
		snprintf(t->e.todo, sizeof t->e.todo, "say which it is: %s raw|qcow2|...", format_option);
	if (ret == -EBUSY)
		snprintf(t->e.todo, sizeof t->e.todo, "stop the VM first");
	if (!ret)
		remember(t, NULL, *out);
	return ret;
}

int tool_close(struct tool *t, struct block *b, int ret)
{
	if (b)
		remember(t, b, NULL);
	int closed = block_close(b);
	if (ret >= 0 && closed)
		return error_errno(&t->e, -closed, "check the image: vixen image check --repair leaks", "close the image");
	return ret;
}

void tool_warn_plain(struct block *b, const char *to)
{
	struct block_info i;
	for (unsigned depth = 0; !block_info(b, depth, &i); depth++) {
		if (!i.encrypted)
			continue;
		fprintf(stderr, "vixen: '%s' is encrypted, '%s' is not; --encrypt or --plain say that this is meant\n", i.path, to);
		return;
	}
}

bool same_file(const char *a, const char *b)
{
	struct stat x, y;
	return !stat(a, &x) && !stat(b, &y) && x.st_dev == y.st_dev && x.st_ino == y.st_ino;
}

int tool_not_in_chain(struct tool *t, struct block *b, const char *path, const char *what)
{
	struct block_info i;
	for (unsigned depth = 0; !block_info(b, depth, &i); depth++)
		if (same_file(i.path, path))
			return error_set(&t->e, ELOOP, "give another file", what,
					 "'%.150s' is the image itself or one of the backing files", path);
	return 0;
}

/* --- options --- */

bool tool_format_parse(const char *verb, const char *option, const char *v)
{
	char names[128];
	block_format_names(names, sizeof names, false, ", ");
	return block_format_known(v, false) || usage_error(verb, "--%s '%s' is not one of %s", option, v, names);
}

bool tool_create_format_parse(const char *verb, const char *option, const char *v)
{
	char names[128];
	block_format_names(names, sizeof names, true, ", ");
	return block_format_known(v, true) || usage_error(verb, "--%s '%s' is not one of %s", option, v, names);
}

bool tool_encrypt_parse(const char *verb, const char *v, enum block_encryption *out)
{
	*out = !strcmp(v, "luks1") ? BLOCK_ENCRYPT_LUKS1 : BLOCK_ENCRYPT_LUKS2;
	return !strcmp(v, "luks1") || !strcmp(v, "luks2") ||
	       usage_error(verb, "--encrypt '%s' is not luks1 or luks2", v);
}

bool tool_kdf_parse(const char *verb, const char *v, unsigned *ms)
{
	uint64_t n;
	if (!number_parse(v, 3600000, &n) || !n)
		return usage_error(verb, "--iter-time '%s' is not a number of milliseconds", v);
	*ms = (unsigned)n;
	return true;
}

bool tool_subformat_good(const char *verb, const char *format, const char *subformat)
{
	const char *const *s = block_subformats(format);
	char names[128] = "";
	size_t at = 0;
	for (size_t i = 0; subformat && s && s[i]; i++) {
		if (!strcmp(s[i], subformat))
			return true;
		at += (size_t)snprintf(names + at, sizeof names - at, "%s%s", at ? " or " : "", s[i]);
	}
	if (subformat && !s)
		return usage_error(verb, "--subformat is for vmdk, vhdx and vdi, not for %s", format);
	return !subformat || usage_error(verb, "--subformat '%s' of %s is not %s", subformat, format, names);
}

const char *tool_format_named(const char *path)
{
	static const char *const named[] = { "qcow2", "luks", "vmdk", "vhdx", "vdi" };
	const char *dot = strrchr(path, '.');
	for (size_t i = 0; dot && dot != path && i < sizeof named / sizeof *named; i++)
		if (!strcmp(dot + 1, named[i]))
			return named[i];
	return "raw";
}

int tool_overlay_named(const char *what, const char *path, struct error *e)
{
	const char *named = tool_format_named(path);
	if (!strcmp(named, "raw") || !strcmp(named, "qcow2"))
		return 0;
	return error_set(e, EINVAL, "give it a name in .qcow2", what,
			 "'%.150s' would have a backing file, as only qcow2 images do, and the name of a %s image", path, named);
}

bool tool_argument(const char *verb, const char *v, const char **slot, unsigned n)
{
	for (unsigned i = 0; i < n; i++) {
		if (slot[i])
			continue;
		slot[i] = v;
		return *v || usage_error(verb, "an argument is empty");
	}
	return usage_error(verb, "unexpected argument '%s'", v);
}

/* --- showing --- */

/* Controls, also those of Latin-1 as UTF-8 has them, could steer a terminal. */
static bool harmless(const unsigned char *p, bool utf8)
{
	if (*p < 0x20 || *p == 0x7f)
		return false;
	return *p < 0x80 || (utf8 && !(*p == 0xc2 && p[1] < 0xa0));
}

const char *plain(char *out, size_t size, const char *text)
{
	json_t *j = text ? json_string(text) : NULL;
	size_t n = 0;
	for (; text && *text && n + 1 < size; text++)
		out[n++] = harmless((const unsigned char *)text, j) ? *text : '?';
	out[n] = 0;
	json_decref(j);
	return out;
}

json_t *json_text(const char *text)
{
	char safe[PATH_MAX];
	json_t *j = text ? json_string(text) : json_null();
	return j ? j : json_string(plain(safe, sizeof safe, text));
}

void size_words(char out[64], uint64_t bytes)
{
	static const char *const unit[] = { "bytes", "KiB", "MiB", "GiB", "TiB" };
	double v = (double)bytes;
	unsigned u = 0;
	for (; v >= 1024 && u < 4; u++)
		v /= 1024;
	if (u)
		snprintf(out, 64, "%.1f %s (%llu bytes)", v, unit[u], (unsigned long long)bytes);
	else
		snprintf(out, 64, "%llu bytes", (unsigned long long)bytes);
}
