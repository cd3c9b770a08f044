/* vixen image convert, vixen image compare. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cli/convert.h"
#include "cli/image_tool.h"
#include "cli/options.h"
#include "cli/passphrase.h"
#include "cli/verb.h"

/* --- convert: options --- */

static bool set_from(void *o, const char *v)
{
	((struct convert *)o)->from = v;
	return tool_format_parse("image convert", "from", v);
}
static bool set_to(void *o, const char *v)
{
	((struct convert *)o)->to = v;
	return tool_create_format_parse("image convert", "to", v);
}
static bool set_subformat(void *o, const char *v) { ((struct convert *)o)->create.subformat = v; return true; }
static bool set_compression(void *o, const char *v)
{
	((struct convert *)o)->create.zstd = !strcmp(v, "zstd");
	return !strcmp(v, "zlib") || !strcmp(v, "zstd") ||
	       usage_error("image convert", "--compression '%s' is not zlib or zstd", v);
}
static bool set_cluster(void *o, const char *v)
{
	uint64_t bytes;
	if (!size_parse(v, &bytes) || bytes < 512 || bytes > 2 << 20 || bytes & (bytes - 1))
		return usage_error("image convert", "--cluster-size '%s' is not a power of two from 512 to 2M", v);
	((struct convert *)o)->create.cluster_bytes = (uint32_t)bytes;
	return true;
}
static bool set_sparse(void *o, const char *v)
{
	struct convert *c = o;
	uint64_t bytes;
	if (!size_parse(v, &bytes) || (bytes && (bytes < 512 || bytes > 2 << 20 || bytes & (bytes - 1))))
		return usage_error("image convert", "--sparse '%s' is not 0 or a power of two from 512 to 2M", v);
	c->how.sparse_bytes = (uint32_t)bytes;
	c->how.dense = !bytes;
	return true;
}
static bool set_parallel(void *o, const char *v)
{
	uint64_t n;
	if (!number_parse(v, JOB_PARALLEL_MAX, &n) || !n)
		return usage_error("image convert", "--parallel '%s' is not a number from 1 to %u", v, JOB_PARALLEL_MAX);
	((struct convert *)o)->parallel = (unsigned)n;
	return true;
}
static bool set_encrypt(void *o, const char *v)
{
	return tool_encrypt_parse("image convert", v, &((struct convert *)o)->create.encrypt);
}
static bool set_time(void *o, const char *v)
{
	return tool_kdf_parse("image convert", v, &((struct convert *)o)->create.kdf_ms);
}
static bool set_key(void *o, const char *v) { return key_list_add(&((struct convert *)o)->keys, "image convert", v); }
static bool set_new_key(void *o, const char *v) { ((struct convert *)o)->new_key_file = v; return true; }
static bool set_plain(void *o, const char *v) { (void)v; return ((struct convert *)o)->plain = true; }
static bool set_compress(void *o, const char *v) { (void)v; return ((struct convert *)o)->how.compress = true; }
static bool set_force(void *o, const char *v) { (void)v; return ((struct convert *)o)->force = true; }
static bool set_resume(void *o, const char *v) { (void)v; return ((struct convert *)o)->resume = true; }
static bool set_files(void *o, const char *v)
{
	return tool_argument("image convert", v, ((struct convert *)o)->file, 2);
}

static const struct option_row convert_options[] = {
	{ "from", "FORMAT", "what SRC is; default: by its name", set_from },
	{ "to", "FORMAT", "what DST shall be; default: by its name, else raw", set_to },
	{ "subformat", "KIND", "vmdk: monolithicSparse or streamOptimized; vhdx, vdi: dynamic or fixed\n"
	  "(default: the first)", set_subformat },
	{ "compress", NULL, "qcow2: compress the data", set_compress },
	{ "compression", "zlib|zstd", "qcow2: how (default zlib)", set_compression },
	{ "cluster-size", "SIZE", "qcow2: unit of allocation, 512 to 2M (default 64K)", set_cluster },
	{ "encrypt", "luks1|luks2", "encrypt DST; qcow2 takes luks1", set_encrypt },
	{ "key-file", "FILE", "holds the passphrase of SRC: fd:N, - for stdin; default: asked for;\n"
	  "again for backing files with others", set_key },
	{ "new-key-file", "FILE", "holds the passphrase of DST", set_new_key },
	{ "iter-time", "MS", "how long trying that passphrase shall take (default 2000)", set_time },
	{ "plain", NULL, "what is encrypted in SRC may be kept unencrypted: no warning", set_plain },
	{ "sparse", "SIZE", "zeroes of that length take no space (default 4K); 0: only holes stay holes", set_sparse },
	{ "parallel", "N", "pieces under way at a time, 1 to 64 (default 8)", set_parallel },
	{ "resume", NULL, "raw, qcow2: keep the copy if it ends early, and go on with one that did", set_resume },
	{ "force", NULL, "replace DST if it is there", set_force },
	{ 0 },
};

static const struct command convert_command = {
	.verb = "image convert", .usage = "image convert SRC DST [OPTIONS]",
	.about = "Copies a disk to a new file, in the same format or another one. All that the backing files hold goes into\n"
		 "the copy. It is written beside DST, as DST.partial.N, and gets its name when it is whole: until then a\n"
		 "DST that is replaced stays as it was. With --resume it is DST.partial, beside a journal, and the same command\n"
		 "goes on with it after Ctrl-C, a crash or a full disk.",
	.options = convert_options, .argument = set_files,
};

/* --- convert: the command --- */

static bool convert_good(struct convert *c)
{
	if (!c->file[1])
		return usage_error("image convert", c->file[0] ? "no DST given" : "no SRC given");
	if (!c->to)
		c->to = tool_format_named(c->file[1]);
	if (c->create.encrypt && !strcmp(c->to, "raw"))
		c->to = "luks";
	if (!strcmp(c->to, "luks") && !c->create.encrypt)
		c->create.encrypt = BLOCK_ENCRYPT_LUKS2;
	if (c->create.encrypt && strcmp(c->to, "luks") && strcmp(c->to, "qcow2"))
		return usage_error("image convert", "DST would be %s, which is not encrypted; add --to qcow2 or luks", c->to);
	if (c->create.encrypt && c->how.compress)
		return usage_error("image convert", "what is encrypted cannot be compressed");
	if (strcmp(c->to, "qcow2") && (c->how.compress || c->create.zstd || c->create.cluster_bytes))
		return usage_error("image convert",
				   "DST would be %s, where clusters and compression cannot be chosen; add --to qcow2",
				   c->to);
	if (c->resume && (c->create.encrypt || (strcmp(c->to, "qcow2") && strcmp(c->to, "raw"))))
		return usage_error("image convert", "--resume is for raw and qcow2, not encrypted");
	return tool_subformat_good("image convert", c->to, c->create.subformat);
}

int image_convert(int argc, char **argv)
{
	struct convert c = { .held_fd = -1 };
	struct tool t;
	int ret = options_parse(&convert_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!convert_good(&c))
		return EXIT_USAGE;
	c.t = &t;
	ret = tool_init(&t, "image convert", true);
	t.job.parallel = c.parallel;
	if (!ret)
		ret = convert_run(&c);
	return tool_fini(&t, ret);
}

/* --- compare --- */

struct compare {
	const char *file[2], *format[2];
	struct key_list keys[2];
	bool json;
	struct block *b[2];
	struct job_compare out;
	struct tool *t;
};

static bool set_format_a(void *o, const char *v)
{
	((struct compare *)o)->format[0] = v;
	return tool_format_parse("image compare", "format-a", v);
}
static bool set_format_b(void *o, const char *v)
{
	((struct compare *)o)->format[1] = v;
	return tool_format_parse("image compare", "format-b", v);
}
static bool set_key_a(void *o, const char *v) { return key_list_add(&((struct compare *)o)->keys[0], "image compare", v); }
static bool set_key_b(void *o, const char *v) { return key_list_add(&((struct compare *)o)->keys[1], "image compare", v); }
static bool set_json(void *o, const char *v)
{
	return json_parse("image compare", v, &((struct compare *)o)->json);
}
static bool set_pair(void *o, const char *v)
{
	return tool_argument("image compare", v, ((struct compare *)o)->file, 2);
}

static const struct option_row compare_options[] = {
	{ "format-a", "FORMAT", "what A is; default: by its name", set_format_a },
	{ "format-b", "FORMAT", "what B is", set_format_b },
	{ "key-file-a", "FILE", "holds the passphrase of A: fd:N, - for stdin; default: asked for", set_key_a },
	{ "key-file-b", "FILE", "holds the passphrase of B", set_key_b },
	{ "format", "table|json", "of the answer, default table", set_json },
	{ 0 },
};

static const struct command compare_command = {
	.verb = "image compare", .usage = "image compare A B [OPTIONS]",
	.about = "Says whether two disks hold the same, whatever their formats. If one is shorter, the rest of the other\n"
		 "has to be zeroes. Exit code 0: alike; 3: they differ; 1: it could not be found out.",
	.options = compare_options, .argument = set_pair,
};

static int compare_job(void *opaque)
{
	struct compare *c = opaque;
	return job_compare(&c->t->job, c->b[0], c->b[1], &c->out, &c->t->e);
}

static void answer(const struct compare *c)
{
	bool sizes = block_size(c->b[0]) == block_size(c->b[1]);
	if (c->json) {
		json_t *j = json_pack("{s:b, s:b}", "alike", !c->out.differ, "same_size", sizes);
		if (c->out.differ)
			json_object_set_new(j, "offset", json_integer((json_int_t)c->out.offset));
		json_print(j);
	} else if (c->out.differ) {
		printf("they differ, first in the sector at byte %llu\n", (unsigned long long)c->out.offset);
	} else {
		printf("alike%s\n", sizes ? "" : ", but for zeroes at the end of the larger one");
	}
}

/* B is opened when A is; both are closed. */
static int compare_from(struct compare *c, unsigned i)
{
	static const char *const option[2] = { "--format-a", "--format-b" };
	char path[PATH_MAX];
	int ret;
	if (i == 2) {
		ret = block_run(c->t->loop, compare_job, c);
		if (!ret)
			answer(c);
		return ret || !c->out.differ ? ret : EXIT_NO;
	}
	c->t->keys = &c->keys[i];
	ret = tool_path(c->t, c->file[i], path);
	if (!ret)
		ret = tool_open(c->t, &c->b[i], path, c->format[i], BLOCK_READONLY, option[i]);
	return ret ? ret : tool_close(c->t, c->b[i], compare_from(c, i + 1));
}

int image_compare(int argc, char **argv)
{
	struct compare c = { 0 };
	struct tool t;
	int ret = options_parse(&compare_command, &c, argc, argv);
	if (ret >= 0)
		return ret;
	if (!c.file[1]) {
		usage_error("image compare", "two FILEs are needed");
		return EXIT_USAGE;
	}
	c.t = &t;
	ret = tool_init(&t, "image compare", true);
	if (!ret)
		ret = compare_from(&c, 0);
	return tool_fini(&t, ret);
}
