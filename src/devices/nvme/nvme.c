/*
 * Registers, queues and life of a controller (NVMe 1.4, chapters 3, 4 and 7).
 *
 *	BAR 0  00h CAP   08h VS   0Ch INTMS  10h INTMC  14h CC  1Ch CSTS  24h AQA  28h ASQ  30h ACQ
 *	       1000h + 8 * queue: tail of its submission queue; + 4: head of its completion queue
 *	BAR 4  MSI-X, a vector for each completion queue
 *
 *	CC.EN = 1 ─▶ enable: admin queues start ─▶ CSTS.RDY = 1
 *	CC.EN = 0 ─▶ disable: queues stop; when nothing is under way ─▶ CSTS.RDY = 0
 *	CC.SHN    ─▶ flush ─▶ CSTS.SHST = 2
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include "block/block.h"
#include "devices/iov.h"
#include "devices/nvme/private.h"
#include "host/loop.h"
#include "memory/map.h"

enum { REG_CAP = 0x00, REG_VS = 0x08, REG_INTMS = 0x0c, REG_INTMC = 0x10, REG_CC = 0x14, REG_CSTS = 0x1c, REG_AQA = 0x24,
       REG_ASQ = 0x28, REG_ACQ = 0x30, REG_END = 0x40, REG_DOORBELLS = 0x1000, BAR_LEN = 0x4000 };
enum { CC_EN = 1, CC_CSS = 7 << 4, CC_MPS = 15 << 7, CC_AMS = 7 << 11, CC_SHN = 3 << 14 };
enum { CSTS_RDY = 1, CSTS_CFS = 2, CSTS_SHST = 3 << 2, CSTS_SHST_BUSY = 1 << 2, CSTS_SHST_DONE = 2 << 2 };

/* Contiguous queues, 10 s to become ready, the NVM command set, pages of 4 KiB. */
#define CAP ((ENTRIES_MAX - 1) | 1ull << 16 | 20ull << 24 | 1ull << 37)
#define VERSION 0x10400u
#define BATCH 64u

/* --- from vCPU to loop --- */

static void wake(struct nvme *n)
{
	uint64_t one = 1;

	/* A full barrier: who finds the flag set knows that the loop will clear it and then look. */
	if (!atomic_exchange(&n->kicked, true) && write(n->eventfd, &one, sizeof(one)) < 0)
		ASSERT(errno == EAGAIN);
}

void queue_ring(struct nvme *n, unsigned queue)
{
	atomic_fetch_or(&n->rung[queue / 64], 1ull << queue % 64);
	wake(n);
}

static void doorbell_write(struct nvme *n, uint64_t offset, uint32_t value)
{
	unsigned queue = (unsigned)(offset / 8);

	if (queue >= QUEUES || value >= ENTRIES_MAX) {
		atomic_store(&n->bad_doorbell, true);
		wake(n);
		return;
	}
	if (offset & 4)
		atomic_store(&n->cq[queue].head, value);
	else
		atomic_store(&n->sq[queue].tail, value);
	queue_ring(n, queue);
}

/* --- registers --- */

static uint32_t register_get(struct nvme *n, uint64_t offset)
{
	switch (offset) {
	case REG_CAP: return (uint32_t)CAP;
	case REG_CAP + 4: return (uint32_t)(CAP >> 32);
	case REG_VS: return VERSION;
	case REG_INTMS:
	case REG_INTMC: return n->mask;
	case REG_CC: return n->cc;
	case REG_CSTS: return n->csts;
	case REG_AQA: return n->aqa;
	case REG_ASQ: return (uint32_t)n->asq;
	case REG_ASQ + 4: return (uint32_t)(n->asq >> 32);
	case REG_ACQ: return (uint32_t)n->acq;
	case REG_ACQ + 4: return (uint32_t)(n->acq >> 32);
	}
	return 0;
}

static void half_set(uint64_t *reg, bool high, uint32_t v)
{
	*reg = high ? (uint32_t)*reg | (uint64_t)v << 32 : (*reg & ~0xffffffffull) | (v & ~0xfffu);
}

/* The admin queues' registers are read when the controller is enabled. */
static void register_set(struct nvme *n, uint64_t offset, uint32_t v)
{
	switch (offset) {
	case REG_INTMS: n->mask |= v; break;
	case REG_INTMC: n->mask &= ~v; break;
	case REG_CC:
		n->cc = v & NVME_CC_WRITABLE;
		n->changed = true;
		if (!(v & CC_EN) && !(n->csts & CSTS_RDY))	/* the driver has nothing to wait for: at once */
			n->csts &= ~(uint32_t)CSTS_CFS;
		break;
	case REG_AQA: n->aqa = v & 0x0fff0fff; break;
	case REG_ASQ: half_set(&n->asq, false, v); break;
	case REG_ASQ + 4: half_set(&n->asq, true, v); break;
	case REG_ACQ: half_set(&n->acq, false, v); break;
	case REG_ACQ + 4: half_set(&n->acq, true, v); break;
	}
}

static uint64_t bar_read(void *opaque, uint64_t offset, unsigned size)
{
	struct nvme *n = opaque;
	uint64_t v = 0;

	if (offset >= REG_END)
		return 0;
	pthread_mutex_lock(&n->lock);
	for (unsigned i = 0; i < size; i++) {
		uint64_t at = offset + i;

		v |= (uint64_t)(register_get(n, at & ~3ull) >> 8 * (at & 3) & 0xff) << 8 * i;
	}
	pthread_mutex_unlock(&n->lock);
	return v;
}

static void bar_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct nvme *n = opaque;
	bool news;

	if (offset >= REG_DOORBELLS) {
		if (size == 4)
			doorbell_write(n, offset - REG_DOORBELLS, (uint32_t)value);
		return;
	}
	if (size < 4 || offset & 3)
		return;
	pthread_mutex_lock(&n->lock);
	if (!n->withdrawn) {
		register_set(n, offset, (uint32_t)value);
		if (size == 8)
			register_set(n, offset + 4, (uint32_t)(value >> 32));
	}
	news = n->changed || offset == REG_INTMS || offset == REG_INTMC;
	pthread_mutex_unlock(&n->lock);
	if (news)
		wake(n);
}

static const struct io_ops bar_ops = { bar_read, bar_write, 1, 8 };

static void status_change(struct nvme *n, uint32_t clear, uint32_t set)
{
	pthread_mutex_lock(&n->lock);
	n->csts = (n->csts & ~clear) | set;
	pthread_mutex_unlock(&n->lock);
}

/* --- interrupts --- */

static unsigned cq_used(const struct cq *q)
{
	unsigned head = atomic_load(&q->head) % q->size;

	return (q->tail + q->size - head) % q->size;
}

/* Without MSI-X the pin is up while an unmasked queue has entries that were not taken. */
static void pin_update(struct nvme *n)
{
	bool up = false;
	uint32_t mask;

	if (pci_msix_enabled(n->pci)) {
		pci_intx(n->pci, false);
		return;
	}
	pthread_mutex_lock(&n->lock);
	mask = n->mask;
	pthread_mutex_unlock(&n->lock);
	for (unsigned i = 0; i < QUEUES && !up; i++) {
		const struct cq *q = &n->cq[i];

		up = q->live && q->interrupts && q->vector < 32 && !(mask >> q->vector & 1) && cq_used(q);
	}
	pci_intx(n->pci, up);
}

static void signal_all(struct nvme *n)
{
	bool pins = false;

	for (unsigned i = 0; i < QUEUES; i++) {
		struct cq *q = &n->cq[i];

		if (!q->live || !q->news)
			continue;
		q->news = false;
		if (q->interrupts && pci_msix_enabled(n->pci))
			pci_msix_notify(n->pci, q->vector);
		pins = true;
	}
	if (pins)
		pin_update(n);
}

/* --- queues (4.1, 5.3, 5.4) --- */

uint16_t cq_start(struct nvme *n, unsigned id, uint64_t gpa, unsigned size, unsigned vector, bool interrupts)
{
	struct cq *q = &n->cq[id];

	if (size < 2 || size > ENTRIES_MAX)
		return BAD_SIZE;
	if (gpa % PAGE)
		return BAD_PRP;
	*q = (struct cq){ .size = (uint16_t)size, .phase = 1, .vector = (uint16_t)vector, .interrupts = interrupts,
			  .gpa = gpa, .ring = map_ptr(n->map, gpa, 16u * size, true) };
	q->live = q->ring;
	return q->live ? OK : DATA_ERROR;
}

uint16_t sq_start(struct nvme *n, unsigned id, uint64_t gpa, unsigned size, unsigned cq)
{
	struct sq *q = &n->sq[id];

	if (size < 2 || size > ENTRIES_MAX)
		return BAD_SIZE;
	if (gpa % PAGE)
		return BAD_PRP;
	*q = (struct sq){ .size = (uint16_t)size, .cq = (uint16_t)cq, .gpa = gpa,
			  .ring = map_ptr(n->map, gpa, 64u * size, false) };
	q->live = q->ring;
	if (q->live)
		n->cq[cq].queues++;
	return q->live ? OK : DATA_ERROR;
}

/* Figure 121: result, reserved, head and id of the submission queue, cid, status with the phase in bit 0. */
static void entry_put(struct nvme *n, struct cq *q, uint16_t sq, uint16_t sq_head, uint16_t cid, uint16_t status,
		      uint32_t result)
{
	bool never = status && status != INTERNAL;	/* do not retry */
	uint32_t e[4] = { result, 0, sq_head | (uint32_t)sq << 16,
			  cid | (uint32_t)q->phase << 16 | (uint32_t)status << 17 | (uint32_t)never << 31 };
	uint8_t *at = q->ring + 16u * q->tail;

	memcpy(at, e, 12);
	__atomic_store_n((uint32_t *)(at + 12), e[3], __ATOMIC_RELEASE);	/* the phase goes last */
	map_wrote(n->map, q->gpa + 16u * q->tail, 16);
	if (++q->tail == q->size) {
		q->tail = 0;
		q->phase ^= 1;
	}
	q->news = true;
}

static void idle(struct nvme *n);

void request_end(struct request *r, uint16_t status, uint32_t result)
{
	struct nvme *n = r->n;
	struct cq *q = &n->cq[r->cq];
	struct sq *sq = &n->sq[r->sq];

	if (q->live && !n->stopping) {
		q->busy--;
		entry_put(n, q, r->sq, r->sq_head, r->c.cid, status, result);
	}
	if (!--sq->busy && sq->deletion) {
		struct request *deletion = sq->deletion;

		sq->deletion = NULL;
		n->cq[sq->cq].queues--;
		request_end(deletion, OK, 0);
	}
	free(r->list);
	free(r);
	if (!--n->in_flight)
		idle(n);
	else
		wake(n);	/* to signal, once for all that completes now */
}

/* --- data pointers (4.3): the first page may begin anywhere, the others are whole; a list continues in its last entry --- */

static uint16_t segment_add(struct request *r, uint64_t gpa, uint64_t len, bool to_guest)
{
	uint8_t *hva = map_ptr(r->n->map, gpa, len, to_guest);
	struct iovec *last = r->nseg ? &r->iov[r->nseg - 1] : NULL;

	if (!hva)
		return DATA_ERROR;
	if (last && (uint8_t *)last->iov_base + last->iov_len == hva && r->gpa[r->nseg - 1] + last->iov_len == gpa) {
		last->iov_len += len;
		return OK;
	}
	ASSERT(r->nseg < SEGS_MAX);
	r->gpa[r->nseg] = gpa;
	r->iov[r->nseg++] = (struct iovec){ hva, len };
	return OK;
}

static uint16_t prp_list(struct request *r, uint64_t left, bool to_guest)
{
	uint64_t list = r->c.prp2, entry;
	uint16_t status;

	if (list & 7)
		return BAD_PRP;
	while (left) {
		if (!map_read(r->n->map, list, &entry, 8))
			return DATA_ERROR;
		entry = le64toh(entry);
		if (entry % PAGE)
			return BAD_PRP;
		if (list % PAGE == PAGE - 8 && left > PAGE) {
			list = entry;
			continue;
		}
		status = segment_add(r, entry, left < PAGE ? left : PAGE, to_guest);
		if (status)
			return status;
		left -= left < PAGE ? left : PAGE;
		list += 8;
	}
	return OK;
}

uint16_t prp_map(struct request *r, uint64_t len, bool to_guest)
{
	uint64_t first = PAGE - r->c.prp1 % PAGE;
	uint16_t status;

	if (len > (uint64_t)PAGE << MDTS)
		return BAD_FIELD;
	if (r->c.prp1 & 3)
		return BAD_PRP;
	if (!len)
		return OK;
	r->bytes = len;
	first = first < len ? first : len;
	status = segment_add(r, r->c.prp1, first, to_guest);
	if (status || first == len)
		return status;
	len -= first;
	if (len > PAGE)
		return prp_list(r, len, to_guest);
	return r->c.prp2 % PAGE ? BAD_PRP : segment_add(r, r->c.prp2, len, to_guest);
}

void request_answer(struct request *r, const void *bytes, size_t have, uint64_t len)
{
	uint16_t status = prp_map(r, len, true);
	size_t n = have < len ? have : len;

	if (!status) {
		iov_put(r->iov, r->nseg, 0, bytes, n);
		for (unsigned i = 0; i < r->nseg; i++)
			map_wrote(r->n->map, r->gpa[i], r->iov[i].iov_len);
	}
	request_end(r, status, 0);
}

/* --- fetching --- */

static bool room(const struct cq *q)
{
	return cq_used(q) + q->busy + 1 < q->size;
}

static bool command_fetch(struct nvme *n, unsigned id)
{
	struct sq *q = &n->sq[id];
	struct cq *answers = &n->cq[q->cq];
	unsigned tail = atomic_load(&q->tail);	/* acquire: the entry was written before the doorbell */
	struct request *r;

	if (tail >= q->size) {
		atomic_store(&n->bad_doorbell, true);
		return false;
	}
	if (q->head == tail || !answers->live || !room(answers))
		return false;
	r = malloc(sizeof(*r));
	if (!r)
		return false;	/* the next doorbell tries again */
	memset(r, 0, offsetof(struct request, iov));
	memcpy(&r->c, q->ring + 64u * q->head, 64);
	__asm__ volatile("" : "+m"(r->c));	/* the guest may change it under us: all checks are on this copy */
	q->head = (uint16_t)((q->head + 1) % q->size);
	r->n = n;
	r->sq = (uint16_t)id;
	r->cq = q->cq;
	r->sq_head = q->head;
	q->busy++;
	answers->busy++;
	n->in_flight++;
	if (r->c.flags)		/* no fused commands, no SGLs */
		request_end(r, BAD_FIELD, 0);
	else if (id)
		io_command(r);
	else
		admin_command(r);
	return true;
}

/* --- asynchronous events (5.2): type | info << 8 | log page << 16 --- */

void events_tell(struct nvme *n)
{
	static const uint32_t result[EVENT_KINDS] = { [EVENT_DOORBELL] = 0 | 1 << 8 | 1 << 16,
						      [EVENT_NAMESPACE] = 2 | 0 << 8 | 4 << 16 };
	struct cq *q = &n->cq[0];

	for (unsigned i = 0; i < EVENT_KINDS; i++) {
		if (!n->event_due[i] || n->event_told[i] || !n->event_waiting || !q->live || !room(q))
			continue;
		n->event_due[i] = false;
		n->event_told[i] = true;
		entry_put(n, q, 0, n->sq[0].head, n->event_cid[--n->event_waiting], OK, result[i]);
	}
}

/* --- enabling, disabling, shutting down (3.1.5, 7.6) --- */

void queues_drop(struct nvme *n)
{
	for (unsigned i = 0; i < QUEUES; i++)
		n->sq[i].live = n->cq[i].live = false;
	n->event_waiting = 0;
	memset(n->event_due, 0, sizeof(n->event_due));
	memset(n->event_told, 0, sizeof(n->event_told));
}

static void enable(struct nvme *n, uint32_t cc, uint32_t aqa, uint64_t asq, uint64_t acq)
{
	uint16_t bad = cc & (CC_CSS | CC_MPS | CC_AMS);

	features_reset(n);
	if (!bad)
		bad = cq_start(n, 0, acq, (aqa >> 16) + 1, 0, true);
	if (!bad)
		bad = sq_start(n, 0, asq, (aqa & 0xfff) + 1, 0);
	/* A driver that has written CC again meanwhile did so before it saw an answer: it gets none to the old value. */
	pthread_mutex_lock(&n->lock);
	n->enabled = !bad && !n->changed;
	if (!n->changed)
		n->csts = bad ? CSTS_CFS : CSTS_RDY;
	pthread_mutex_unlock(&n->lock);
	if (!n->enabled)
		queues_drop(n);
}

/* Nothing is under way. */
static void idle(struct nvme *n)
{
	if (!n->stopping) {
		wake(n);
		return;
	}
	n->stopping = n->enabled = false;
	status_change(n, CSTS_RDY | CSTS_CFS | CSTS_SHST, 0);
	pci_intx(n->pci, false);
	if (n->gone) {
		void (*gone)(void *opaque) = n->gone;

		n->gone = NULL;
		n->block = NULL;
		gone(n->gone_opaque);
	}
	wake(n);	/* it may have been enabled again meanwhile */
}

static void disable(struct nvme *n)
{
	queues_drop(n);
	n->stopping = true;
	if (!n->in_flight)
		idle(n);
}

static void shut_down(void *opaque, int ret)
{
	struct nvme *n = opaque;

	n->shutting = false;
	status_change(n, CSTS_SHST, CSTS_SHST_DONE);
	if (!--n->in_flight)
		idle(n);
	wake(n);	/* CC may have changed meanwhile */
}

static void control(struct nvme *n)
{
	uint32_t cc, aqa, csts;
	uint64_t asq, acq;
	bool changed;

	pthread_mutex_lock(&n->lock);
	cc = n->cc;
	csts = n->csts;
	aqa = n->aqa;
	asq = n->asq;
	acq = n->acq;
	changed = n->changed;
	n->changed &= n->stopping || n->shutting;	/* whose end looks again */
	pthread_mutex_unlock(&n->lock);
	if (n->stopping || n->shutting || !changed)
		return;
	if (cc & CC_EN && !n->enabled && n->block)
		enable(n, cc, aqa, asq, acq);
	else if (!(cc & CC_EN) && (n->enabled || csts & CSTS_CFS))
		disable(n);
	if (cc & CC_SHN && !(csts & CSTS_SHST) && n->block && !n->stopping) {
		n->shutting = true;
		n->in_flight++;
		status_change(n, CSTS_SHST, CSTS_SHST_BUSY);
		block_flush(n->block, shut_down, n);
	}
}

/* --- the loop --- */

static uint64_t rung_take(struct nvme *n, unsigned word)
{
	uint64_t rung = atomic_exchange(&n->rung[word], 0);

	/* A completion queue that was emptied lets others' commands in: look at all. */
	return rung ? ~0ull : 0;
}

static void queues_run(struct nvme *n)
{
	bool look = rung_take(n, 0) | rung_take(n, 1);

	if (!look || !n->enabled || n->stopping || !pci_dev_bus_master(n->pci))
		return;
	block_plug(n->block);
	for (unsigned i = 0; i < QUEUES; i++) {
		unsigned count = 0;

		while (n->sq[i].live && count < BATCH && command_fetch(n, i))
			count++;
		if (count == BATCH)
			queue_ring(n, i);	/* after the others had their turn */
	}
	block_unplug(n->block);
}

static void on_event(void *opaque, uint32_t events)
{
	struct nvme *n = opaque;
	uint64_t count;

	if (read(n->eventfd, &count, sizeof(count)) < 0 && errno != EAGAIN)
		return;
	atomic_store(&n->kicked, false);	/* partner: wake() */
	control(n);
	queues_run(n);
	if (atomic_exchange(&n->bad_doorbell, false))
		n->event_due[EVENT_DOORBELL] = true;
	events_tell(n);
	signal_all(n);
	pin_update(n);
}

/* --- on the bus --- */

static void registers_reset(struct nvme *n)
{
	pthread_mutex_lock(&n->lock);
	n->cc = n->mask = n->aqa = 0;
	n->asq = n->acq = 0;
	n->changed = true;
	pthread_mutex_unlock(&n->lock);
}

static void bus_reset(void *opaque)
{
	registers_reset(opaque);
	wake(opaque);
}

static bool nvme_idle(void *opaque)
{
	struct nvme *n = opaque;
	bool quiet;

	pthread_mutex_lock(&n->lock);
	quiet = !n->in_flight && !n->changed && !atomic_load(&n->kicked);
	pthread_mutex_unlock(&n->lock);
	return quiet;
}

static void nvme_free(void *opaque)
{
	struct nvme *n = opaque;

	if (n->watch)
		loop_fd_del(n->watch);
	if (n->eventfd >= 0)
		close(n->eventfd);
	pthread_mutex_destroy(&n->lock);
	free(n);
}

static const struct pci_hooks hooks = {
	.reset = bus_reset, .idle = nvme_idle, .save = nvme_save, .load = nvme_load, .free = nvme_free,
};

static void disk_take(struct nvme *n, struct block *b, const struct disk_traits *t)
{
	n->block = b;
	n->shift = (unsigned)__builtin_ctz(disk_logical(t));
	n->physical_bytes = disk_physical(t);
	n->cached_initially = !t->write_through;
	memset(n->serial, 0, sizeof(n->serial));
	if (t->serial)
		memcpy(n->serial, t->serial, strnlen(t->serial, DISK_SERIAL_MAX));
	features_reset(n);
}

/* PCI Express 3.0, 7.8: a root complex integrated end point. */
static void express_cap(struct nvme *n)
{
	uint8_t body[58] = { 0x92 };

	body[3] = 0x80;		/* role-based error reporting */
	pci_dev_cap(n->pci, 0x10, body, sizeof(body), NULL);
}

static int pci_init(struct nvme *n, struct pci_bus *bus)
{
	/* 10f0h to 10ffh of this vendor are for use within an organization. */
	const struct pci_ids ids = { .vendor = 0x1af4, .device = 0x10f0, .subvendor = 0x1af4, .subdevice = 0x1100,
				     .class_code = 0x010802, .revision = 1 };

	n->pci = pci_dev_add(bus, -1, &ids, n);
	if (!n->pci)
		return -ENOSPC;
	pci_dev_bar(n->pci, 0, BAR_LEN, true, false, &bar_ops, "nvme");
	pci_dev_msix(n->pci, QUEUES, 4);
	express_cap(n);
	pci_dev_use_intx(n->pci);
	pci_dev_hooks(n->pci, &hooks);
	return 0;
}

int nvme_new(struct nvme **out, struct pci_bus *bus, struct map *m, struct loop *l, struct block *b,
	     const struct disk_traits *t, struct error *e)
{
	struct nvme *n = calloc(1, sizeof(*n));

	_Static_assert(sizeof(struct nvme_command) == 64, "as in memory");
	if (!n)
		return error_errno(e, ENOMEM, NULL, "create an NVMe controller");
	pthread_mutex_init(&n->lock, NULL);
	n->map = m;
	n->loop = l;
	disk_take(n, b, t);
	n->eventfd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
	n->watch = n->eventfd >= 0 ? loop_fd_add(l, n->eventfd, EPOLLIN, on_event, n) : NULL;
	if (!n->watch || pci_init(n, bus)) {
		const char *why = n->watch ? "all PCI slots are taken" : "too many files are open";

		nvme_free(n);
		return error_set(e, ENOSPC, "use fewer devices", "create an NVMe controller", "%s", why);
	}
	*out = n;
	return 0;
}

unsigned nvme_slot(const struct nvme *n)
{
	return pci_dev_slot(n->pci);
}

void nvme_remove(struct nvme *n, void (*gone)(void *opaque), void *opaque)
{
	pci_dev_show(n->pci, false);
	registers_reset(n);
	pthread_mutex_lock(&n->lock);
	n->withdrawn = true;
	pthread_mutex_unlock(&n->lock);
	n->gone = gone;
	n->gone_opaque = opaque;
	if (!n->stopping)
		disable(n);
}

void nvme_insert(struct nvme *n, struct block *b, const struct disk_traits *t)
{
	disk_take(n, b, t);
	pthread_mutex_lock(&n->lock);
	n->withdrawn = false;
	pthread_mutex_unlock(&n->lock);
	pci_dev_show(n->pci, true);
}

void nvme_resized(struct nvme *n)
{
	if (n->feature[FEATURE_EVENTS] & 0x100)
		n->event_due[EVENT_NAMESPACE] = true;
	wake(n);
}
