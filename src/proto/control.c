#include "proto/control.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

static const char *const names[] = {
#define CONTROL(name, summary) #name,
#include "proto/control.def"
#undef CONTROL
};
_Static_assert(sizeof names / sizeof *names == CONTROL_VERBS, "one name for each verb");

const char *control_verb_name(enum control_verb v) { return names[v]; }

enum control_verb control_verb_find(const char *name)
{
	unsigned v = 0;

	while (v < CONTROL_VERBS && strcmp(names[v], name))
		v++;
	return (enum control_verb)v;
}

/* The object and a newline; takes the reference. */
static char *encode(json_t *j)
{
	size_t len = j ? json_dumpb(j, NULL, 0, JSON_COMPACT) : 0;
	char *line = len ? malloc(len + 2) : NULL;

	if (line) {
		json_dumpb(j, line, len, JSON_COMPACT);
		strcpy(line + len, "\n");
	}
	json_decref(j);
	return line;
}

static int refuse(struct error *e, int err, const char *what, const char *why)
{
	return error_set(e, err, "both sides must be of one version of vixen", what, "%s", why);
}

char *control_request_encode(json_int_t id, enum control_verb v, json_t *arguments)
{
	return encode(json_pack("{s:I, s:s, s:o*}", "id", id, "verb", names[v], "arguments", arguments));
}

int control_request_decode(struct control_request *r, const char *line, size_t len, struct error *e)
{
	json_error_t je;
	json_t *root = json_loadb(line, len, JSON_REJECT_DUPLICATES, &je), *arguments = NULL;
	const char *verb = NULL;
	int ret = 0;

	*r = (struct control_request){ .verb = CONTROL_VERBS };
	if (!root || json_unpack(root, "{s:I, s:s, s?o}", "id", &r->id, "verb", &verb, "arguments", &arguments) ||
	    (arguments && !json_is_object(arguments)))
		ret = refuse(e, EPROTO, "read a request", "it is not one");
	else if ((r->verb = control_verb_find(verb)) == CONTROL_VERBS)
		ret = refuse(e, ENOTSUP, "carry out a request", "this VM does not know its verb");
	if (!ret)
		r->arguments = arguments ? json_incref(arguments) : json_object();
	if (!ret && !r->arguments)
		ret = refuse(e, ENOMEM, "read a request", "out of memory");
	json_decref(root);
	return ret;
}

void control_request_fini(struct control_request *r)
{
	json_decref(r->arguments);
	r->arguments = NULL;
}

char *control_result_encode(json_int_t id, json_t *result)
{
	return encode(json_pack("{s:I, s:o}", "id", id, "result", result));
}

/* What comes from file names may be no UTF-8; the answer must not get lost for that. */
static json_t *text(const char *s)
{
	json_t *j = json_string(s);
	char plain[256], *p = plain;

	if (j)
		return j;
	for (; *s && p < plain + sizeof plain - 1; s++)
		*p++ = (unsigned char)*s < 0x80 ? *s : '?';
	*p = 0;
	return json_string(plain);
}

char *control_error_encode(json_int_t id, int err, const struct error *e)
{
	return encode(json_pack("{s:I, s:{s:i, s:o, s:o, s:o}}", "id", id, "error", "errno", err, "what", text(e->what),
				"why", text(e->why), "todo", text(e->todo)));
}

char *control_progress_encode(json_int_t id, uint64_t done, uint64_t total)
{
	return encode(json_pack("{s:I, s:{s:I, s:I}}", "id", id, "progress", "done", (json_int_t)done, "total",
				(json_int_t)total));
}

static int error_decode(struct control_answer *a, json_t *error)
{
	const char *what, *why, *todo;

	if (json_unpack(error, "{s:i, s:s, s:s, s:s}", "errno", &a->err, "what", &what, "why", &why, "todo", &todo) ||
	    a->err <= 0)
		return -EPROTO;
	error_set(&a->error, a->err, todo, what, "%s", why);
	return 0;
}

static int progress_decode(struct control_answer *a, json_t *progress)
{
	json_int_t done, total;

	if (json_unpack(progress, "{s:I, s:I}", "done", &done, "total", &total) || done < 0 || total < 0)
		return -EPROTO;
	a->done = (uint64_t)done;
	a->total = (uint64_t)total;
	return 0;
}

int control_answer_decode(struct control_answer *a, const char *line, size_t len, struct error *e)
{
	json_error_t je;
	json_t *root = json_loadb(line, len, JSON_REJECT_DUPLICATES, &je), *result = NULL, *error = NULL, *progress = NULL;
	int ret = -EPROTO;

	*a = (struct control_answer){ 0 };
	if (root && !json_unpack(root, "{s:I, s?o, s?o, s?o}", "id", &a->id, "result", &result, "error", &error,
				 "progress", &progress)) {
		if (result && (a->result = json_incref(result)))
			ret = 0;
		else if (error)
			ret = error_decode(a, error);
		else if (progress)
			ret = progress_decode(a, progress);
	}
	json_decref(root);
	return ret ? refuse(e, EPROTO, "read the VM's answer", "it is not one") : 0;
}

void control_answer_fini(struct control_answer *a)
{
	json_decref(a->result);
	a->result = NULL;
}
