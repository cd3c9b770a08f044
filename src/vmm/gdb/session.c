#include "vmm/gdb/session.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "vmm/vm_config.h"

#define SIGNAL_INT 2u
#define SIGNAL_TRAP 5u
#define SIGNAL_SEGV 11u

#define ERROR_REQUEST 1		/* the numbers mean nothing to GDB */
#define ERROR_MEMORY 14
#define ERROR_POINTS 28

struct point { uint8_t type; struct debug_point p; };

struct gdb_session {
	const struct gdb_target *target;
	void *opaque;
	struct gdb_parser in;
	struct gdb_out out;
	char *xml;
	bool running, no_ack, physical, swbreak, hwbreak;
	unsigned general, control;	/* vCPUs that Hg and Hc chose */
	struct board_stop stop;		/* why it stands still */
	struct point point[DEBUG_POINTS];
	unsigned points;
	bool cpu_known;			/* `cpu` holds vCPU `general` */
	struct gdb_cpu cpu;
	uint8_t buffer[GDB_PACKET_MAX];
};

/* What is left of a request. */
struct args { const uint8_t *at, *end; };

static bool take_char(struct args *a, char c)
{
	if (a->at == a->end || *a->at != c)
		return false;
	a->at++;
	return true;
}

static bool take_word(struct args *a, const char *word)
{
	size_t n = strlen(word);

	if ((size_t)(a->end - a->at) < n || memcmp(a->at, word, n))
		return false;
	a->at += n;
	return true;
}

static bool take_number(struct args *a, uint64_t *out) { return gdb_hex_number(&a->at, a->end, out); }

static unsigned cpus(const struct gdb_session *g) { return g->target->cpus(g->opaque); }

/* A thread: "-1" all, "0" any, else vCPU + 1. *cpu is -1 for all and any. */
static bool take_thread(struct args *a, const struct gdb_session *g, int *cpu)
{
	uint64_t v;

	*cpu = -1;
	if (take_word(a, "-1"))
		return true;
	if (!take_number(a, &v) || v > cpus(g))
		return false;
	*cpu = (int)v - 1;
	return true;
}

/* --- answers --- */

static void answer(struct gdb_session *g, const char *text)
{
	gdb_out_begin(&g->out);
	gdb_out_data(&g->out, text, strlen(text));
	gdb_out_end(&g->out);
}

static void answer_error(struct gdb_session *g, unsigned code)
{
	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, "E%02x", code);
	gdb_out_end(&g->out);
}

static void answer_ok(struct gdb_session *g, bool ok)
{
	if (ok)
		answer(g, "OK");
	else
		answer_error(g, ERROR_REQUEST);
}

static const struct point *point_met(const struct gdb_session *g)
{
	const struct debug_point *p = &g->stop.point;

	for (unsigned i = 0; i < g->points; i++)
		if (g->point[i].p.gva == p->gva && g->point[i].p.kind == p->kind)
			return &g->point[i];
	return NULL;
}

static unsigned stop_signal(const struct board_stop *s)
{
	switch (s->why) {
	case BOARD_ASKED: return SIGNAL_INT;
	case BOARD_TRIPLE_FAULT: return SIGNAL_SEGV;
	default: return SIGNAL_TRAP;
	}
}

static void answer_stop(struct gdb_session *g)
{
	static const char *const watch[] = { [DEBUG_WRITE] = "watch", [DEBUG_READ] = "rwatch", [DEBUG_ACCESS] = "awatch" };
	const struct point *p = point_met(g);

	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, "T%02xthread:%x;", stop_signal(&g->stop), g->stop.cpu + 1);
	if (g->stop.why == BOARD_WATCHED)
		gdb_out_text(&g->out, "%s:%llx;", watch[g->stop.point.kind], (unsigned long long)g->stop.point.gva);
	else if (g->stop.why == BOARD_AT_BREAK && p && p->type == 0 && g->swbreak)
		gdb_out_text(&g->out, "swbreak:;");
	else if (g->stop.why == BOARD_AT_BREAK && p && p->type == 1 && g->hwbreak)
		gdb_out_text(&g->out, "hwbreak:;");
	gdb_out_end(&g->out);
}

/* --- vCPU state --- */

static struct gdb_cpu *cpu_state(struct gdb_session *g)
{
	if (!g->cpu_known)
		g->target->get(g->opaque, g->general, &g->cpu);
	g->cpu_known = true;
	return &g->cpu;
}

static void cpu_choose(struct gdb_session *g, unsigned cpu)
{
	g->cpu_known = g->cpu_known && cpu == g->general;
	g->general = cpu;
}

static void cpu_write(struct gdb_session *g)
{
	g->target->set(g->opaque, g->general, &g->cpu);
	g->cpu_known = false;	/* the engine may keep less than was asked for */
}

static void request_registers(struct gdb_session *g, struct args *a)
{
	uint8_t bytes[GDB_REG_BYTES_MAX];

	gdb_out_begin(&g->out);
	for (unsigned i = 0; i < gdb_reg_count(); i++) {
		gdb_reg_get(cpu_state(g), i, bytes);
		gdb_out_hex(&g->out, bytes, gdb_reg_bytes(i));
	}
	gdb_out_end(&g->out);
}

/* All or nothing. */
static void request_set_registers(struct gdb_session *g, struct args *a)
{
	uint8_t bytes[GDB_REG_BYTES_MAX];
	bool ok = true;

	cpu_state(g);
	for (unsigned i = 0; i < gdb_reg_count() && ok; i++) {
		ok = gdb_hex_bytes(&a->at, a->end, bytes, gdb_reg_bytes(i));
		if (ok)
			gdb_reg_set(&g->cpu, i, bytes);
	}
	if (ok)
		cpu_write(g);
	g->cpu_known = false;
	answer_ok(g, ok);
}

static void request_register(struct gdb_session *g, struct args *a)
{
	uint8_t bytes[GDB_REG_BYTES_MAX];
	uint64_t reg;

	if (!take_number(a, &reg) || reg >= gdb_reg_count()) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	gdb_reg_get(cpu_state(g), (unsigned)reg, bytes);
	gdb_out_begin(&g->out);
	gdb_out_hex(&g->out, bytes, gdb_reg_bytes((unsigned)reg));
	gdb_out_end(&g->out);
}

static void request_set_register(struct gdb_session *g, struct args *a)
{
	uint8_t bytes[GDB_REG_BYTES_MAX];
	uint64_t reg;
	bool ok = take_number(a, &reg) && reg < gdb_reg_count() && take_char(a, '=') &&
		  gdb_hex_bytes(&a->at, a->end, bytes, gdb_reg_bytes((unsigned)reg));

	if (ok) {
		gdb_reg_set(cpu_state(g), (unsigned)reg, bytes);
		cpu_write(g);
	}
	answer_ok(g, ok);
}

/* --- memory --- */

static bool take_range(struct args *a, uint64_t *at, uint64_t *n, size_t most)
{
	return take_number(a, at) && take_char(a, ',') && take_number(a, n) && *n <= most;
}

static bool memory(struct gdb_session *g, uint64_t at, size_t n, bool write)
{
	return g->target->memory(g->opaque, cpu_state(g), g->physical, at, g->buffer, n, write);
}

/* As much as is there, from the start. */
static void request_read(struct gdb_session *g, struct args *a)
{
	uint64_t at, n;

	if (!take_range(a, &at, &n, GDB_PACKET_MAX / 2)) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	if (!memory(g, at, n, false)) {
		uint64_t room = 4096 - (at & 4095);
		n = room < n ? room : 0;
		if (!n || !memory(g, at, n, false)) {
			answer_error(g, ERROR_MEMORY);
			return;
		}
	}
	gdb_out_begin(&g->out);
	gdb_out_hex(&g->out, g->buffer, n);
	gdb_out_end(&g->out);
}

static void write_answer(struct gdb_session *g, uint64_t at, uint64_t n)
{
	if (n && !memory(g, at, n, true))
		answer_error(g, ERROR_MEMORY);
	else
		answer(g, "OK");
}

static void request_write(struct gdb_session *g, struct args *a)
{
	uint64_t at, n;

	if (take_range(a, &at, &n, GDB_PACKET_MAX) && take_char(a, ':') && gdb_hex_bytes(&a->at, a->end, g->buffer, n))
		write_answer(g, at, n);
	else
		answer_error(g, ERROR_REQUEST);
}

static void request_write_binary(struct gdb_session *g, struct args *a)
{
	uint64_t at, n;

	if (!take_range(a, &at, &n, GDB_PACKET_MAX) || !take_char(a, ':') || (uint64_t)(a->end - a->at) != n) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	memcpy(g->buffer, a->at, n);
	write_answer(g, at, n);
}

/* --- breakpoints --- */

static int points_apply(struct gdb_session *g)
{
	struct debug_point p[DEBUG_POINTS];

	for (unsigned i = 0; i < g->points; i++)
		p[i] = g->point[i].p;
	return g->target->points(g->opaque, p, g->points);
}

/* Types as the protocol numbers them: software and hardware breakpoint, write, read and access watchpoint. For us a
 * software breakpoint is no other thing than a hardware one: nothing is written into the guest. */
static bool take_point(struct args *a, struct point *p)
{
	static const uint8_t kinds[] = { DEBUG_BREAK, DEBUG_BREAK, DEBUG_WRITE, DEBUG_READ, DEBUG_ACCESS };
	uint64_t type, gva, bytes;

	if (!take_number(a, &type) || type > 4 || !take_char(a, ',') || !take_number(a, &gva) || !take_char(a, ',') ||
	    !take_number(a, &bytes) || bytes > DEBUG_WATCH_BYTES)
		return false;
	*p = (struct point){ (uint8_t)type, { gva, (uint32_t)bytes, kinds[type] } };
	if (p->p.kind == DEBUG_BREAK)
		p->p.bytes = 1;
	return true;
}

static int point_find(const struct gdb_session *g, const struct point *p)
{
	for (unsigned i = 0; i < g->points; i++)
		if (g->point[i].type == p->type && g->point[i].p.gva == p->p.gva && g->point[i].p.bytes == p->p.bytes)
			return (int)i;
	return -1;
}

static void point_insert(struct gdb_session *g, const struct point *p)
{
	int ret;

	if (point_find(g, p) >= 0) {
		answer(g, "OK");
		return;
	}
	if (g->points == DEBUG_POINTS) {
		answer_error(g, ERROR_POINTS);
		return;
	}
	g->point[g->points++] = *p;
	ret = points_apply(g);
	if (ret < 0)
		g->points--;
	if (ret == -ENOTSUP)
		answer(g, "");
	else if (ret < 0)
		answer_error(g, ERROR_POINTS);
	else
		answer(g, "OK");
}

static void point_remove(struct gdb_session *g, const struct point *p)
{
	int i = point_find(g, p);

	if (i >= 0) {
		memmove(&g->point[i], &g->point[i + 1], (--g->points - (unsigned)i) * sizeof *p);
		points_apply(g);
	}
	answer(g, "OK");
}

static void request_insert(struct gdb_session *g, struct args *a)
{
	struct point p;

	if (take_point(a, &p))
		point_insert(g, &p);
	else
		answer(g, "");
}

static void request_remove(struct gdb_session *g, struct args *a)
{
	struct point p;

	if (take_point(a, &p))
		point_remove(g, &p);
	else
		answer(g, "");
}

static void points_clear(struct gdb_session *g)
{
	g->points = 0;
	points_apply(g);
}

/* --- going on --- */

static void resume(struct gdb_session *g, const enum debug_go *go)
{
	g->cpu_known = false;
	g->running = true;
	g->target->resume(g->opaque, go);
}

static void resume_all(struct gdb_session *g)
{
	enum debug_go go[VM_CPUS_MAX];

	for (unsigned i = 0; i < cpus(g); i++)
		go[i] = DEBUG_RUN;
	resume(g, go);
}

static bool take_address(struct gdb_session *g, struct args *a)
{
	uint64_t rip;

	if (a->at == a->end)
		return true;
	if (!take_number(a, &rip))
		return false;
	cpu_choose(g, g->control);
	cpu_state(g)->s.rip = rip;
	cpu_write(g);
	return true;
}

static void request_continue(struct gdb_session *g, struct args *a)
{
	if (take_address(g, a))
		resume_all(g);
	else
		answer_error(g, ERROR_REQUEST);
}

static void request_step(struct gdb_session *g, struct args *a)
{
	enum debug_go go[VM_CPUS_MAX] = { DEBUG_PARK };

	if (!take_address(g, a)) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	go[g->control] = DEBUG_STEP;
	resume(g, go);
}

/* C and S: with a signal, which a machine does not take. */
static void request_continue_signal(struct gdb_session *g, struct args *a)
{
	uint64_t signal;

	if (take_number(a, &signal))
		take_char(a, ';');
	request_continue(g, a);
}

static void request_step_signal(struct gdb_session *g, struct args *a)
{
	uint64_t signal;

	if (take_number(a, &signal))
		take_char(a, ';');
	request_step(g, a);
}

static bool take_action(struct args *a, enum debug_go *go)
{
	uint64_t signal;

	if (take_char(a, 'c') || take_char(a, 's')) {
		*go = a->at[-1] == 's' ? DEBUG_STEP : DEBUG_RUN;
		return true;
	}
	if (!take_char(a, 'C') && !take_char(a, 'S'))
		return false;
	*go = a->at[-1] == 'S' ? DEBUG_STEP : DEBUG_RUN;
	return take_number(a, &signal);
}

/* vCont;ACTION[:THREAD]...: for each vCPU the leftmost action that names it counts. */
static void request_vcont(struct gdb_session *g, struct args *a)
{
	enum debug_go go[VM_CPUS_MAX] = { DEBUG_PARK }, action;
	bool some = false;
	int cpu;

	while (take_char(a, ';')) {
		cpu = -1;
		if (!take_action(a, &action) || (take_char(a, ':') && !take_thread(a, g, &cpu))) {
			some = false;
			break;
		}
		for (unsigned i = 0; i < cpus(g); i++)
			if ((cpu < 0 || cpu == (int)i) && go[i] == DEBUG_PARK)
				go[i] = action;
		some = true;
	}
	if (!some || a->at != a->end)
		answer_error(g, ERROR_REQUEST);
	else
		resume(g, go);
}

/* --- the other requests --- */

static void request_thread(struct gdb_session *g, struct args *a)
{
	bool control = take_char(a, 'c');
	int cpu;

	if ((!control && !take_char(a, 'g')) || !take_thread(a, g, &cpu)) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	if (control)
		g->control = cpu < 0 ? g->stop.cpu : (unsigned)cpu;
	else
		cpu_choose(g, cpu < 0 ? g->stop.cpu : (unsigned)cpu);
	answer(g, "OK");
}

static void request_alive(struct gdb_session *g, struct args *a)
{
	int cpu;

	answer_ok(g, take_thread(a, g, &cpu) && cpu >= 0);
}

static void request_supported(struct gdb_session *g, struct args *a)
{
	g->swbreak = memmem(a->at, (size_t)(a->end - a->at), "swbreak+", 8);
	g->hwbreak = memmem(a->at, (size_t)(a->end - a->at), "hwbreak+", 8);
	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, "PacketSize=%x;qXfer:features:read+;vContSupported+;QStartNoAckMode+;swbreak+;hwbreak+",
		     GDB_PACKET_MAX);
	gdb_out_end(&g->out);
}

static void request_features(struct gdb_session *g, struct args *a)
{
	uint64_t at, n;
	size_t len = strlen(g->xml);

	if (!take_word(a, "target.xml:") || !take_range(a, &at, &n, UINT32_MAX)) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	if (n > GDB_PACKET_MAX / 2)
		n = GDB_PACKET_MAX / 2;
	if (at > len)
		at = len;
	if (n > len - at)
		n = len - at;
	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, at + n < len ? "m" : "l");
	gdb_out_data(&g->out, g->xml + at, n);
	gdb_out_end(&g->out);
}

static void request_threads(struct gdb_session *g, struct args *a)
{
	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, "m");
	for (unsigned i = 0; i < cpus(g); i++)
		gdb_out_text(&g->out, "%s%x", i ? "," : "", i + 1);
	gdb_out_end(&g->out);
}

static void request_threads_end(struct gdb_session *g, struct args *a) { answer(g, "l"); }

static void request_thread_now(struct gdb_session *g, struct args *a)
{
	if (a->at != a->end) {	/* qCRC */
		answer(g, "");
		return;
	}
	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, "QC%x", g->general + 1);
	gdb_out_end(&g->out);
}

static void request_thread_extra(struct gdb_session *g, struct args *a)
{
	static const char *const doing[] = { [ACTIVITY_RUNNING] = "running", [ACTIVITY_HALTED] = "halted",
					     [ACTIVITY_WAIT_SIPI] = "waits to be started", [ACTIVITY_SHUTDOWN] = "shut down" };
	unsigned before = g->general;
	char text[48];
	int cpu, n;

	if (!take_thread(a, g, &cpu) || cpu < 0) {
		answer_error(g, ERROR_REQUEST);
		return;
	}
	cpu_choose(g, (unsigned)cpu);
	n = snprintf(text, sizeof text, "CPU %d, %s", cpu, doing[cpu_state(g)->s.activity & 3]);
	cpu_choose(g, before);
	gdb_out_begin(&g->out);
	gdb_out_hex(&g->out, text, (size_t)n);
	gdb_out_end(&g->out);
}

/* The text goes out in O packets, then OK. */
static void request_monitor(struct gdb_session *g, struct args *a)
{
	char command[256] = "", *text = NULL;
	size_t n = (size_t)(a->end - a->at) / 2, len = 0;
	FILE *f = n < sizeof command && gdb_hex_bytes(&a->at, a->end, (uint8_t *)command, n) ? open_memstream(&text, &len)
											    : NULL;
	bool known = f && g->target->monitor(g->opaque, g->general, command, f);

	if (!f || fclose(f) || !known) {
		free(text);
		answer(g, f ? "" : "E01");
		return;
	}
	g->cpu_known = false;
	for (size_t at = 0; at < len; at += 1024) {
		gdb_out_begin(&g->out);
		gdb_out_text(&g->out, "O");
		gdb_out_hex(&g->out, text + at, len - at < 1024 ? len - at : 1024);
		gdb_out_end(&g->out);
	}
	free(text);
	answer(g, "OK");
}

static void request_no_ack(struct gdb_session *g, struct args *a)
{
	g->no_ack = true;
	answer(g, "OK");
}

static void request_attached(struct gdb_session *g, struct args *a) { answer(g, "1"); }

static void request_physical(struct gdb_session *g, struct args *a)
{
	answer(g, g->physical ? "1" : "0");
}

static void request_set_physical(struct gdb_session *g, struct args *a)
{
	bool on = take_char(a, '1');

	if (on || take_char(a, '0'))
		g->physical = on;
	answer_ok(g, a->at == a->end);
}

static void request_why(struct gdb_session *g, struct args *a) { answer_stop(g); }

static void request_actions(struct gdb_session *g, struct args *a) { answer(g, "vCont;c;C;s;S"); }

static void request_detach(struct gdb_session *g, struct args *a)
{
	answer(g, "OK");
	points_clear(g);
	resume_all(g);
}

static void request_kill(struct gdb_session *g, struct args *a) { g->target->kill(g->opaque); }

static const struct request {
	const char *name;	/* what the body begins with */
	void (*fn)(struct gdb_session *g, struct args *a);
} requests[] = {
	{ "qSupported", request_supported }, { "qXfer:features:read:", request_features },
	{ "qfThreadInfo", request_threads }, { "qsThreadInfo", request_threads_end },
	{ "qThreadExtraInfo,", request_thread_extra }, { "qC", request_thread_now }, { "qAttached", request_attached },
	{ "qRcmd,", request_monitor }, { "QStartNoAckMode", request_no_ack },
	{ "qqemu.PhyMemMode", request_physical }, { "Qqemu.PhyMemMode:", request_set_physical },
	{ "vCont?", request_actions }, { "vCont", request_vcont },
	{ "?", request_why }, { "g", request_registers }, { "G", request_set_registers }, { "p", request_register },
	{ "P", request_set_register }, { "m", request_read }, { "M", request_write }, { "X", request_write_binary },
	{ "Z", request_insert }, { "z", request_remove }, { "c", request_continue }, { "C", request_continue_signal },
	{ "s", request_step }, { "S", request_step_signal }, { "H", request_thread }, { "T", request_alive },
	{ "D", request_detach }, { "k", request_kill },
};

static void request_handle(struct gdb_session *g)
{
	struct args a = { g->in.body, g->in.body + g->in.len };

	for (unsigned i = 0; i < sizeof requests / sizeof *requests; i++) {
		if (take_word(&a, requests[i].name)) {
			requests[i].fn(g, &a);
			return;
		}
	}
	answer(g, "");
}

/* --- the conversation --- */

/* While the target runs GDB sends nothing but Ctrl-C, and its last word. */
static void token_handle(struct gdb_session *g, enum gdb_token t)
{
	switch (t) {
	case GDB_NOTHING: case GDB_ACK: case GDB_NAK: break;	/* a stream socket damages nothing */
	case GDB_INTERRUPT:
		if (g->running)
			g->target->stop(g->opaque);
		break;
	case GDB_DAMAGED:
		if (!g->no_ack)
			gdb_out_raw(&g->out, '-');
		break;
	case GDB_PACKET:
		if (!g->no_ack)
			gdb_out_raw(&g->out, '+');
		if (!g->running)
			request_handle(g);
		else if (g->in.len == 1 && g->in.body[0] == 'k')
			request_kill(g, NULL);
		break;
	}
}

void gdb_session_take(struct gdb_session *g, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i++)
		token_handle(g, gdb_parse(&g->in, bytes[i]));
}

void gdb_session_stopped(struct gdb_session *g, const struct board_stop *s)
{
	g->running = false;
	g->stop = *s;
	g->control = s->cpu;
	g->cpu_known = false;
	g->general = s->cpu;
	answer_stop(g);
}

void gdb_session_begin(struct gdb_session *g)
{
	memset(&g->in, 0, offsetof(struct gdb_parser, body));
	memset(&g->out, 0, offsetof(struct gdb_out, bytes));
	g->no_ack = g->physical = g->swbreak = g->hwbreak = g->running = g->cpu_known = false;
	g->stop = (struct board_stop){ .why = BOARD_ASKED };
	g->general = g->control = 0;
	points_clear(g);
}

void gdb_session_end(struct gdb_session *g)
{
	points_clear(g);
	resume_all(g);
}

void gdb_session_exited(struct gdb_session *g, bool crashed, unsigned code)
{
	gdb_out_begin(&g->out);
	gdb_out_text(&g->out, "%c%02x", crashed ? 'X' : 'W', crashed ? SIGNAL_SEGV : code);
	gdb_out_end(&g->out);
}

void gdb_session_rebuilt(struct gdb_session *g)
{
	g->cpu_known = false;
	points_apply(g);
}

bool gdb_session_running(const struct gdb_session *g) { return g->running; }
struct gdb_out *gdb_session_out(struct gdb_session *g) { return &g->out; }

struct gdb_session *gdb_session_new(const struct gdb_target *t, void *opaque)
{
	struct gdb_session *g = aligned_alloc(64, (sizeof *g + 63) & ~63ul);

	if (!g)
		return NULL;
	memset(g, 0, sizeof *g);
	g->target = t;
	g->opaque = opaque;
	g->xml = gdb_reg_xml();
	if (!g->xml) {
		free(g);
		return NULL;
	}
	return g;
}

void gdb_session_free(struct gdb_session *g)
{
	if (!g)
		return;
	free(g->xml);
	free(g);
}
