/* Which images the random tester makes. */
#include <stdlib.h>
#include <string.h>

#include "qcow2_random.h"

const struct mix mixes[] = {
	{ "default", { 0 }, NULL, 24 * MIB, true, true, false, .bitmap = true },
	{ "backing", { 0 }, NULL, 24 * MIB, true, true, true, .chain = true },
	{ "512", { .cluster_bytes = 512 }, NULL, 4 * MIB, true, true, true, .bitmap = true },
	{ "512-1bit", { .cluster_bytes = 512, .refcount_bits = 1 }, NULL, 4 * MIB, false, true, true },
	{ "512-64bit", { .cluster_bytes = 512, .refcount_bits = 64 }, NULL, 6 * MIB, true, true, false },
	{ "4k-2bit", { .cluster_bytes = 4096, .refcount_bits = 2 }, NULL, 8 * MIB, false, true, true },
	{ "4k-8bit", { .cluster_bytes = 4096, .refcount_bits = 8 }, NULL, 8 * MIB, true, false, true },
	{ "2m", { .cluster_bytes = 2 << 20 }, NULL, 64 * MIB, true, true, true },
	{ "v2", { .version = 2 }, NULL, 16 * MIB, true, true, false },
	{ "v2-backing", { .version = 2, .cluster_bytes = 4096 }, NULL, 8 * MIB, true, true, true },
	{ "extended", { .extended_l2 = true }, NULL, 24 * MIB, true, true, true },
	{ "extended-16k", { .extended_l2 = true, .cluster_bytes = 16384, .zstd = true }, NULL, 16 * MIB, true, true, true },
	{ "extended-plain", { .extended_l2 = true, .cluster_bytes = 32768 }, NULL, 16 * MIB, false, true, false },
	{ "zstd", { .zstd = true }, NULL, 24 * MIB, true, true, true },
	{ "lazy", { .lazy_refcounts = true, .cluster_bytes = 4096 }, NULL, 8 * MIB, true, true, true },
	{ "data-file", { .data_path = "image.data" }, NULL, 24 * MIB, false, false, false },
	{ "data-file-backing", { .data_path = "image.data", .cluster_bytes = 4096 }, NULL, 8 * MIB, false, false, true },
	{ "data-raw", { .data_path = "image.data", .data_raw = true }, NULL, 16 * MIB, false, false, false },
	{ "data-extended", { .data_path = "image.data", .extended_l2 = true }, NULL, 16 * MIB, false, false, true },
	{ "luks", { .encrypt = BLOCK_ENCRYPT_LUKS1 }, NULL, 16 * MIB, true, false, true, true, true, true },
	{ "luks-512", { .encrypt = BLOCK_ENCRYPT_LUKS1, .cluster_bytes = 512 }, NULL, 4 * MIB, true, false, false, .luks = true },
	{ "qemu-luks", { 0 }, "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10", 16 * MIB, true, false, true,
	  .luks = true },
	{ "qemu-default", { 0 }, "compat=1.1", 24 * MIB, true, true, true },
	{ "qemu-v2", { 0 }, "compat=0.10", 16 * MIB, true, true, true },
	{ "qemu-meta", { 0 }, "preallocation=metadata", 16 * MIB, true, true, false },
	{ "qemu-extended", { 0 }, "extended_l2=on,cluster_size=128k", 24 * MIB, true, true, true },
	{ "qemu-extended-meta", { 0 }, "extended_l2=on,preallocation=metadata", 16 * MIB, true, true, false },
	{ "qemu-lazy", { 0 }, "lazy_refcounts=on,cluster_size=1k", 8 * MIB, true, true, true },
	{ "qemu-data", { 0 }, "data_file=image.data", 16 * MIB, false, false, true },
};
const unsigned nmixes = sizeof(mixes) / sizeof(mixes[0]);

/* --- any mix --- */

static void random_features(struct block_create *c, struct mix *m)
{
	unsigned bits = 9 + (unsigned)below(13);	/* 512 to 2 MiB */

	c->cluster_bytes = 1u << bits;
	m->size = (2 + below(bits < 11 ? 3 : bits > 18 ? 60 : 20)) * MIB + below(200) * SECTOR;
	m->backing = below(2);
	m->chain = m->backing && below(2);
	m->snapshots = below(2);
	m->compress = below(2);
	c->version = below(5) ? 3 : 2;
	if (c->version == 2)
		return;
	c->refcount_bits = below(2) ? 16 : 1u << below(7);
	c->extended_l2 = bits >= 14 && !below(3);
	c->lazy_refcounts = !below(3);
	c->zstd = below(2);
	m->bitmap = below(2);
	m->luks = !below(4);
	if (!below(5)) {
		c->data_path = "image.data";
		c->data_raw = !m->backing && !m->luks && below(2);
	}
}

void mix_random(struct mix *m, char text[256])
{
	struct block_create *c = &m->c;

	*m = (struct mix){ 0 };
	random_features(c, m);
	/* What does not go together: counts that overflow, what external data files and encryption exclude. */
	if (c->refcount_bits && c->refcount_bits < 16)
		m->snapshots &= c->refcount_bits == 8 && !m->compress;
	if (c->data_path)
		m->snapshots = m->compress = m->luks = false;
	m->compress &= !m->luks;
	c->encrypt = m->luks ? BLOCK_ENCRYPT_LUKS1 : BLOCK_ENCRYPT_NONE;
	snprintf(text, 256, "v%u cluster=%u refcount=%u%s%s%s%s%s%s%s%s%s%s%s", c->version, c->cluster_bytes,
		 c->refcount_bits, c->extended_l2 ? " extended" : "", c->lazy_refcounts ? " lazy" : "",
		 c->zstd ? " zstd" : "", c->data_path ? " data" : "", c->data_raw ? "-raw" : "", m->luks ? " luks" : "",
		 m->backing ? " backing" : "", m->chain ? " chain" : "", m->snapshots ? " snapshots" : "",
		 m->compress ? " compress" : "", m->bitmap ? " bitmap" : "");
	m->name = text;
}

bool mix_old(const struct mix *m)
{
	return m->qemu ? strstr(m->qemu, "compat=0.10") != NULL : m->c.version == 2;
}

/* --- in QEMU's words --- */

void mix_qemu(const struct mix *m, const char *name, char out[400])
{
	const struct block_create *c = &m->c;
	int n;

	if (m->qemu && !strncmp(m->qemu, "data_file=", 10))
		snprintf(out, 400, "data_file=%s.data", name);
	else if (m->qemu)
		snprintf(out, 400, "%s", m->qemu);
	if (m->qemu)
		return;
	n = snprintf(out, 400, "compat=%s,cluster_size=%u", c->version == 2 ? "0.10" : "1.1",
		     c->cluster_bytes ? c->cluster_bytes : 65536);
	if (c->refcount_bits)
		n += snprintf(out + n, 400 - (size_t)n, ",refcount_bits=%u", c->refcount_bits);
	if (c->data_path)
		n += snprintf(out + n, 400 - (size_t)n, ",data_file=%s.data,data_file_raw=%s", name, c->data_raw ? "on" : "off");
	snprintf(out + n, 400 - (size_t)n, "%s%s%s%s", c->extended_l2 ? ",extended_l2=on" : "",
		 c->lazy_refcounts ? ",lazy_refcounts=on" : "", c->zstd ? ",compression_type=zstd" : "",
		 m->luks ? ",encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10" : "");
}

const char *image(const struct state *s, const char *name, char out[256])
{
	if (s->mix->luks)
		snprintf(out, 256, "--object secret,id=k,file=key --image-opts "
			 "driver=qcow2,encrypt.key-secret=k,file.filename=%s", name);
	else
		snprintf(out, 256, "-f qcow2 %s", name);
	return out;
}
