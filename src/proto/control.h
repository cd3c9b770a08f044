/*
 * The language of a VM's control socket: lines of JSON over a Unix stream socket.
 *
 *	client -> VM	{"id": 1, "verb": "status", "arguments": {...}}\n
 *	VM -> client	{"id": 1, "result": {...}}\n
 *	         or	{"id": 1, "error": {"errno": 2, "what": "...", "why": "...", "todo": "..."}}\n
 *	VM -> client	{"id": 1, "progress": {"done": 10, "total": 40}}\n	any number, before the answer
 *
 * Descriptors are sent with the first byte of the request they belong to, alone on its way: the client waits for the
 * answer before it sends more.
 *
 * `id` is the client's, a whole number; answers may come in another order than the requests. A line that is no request
 * ends the connection. Pure functions; json_t references are new ones unless said otherwise.
 */
#ifndef VIXEN_PROTO_CONTROL_H
#define VIXEN_PROTO_CONTROL_H

#include <jansson.h>
#include <stddef.h>
#include <stdint.h>

#include "base/error.h"

#define CONTROL_FDS_MAX 253u		/* descriptors that may come with a request (SCM_RIGHTS), before its newline */
#define CONTROL_LINE_MAX 65536u		/* bytes of a request, and of an answer */

enum control_verb {
#define CONTROL(name, summary) CONTROL_##name,
#include "proto/control.def"
#undef CONTROL
	CONTROL_VERBS
};

const char *control_verb_name(enum control_verb v);
enum control_verb control_verb_find(const char *name);		/* CONTROL_VERBS: none */

struct control_request {
	json_int_t id;
	enum control_verb verb;
	json_t *arguments;		/* an object */
};
/* arguments: stolen; NULL: none. NULL on lack of memory. To be freed with free(); ends in a newline. */
char *control_request_encode(json_int_t id, enum control_verb v, json_t *arguments);
/* -EPROTO: no request at all; -ENOTSUP: no such verb, r->id is filled in. */
int control_request_decode(struct control_request *r, const char *line, size_t len, struct error *e);
void control_request_fini(struct control_request *r);

/* result: stolen. */
char *control_result_encode(json_int_t id, json_t *result);
char *control_error_encode(json_int_t id, int err, const struct error *e);	/* err: positive errno */
char *control_progress_encode(json_int_t id, uint64_t done, uint64_t total);

struct control_answer {
	json_int_t id;
	json_t *result;			/* NULL: progress, or it failed */
	int err;			/* positive errno; 0: no failure */
	struct error error;
	uint64_t done, total;		/* of progress */
};
int control_answer_decode(struct control_answer *a, const char *line, size_t len, struct error *e);
void control_answer_fini(struct control_answer *a);

#endif
