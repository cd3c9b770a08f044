/*
 * The descriptor, lines of text:
 *
 *	# Disk DescriptorFile
 *	CID=fffffffe
 *	parentCID=ffffffff
 *	createType="twoGbMaxExtentSparse"
 *	RW 4192256 SPARSE "disk-s001.vmdk"
 *	RW 20480 FLAT "disk-flat.vmdk" 0
 */
#include <ctype.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "block/vmdk/vmdk.h"

#define MAGIC_LINE "# Disk DescriptorFile"
#define EXTENT_SECTORS_MAX (1ull << 50)

static char *trim(char *s)
{
	char *end = s + strlen(s);

	while (end > s && isspace((unsigned char)end[-1]))
		*--end = 0;
	while (isspace((unsigned char)*s))
		s++;
	return s;
}

/* Takes the next word off *s; a quoted one may have blanks.  NULL: there is none. */
static char *word(char **s)
{
	char *p = trim(*s), *end;
	bool quoted = *p == '"';

	if (!*p)
		return NULL;
	p += quoted;
	end = p;
	while (*end && (quoted ? *end != '"' : !isspace((unsigned char)*end)))
		end++;
	if (quoted && !*end)
		return NULL;
	*s = *end ? end + 1 : end;
	*end = 0;
	return p;
}

static bool number(const char *s, int base, uint64_t max, uint64_t *out)
{
	char *end;

	errno = 0;
	*out = s && isxdigit((unsigned char)*s) ? strtoull(s, &end, base) : UINT64_MAX;
	return s && isxdigit((unsigned char)*s) && !*end && !errno && *out <= max;
}

/* --- extents --- */

/* A name may not lead out of the image's folder: the descriptor may come from a stranger. */
static int extent_name(struct vmdk_extent *x, const char *name, const char **why)
{
	if (!name || !*name)
		return *why = "has an extent without a file", -EINVAL;
	if (strchr(name, '/') || !strcmp(name, ".") || !strcmp(name, ".."))
		return *why = "has an extent outside its own folder; move the file there, and correct the name", -EINVAL;
	x->name = strdup(name);
	return x->name ? 0 : (*why = "does not fit into memory", -ENOMEM);
}

static int extent_type(struct vmdk_extent *x, const char *type, char *rest, const char **why)
{
	uint64_t sectors = 0;
	char *offset;
	int ret;

	if (!strcasecmp(type, "ZERO")) {
		x->type = VMDK_ZERO;
		return 0;
	}
	ret = extent_name(x, word(&rest), why);
	if (ret)
		return ret;
	offset = word(&rest);
	if (!strcasecmp(type, "SPARSE") || !strcasecmp(type, "VMFSSPARSE"))
		x->type = VMDK_SPARSE;
	else if (!strcasecmp(type, "FLAT") || !strcasecmp(type, "VMFS"))
		x->type = VMDK_FLAT;
	else
		return *why = "has an extent of a type that is not supported (FLAT, SPARSE, ZERO, VMFS, VMFSSPARSE)", -EINVAL;
	if (offset && !number(offset, 10, EXTENT_SECTORS_MAX, &sectors))
		return *why = "has an extent at an offset that cannot be", -EINVAL;
	x->file_offset = sectors * SECTOR;
	return 0;
}

static int extent_line(struct vmdk_descriptor *d, const char *access, char *rest, const char **why)
{
	struct vmdk_extent x = { 0 }, *grown;
	const char *type;
	uint64_t sectors;
	int ret;

	if (!strcasecmp(access, "NOACCESS"))
		return *why = "has an extent that may not be read", -EINVAL;
	if (d->nextents == VMDK_EXTENTS_MAX)
		return *why = "has more than 1024 extents", -EINVAL;
	if (!number(word(&rest), 10, EXTENT_SECTORS_MAX, &sectors) || !sectors)
		return *why = "has an extent of a size that cannot be", -EINVAL;
	type = word(&rest);
	if (!type)
		return *why = "has an extent without a type", -EINVAL;
	x.start = d->bytes;
	x.bytes = sectors * SECTOR;
	if (x.bytes > INT64_MAX - d->bytes)
		return *why = "gives a disk size that cannot be", -EINVAL;
	ret = extent_type(&x, type, rest, why);
	grown = ret ? NULL : realloc(d->extent, (d->nextents + 1) * sizeof(x));
	if (!grown) {
		free(x.name);
		return ret ? ret : (*why = "does not fit into memory", -ENOMEM);
	}
	d->extent = grown;
	d->extent[d->nextents++] = x;
	d->bytes += x.bytes;
	return 0;
}

/* --- lines --- */

static int text_set(char **slot, char *value, const char **why)
{
	char *text = word(&value);

	free(*slot);
	*slot = strdup(text ? text : "");
	return *slot ? 0 : (*why = "does not fit into memory", -ENOMEM);
}

static int cid_set(uint32_t *slot, const char *value, const char **why)
{
	uint64_t v;

	if (!number(value, 16, UINT32_MAX, &v))
		return *why = "has a content id that is no number", -EINVAL;
	*slot = (uint32_t)v;
	return 0;
}

static int assignment(struct vmdk_descriptor *d, const char *key, char *value, const char **why)
{
	if (!strcasecmp(key, "CID"))
		return cid_set(&d->cid, value, why);
	if (!strcasecmp(key, "parentCID"))
		return cid_set(&d->parent_cid, value, why);
	if (!strcasecmp(key, "createType"))
		return text_set(&d->type, value, why);
	if (!strcasecmp(key, "parentFileNameHint"))
		return text_set(&d->parent, value, why);
	return 0;
}

static bool is_access(const char *w)
{
	return w && (!strcasecmp(w, "RW") || !strcasecmp(w, "RDONLY") || !strcasecmp(w, "NOACCESS"));
}

static int line_parse(struct vmdk_descriptor *d, char *line, const char **why)
{
	char *equals, first[16] = "";
	size_t n;

	line = trim(line);
	if (!*line || *line == '#')
		return 0;
	n = strcspn(line, " \t=\"");
	if (n < sizeof(first))
		memcpy(first, line, n);
	if (is_access(first))
		return extent_line(d, first, line + n, why);
	equals = strchr(line, '=');
	if (!equals)
		return 0;
	*equals = 0;
	return assignment(d, trim(line), trim(equals + 1), why);
}

int vmdk_descriptor_parse(struct vmdk_descriptor *d, char *text, const char **why)
{
	*d = (struct vmdk_descriptor){ .cid = VMDK_NO_PARENT, .parent_cid = VMDK_NO_PARENT };
	for (char *line = text, *next; line; line = next) {
		int ret;

		next = strchr(line, '\n');
		if (next)
			*next++ = 0;
		ret = line_parse(d, line, why);
		if (ret)
			return ret;
	}
	if (!d->nextents)
		return *why = "has no extents", -EINVAL;
	return 0;
}

void vmdk_descriptor_fini(struct vmdk_descriptor *d)
{
	for (unsigned i = 0; i < d->nextents; i++)
		free(d->extent[i].name);
	free(d->extent);
	free(d->type);
	free(d->parent);
	*d = (struct vmdk_descriptor){ 0 };
}

bool vmdk_is_descriptor(const uint8_t *head, size_t len)
{
	size_t at = 0, n = strlen(MAGIC_LINE);

	while (at < len && isspace(head[at]))
		at++;
	return len - at >= n && !strncasecmp((const char *)head + at, MAGIC_LINE, n);
}
