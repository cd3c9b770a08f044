/* vixen image: build, list, and the table of all commands. */
#include <errno.h>
#include <fcntl.h>
#include <jansson.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include "cli/catalog.h"
#include "cli/image_create.h"
#include "cli/image_tool.h"
#include "cli/image_serve.h"
#include "cli/options.h"
#include "cli/verb.h"

#define PROGRESS_FD 3

/* --- build --- */

struct build {
	const char *os, *name, *arch, *kernel_package, *mirror, *size, *include;
	bool force;
};

static bool set_os(void *b, const char *v)
{
	static const char *const names[] = { "debian-12", NULL };
	struct build *build = b;
	if (build->os)
		return usage_error("image", "more than one thing to build");
	build->os = v;
	if (!strcmp(v, names[0]))
		return true;
	const char *near = nearest(v, names);
	return usage_error("image", "nobody knows how to build '%s', only debian-12%s", v, near ? "; did you mean that?" : "");
}
static bool set_name(void *b, const char *v)
{
	((struct build *)b)->name = v;
	if (*v && *v != '.' && *v != '-' && !strchr(v, '/') && strlen(v) < 100)
		return true;
	return usage_error("image", "--name '%s' cannot be the name of an image", v);
}
static bool set_arch(void *b, const char *v)
{
	((struct build *)b)->arch = v;
	return !strcmp(v, "amd64") || !strcmp(v, "i386") || usage_error("image", "--arch '%s' is not amd64 or i386", v);
}
static bool set_size(void *b, const char *v)
{
	uint64_t bytes;
	((struct build *)b)->size = v;
	if (size_parse(v, &bytes) && bytes >= 1ull << 30 && bytes <= 1ull << 44)
		return true;
	return usage_error("image", "--size '%s' is not a size of at least 1G", v);
}
static bool set_kernel(void *b, const char *v) { ((struct build *)b)->kernel_package = v; return true; }
static bool set_mirror(void *b, const char *v) { ((struct build *)b)->mirror = v; return true; }
static bool set_include(void *b, const char *v) { ((struct build *)b)->include = v; return true; }
static bool set_force(void *b, const char *v) { (void)v; return ((struct build *)b)->force = true; }

static const struct option_row build_options[] = {
	{ "name", "NAME", "what the image is called (default: as what is built)", set_name },
	{ "arch", "amd64|i386", "which Debian (default amd64)", set_arch },
	{ "kernel-package", "PACKAGE", "default linux-image-cloud-amd64; i386: linux-image-686-pae", set_kernel },
	{ "size", "SIZE", "of the disk, which is sparse (default 4G)", set_size },
	{ "include", "PACKAGE,...", "more packages", set_include },
	{ "mirror", "URL", "default: the host's own", set_mirror },
	{ "force", NULL, "build again although the image is there", set_force },
	{ 0 },
};

static const struct command build_command = {
	.verb = "image build", .usage = "image build debian-12 [OPTIONS]",
	.about = "Builds a guest image from Debian packages with mmdebstrap; no root needed where user namespaces are\n"
		 "allowed. The image is for development: root logs in on the serial console without a password.",
	.options = build_options, .argument = set_os,
};

static int directory_make(const char *path)
{
	char part[PATH_MAX];
	snprintf(part, sizeof part, "%s", path);
	for (char *p = part + 1; (p = strchr(p, '/')); *p++ = '/') {
		*p = 0;
		if (mkdir(part, 0755) && errno != EEXIST)
			return -errno;
	}
	return mkdir(part, 0755) && errno != EEXIST ? -errno : 0;
}

_Noreturn static void builder_exec(const char *program, const struct build *b, const char *dest, int progress)
{
	const char *argv[24] = { program, "--dest", dest };
	unsigned n = 3;
	const struct { const char *option, *value; } given[] = {
		{ "--arch", b->arch }, { "--kernel-package", b->kernel_package }, { "--mirror", b->mirror },
		{ "--size", b->size }, { "--include", b->include },
	};
	for (size_t i = 0; i < sizeof given / sizeof *given; i++) {
		if (given[i].value) {
			argv[n++] = given[i].option;
			argv[n++] = given[i].value;
		}
	}
	if (progress == PROGRESS_FD)
		fcntl(progress, F_SETFD, 0);
	else
		dup2(progress, PROGRESS_FD);
	execv(program, (char **)argv);
	fprintf(stderr, "vixen: start '%s' failed: %s; install vixen again, whole\n", program, strerror(errno));
	_exit(EXIT_FAILED);
}

/* Shows "progress PERCENT TEXT" lines: one line that changes on a terminal, else one line each. */
static void progress_show(FILE *in)
{
	static const char bar[] = "########################################";
	bool tty = isatty(STDERR_FILENO);
	char line[256], text[200];
	unsigned percent;
	while (fgets(line, sizeof line, in)) {
		if (sscanf(line, "progress %u %199[^\n]", &percent, text) != 2 || percent > 100)
			continue;
		int filled = (int)(percent * (sizeof bar - 1) / 100);
		if (tty)
			fprintf(stderr, "\r[%-40.*s] %3u%%  %s\033[K", filled, bar, percent, text);
		else
			fprintf(stderr, "%3u%% %s\n", percent, text);
	}
	if (tty)
		fprintf(stderr, "\n");
}

static int build_run(const struct build *b, const char *dest, struct error *e)
{
	char program[PATH_MAX];
	int progress[2], status, ret = program_find(program, "image-debian", e);
	if (ret)
		return ret;
	if (pipe2(progress, O_CLOEXEC))
		return error_errno(e, errno, NULL, "start the image builder");
	pid_t pid = fork();
	if (pid < 0)
		return error_errno(e, errno, "raise the limit on processes", "start the image builder");
	if (!pid)
		builder_exec(program, b, dest, progress[1]);
	close(progress[1]);
	FILE *in = fdopen(progress[0], "r");
	if (in) {
		progress_show(in);
		fclose(in);
	}
	while (waitpid(pid, &status, 0) < 0 && errno == EINTR)
		;
	if (WIFEXITED(status))
		return WEXITSTATUS(status);
	return error_set(e, EINTR, "start it again", "build the image", "the builder died on signal %d", WTERMSIG(status));
}

struct clones {
	const char *base;
	char found[128];
};

static bool clone_look(void *opaque, const struct image *img)
{
	struct clones *c = opaque;
	if (strcmp(img->base, c->base))
		return true;
	snprintf(c->found, sizeof c->found, "%s", img->name);
	return false;
}

/* What is shared with clones must not change under them. */
static int not_cloned(const char *name, struct error *e)
{
	struct clones c = { .base = name };
	int ret = catalog_each(clone_look, &c, e);
	if (ret || !c.found[0])
		return ret;
	return error_set(e, EBUSY, "remove the clone first, or build under another --name", "build the image",
			 "'%s' is a linked clone of '%s'", c.found, name);
}

static int image_build(int argc, char **argv)
{
	struct build b = { 0 };
	struct error e = { 0 };
	char base[PATH_MAX], dest[PATH_MAX];
	struct stat st;
	int ret = options_parse(&build_command, &b, argc, argv);
	if (ret >= 0)
		return ret;
	if (!b.os) {
		usage_error("image build", "nothing to build given, try 'vixen image build debian-12'");
		return EXIT_USAGE;
	}
	ret = catalog_dir(base, &e);
	if (!ret && (ret = directory_make(base)))
		error_errno(&e, -ret, "check the permissions of its parents", "make '%s'", base);
	if (!ret && snprintf(dest, sizeof dest, "%s/%s", base, b.name ? b.name : b.os) >= PATH_MAX)
		ret = error_set(&e, ENAMETOOLONG, NULL, "build the image", "its path is too long");
	if (!ret && !stat(dest, &st) && !b.force) {
		printf("%s is built already (%s); --force builds it again\n", b.name ? b.name : b.os, dest);
		return EXIT_OK;
	}
	if (!ret)
		ret = not_cloned(b.name ? b.name : b.os, &e);
	if (!ret)
		ret = build_run(&b, dest, &e);
	if (ret < 0)
		error_print(&e);
	if (!ret)
		printf("built %s; start it with: vixen run %s\n", dest, b.name ? b.name : b.os);
	return ret < 0 ? EXIT_FAILED : ret;
}

/* --- list, info --- */

struct show {
	bool json;
	json_t *list;
};

static bool set_format(void *s, const char *v)
{
	return json_parse("image", v, &((struct show *)s)->json);
}
static const struct option_row show_options[] = {
	{ "format", "table|json", "default table", set_format },
	{ 0 },
};
static const struct command list_command = {
	.verb = "image list", .usage = "image list [--format table|json]", .about = "Lists the images in the catalog.",
	.options = show_options,
};
static json_t *image_json(const struct image *img)
{
	return json_pack("{s:s, s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:s, s:s, s:s}", "name", img->name, "os", img->os, "arch",
			 img->arch, "kernel", img->kernel_version, "append", img->append, "built", img->built,
			 "disk_bytes", (json_int_t)img->disk_bytes, "used_bytes", (json_int_t)img->used_bytes, "path",
			 img->dir[0] ? img->dir : img->disk, "disk", img->disk, "base", img->base);
}

static bool list_one(void *opaque, const struct image *img)
{
	struct show *s = opaque;
	if (s->json)
		json_array_append_new(s->list, image_json(img));
	else
		printf("%-20s %-10s %-6s %-26s %5.1f GiB %5.2f GiB\n", img->name, img->os, img->arch, img->kernel_version,
		       (double)img->disk_bytes / (1 << 30), (double)img->used_bytes / (1 << 30));
	return true;
}

static int image_list(int argc, char **argv)
{
	struct show s = { 0 };
	struct error e = { 0 };
	int ret = options_parse(&list_command, &s, argc, argv);
	if (ret >= 0)
		return ret;
	if (s.json)
		s.list = json_array();
	else
		printf("%-20s %-10s %-6s %-26s %9s %9s\n", "NAME", "OS", "ARCH", "KERNEL", "DISK", "USED");
	if (catalog_each(list_one, &s, &e) < 0) {
		json_decref(s.list);
		error_print(&e);
		return EXIT_FAILED;
	}
	if (s.json)
		json_print(s.list);
	return EXIT_OK;
}

void image_describe(const struct image *img, bool json)
{
	if (json) {
		json_print(image_json(img));
		return;
	}
	printf("name    %s\nos      %s (%s)\nkernel  %s\nappend  %s\nlogin   %s\nbuilt   %s\ndisk    %.1f GiB, %.2f GiB used\n"
	       "path    %s\n", img->name, img->os, img->arch, img->kernel_version, img->append, img->login, img->built,
	       (double)img->disk_bytes / (1 << 30), (double)img->used_bytes / (1 << 30), img->dir);
	if (img->base[0])
		printf("clone   of %s\n", img->base);
}

/* --- the commands --- */

static const struct subcommand {
	const char *name, *summary;
	int (*run)(int argc, char **argv);
} subcommands[] = {
	{ "build", "debian-12           make one from Debian packages", image_build },
	{ "create", "FILE [SIZE]         an empty disk, or a linked clone", image_create },
	{ "list", "                    what there is", image_list },
	{ "info", "IMAGE|FILE          describe one", image_info },
	{ "clone", "IMAGE|FILE NEW      a linked clone, at once", image_clone },
	{ "convert", "SRC DST             copy a disk, to another format", image_convert },
	{ "restore", "BACKUP FILE         a disk as it was when it was backed up", image_restore },
	{ "compare", "A B                 do two disks hold the same?", image_compare },
	{ "map", "FILE                where it holds what", image_map },
	{ "partitions", "FILE         what its partition table says", image_partitions },
	{ "resize", "FILE SIZE           make a disk larger or smaller", image_resize },
	{ "check", "FILE                do its tables fit together?", image_check },
	{ "serve", "FILE                export one by NBD", image_serve },
	{ "snapshot", "create|list|apply|delete FILE NAME", image_snapshot },
	{ "bitmap", "add|remove|clear|merge|list FILE NAME", image_bitmap },
	{ "key", "add|remove|change FILE  passphrases of an encrypted disk", image_key },
	{ "commit", "FILE                into its backing file", image_commit },
	{ "rebase", "FILE                onto another backing file", image_rebase },
};
#define SUBCOMMANDS (sizeof subcommands / sizeof *subcommands)

static const struct command image_command = {
	.verb = "image", .usage = "image COMMAND ...", .about = "Guest images and disk files.",
};

static int image_help(int argc, char **argv)
{
	int ret = options_parse(&image_command, NULL, argc, argv);
	if (ret != EXIT_OK)
		return ret;
	for (size_t i = 0; i < SUBCOMMANDS; i++)
		printf("%s  %-9s %s\n", i ? "" : "\n", subcommands[i].name, subcommands[i].summary);
	printf("\n'vixen image COMMAND --help' explains one.\n");
	return ret;
}

int verb_image(int argc, char **argv)
{
	const char *names[SUBCOMMANDS + 1] = { 0 };
	for (size_t i = 0; i < SUBCOMMANDS; i++) {
		if (argc >= 2 && !strcmp(argv[1], subcommands[i].name))
			return subcommands[i].run(argc - 1, argv + 1);
		names[i] = subcommands[i].name;
	}
	if (argc >= 2 && argv[1][0] != '-') {
		const char *near = nearest(argv[1], names);
		usage_error("image", "no such command '%s'%s%s", argv[1], near ? ", did you mean " : "", near ? near : "");
		return EXIT_USAGE;
	}
	int ret = image_help(argc, argv);
	if (ret >= 0)
		return ret;
	usage_error("image", "say what, for instance build, list or info");
	return EXIT_USAGE;
}
