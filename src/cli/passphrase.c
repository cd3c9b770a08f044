#include "cli/passphrase.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <termios.h>
#include <unistd.h>

#include "cli/options.h"

#define TYPED_MAX 1024

const char *key_path(const char *value, char buf[KEY_PATH_BYTES])
{
	if (!value || strncmp(value, "fd:", 3) || strlen(value) > 12 || !value[3] ||
	    strspn(value + 3, "0123456789") != strlen(value + 3))
		return value && !strcmp(value, "-") ? "/dev/stdin" : value;
	snprintf(buf, KEY_PATH_BYTES, "/proc/self/fd/%s", value + 3);
	return buf;
}

/* A line without its end; -ECANCELED at the end of input. */
static int type(int tty, const char *prompt, const char *what, char line[TYPED_MAX])
{
	struct termios saved, quiet;
	if (tcgetattr(tty, &saved))
		return -errno;
	quiet = saved;
	quiet.c_lflag &= ~(tcflag_t)ECHO;
	quiet.c_lflag |= ICANON | ISIG | ECHONL;
	dprintf(tty, "%s %s: ", prompt, what);
	tcsetattr(tty, TCSAFLUSH, &quiet);
	ssize_t n = read(tty, line, TYPED_MAX - 1);
	tcsetattr(tty, TCSAFLUSH, &saved);
	if (n <= 0)
		return n ? -errno : -ECANCELED;
	line[line[n - 1] == '\n' ? n - 1 : n] = 0;
	return line[0] ? 0 : -ECANCELED;
}

static int keep(const char *line, char out[KEY_PATH_BYTES])
{
	int fd = memfd_create("passphrase", 0);
	if (fd < 0)
		return -errno;
	if (write(fd, line, strlen(line)) != (ssize_t)strlen(line))
		return -EIO;
	snprintf(out, KEY_PATH_BYTES, "/proc/self/fd/%d", fd);
	return 0;
}

static int ask(int tty, const char *what, bool twice, char out[KEY_PATH_BYTES])
{
	char line[2][TYPED_MAX] = { "", "" };
	int ret = type(tty, twice ? "New passphrase for" : "Passphrase for", what, line[0]);
	if (!ret && twice)
		ret = type(tty, "Again, the new passphrase for", what, line[1]);
	if (!ret && twice && strcmp(line[0], line[1]))
		ret = -EINVAL;
	if (!ret)
		ret = keep(line[0], out);
	explicit_bzero(line, sizeof line);
	return ret;
}

int passphrase_ask(const char *what, bool twice, char out[KEY_PATH_BYTES], struct error *e)
{
	int tty = isatty(STDIN_FILENO) ? open("/dev/tty", O_RDWR | O_CLOEXEC | O_NOCTTY) : -1;
	if (tty < 0)
		return error_set(e, ENOKEY, "give a file with it: --key-file FILE, or key-file=FILE with --disk",
				 "ask for a passphrase", "there is no terminal");
	int ret = ask(tty, what, twice, out);
	close(tty);
	if (ret == -EINVAL)
		return error_set(e, EINVAL, "start again", "ask for a passphrase", "the two are not the same");
	if (ret == -ECANCELED)
		return error_set(e, EINVAL, "start again", "ask for a passphrase", "nothing was typed");
	return ret ? error_errno(e, -ret, NULL, "ask for a passphrase") : 0;
}

bool key_list_add(struct key_list *l, const char *verb, const char *value)
{
	if (l->n == KEYS_MAX)
		return usage_error(verb, "more than %d key files given", KEYS_MAX);
	l->path[l->n] = key_path(value, l->buf[l->n]);
	l->n++;
	return true;
}

int key_or_ask(const char **path, const char *value, const char *what, bool twice, char buf[KEY_PATH_BYTES],
	       struct error *e)
{
	int ret = value ? 0 : passphrase_ask(what, twice, buf, e);
	*path = value ? key_path(value, buf) : buf;
	return ret;
}
