/*
 * One vCPU's translated code: where blocks live, how they are found, how they go.
 *
 *   jump cache   linear RIP -> host code, per translation mode; as valid as a TLB, and flushed with it
 *   hash         RAM page + offset + mode -> struct tblock
 *   page hash    RAM page -> its blocks
 *   cells        RAM page + mode -> hot.page_at[]: where it is mapped; as valid as the jump cache
 *
 * Links inside a guest page go with its blocks. Those from other pages lead to entries that look at the page's cell, and a
 * page's cell never matches again once the page was dropped: so dropping a page needs no unlinking. What remains are jump
 * cache entries: a block's can stand in 16 slots, as its offset in the page is known.
 */
#include <errno.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "engine/soft/translate_private.h"

/* What is near each other in a page stays so: who looks up one of them will soon ask for the next. */
static uint32_t block_hash(uint32_t ram_page, unsigned offset, unsigned mode)
{
	uint64_t key = (uint64_t)ram_page << 8 | mode;
	uint32_t first = (uint32_t)((key * 0x9e3779b97f4a7c15ull) >> (64 - TBLOCK_HASH_BITS));

	return (first + offset / 4) % (1u << TBLOCK_HASH_BITS);
}

static uint32_t page_hash(uint32_t ram_page)
{
	return (ram_page * 0x9e3779b1u) >> (32 - TPAGE_HASH_BITS);
}

struct tblock *cache_find(struct vcpu *v, uint32_t ram_page, unsigned offset, unsigned mode)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t *link = &t->hash[block_hash(ram_page, offset, mode)];

	while (*link) {
		struct tblock *k = &t->blocks[*link];
		if (!k->live) {		/* dropped since: this is where it leaves the chain */
			*link = k->hash_next;
			continue;
		}
		if (k->ram_page == ram_page && k->offset == offset && k->mode == mode)
			return k;
		link = &k->hash_next;
	}
	return NULL;
}

bool cache_room(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);

	return t->used + EMIT_SLACK <= CODE_COLD_START(t->mem.size_bytes) && t->cold_used + EMIT_SLACK <= t->mem.size_bytes &&
	       t->block_count + 2 < t->block_max && t->cell_count + 1 < PAGE_CELLS;
}

/* --- cells --- */

static uint32_t *cell_head(struct trans_vcpu *t, uint32_t ram_page)
{
	return &t->cell_hash[(ram_page * 0x9e3779b1u) >> (32 - CELL_HASH_BITS)];
}

static uint16_t cell_find(struct trans_vcpu *t, uint32_t ram_page, unsigned mode)
{
	uint32_t *head = cell_head(t, ram_page), i;

	for (i = *head; i; i = t->cells[i].next)
		if (t->cells[i].ram_page == ram_page && t->cells[i].mode == mode)
			return (uint16_t)i;
	i = ++t->cell_count;
	t->cells[i] = (struct page_cell){ .ram_page = ram_page, .mode = (uint8_t)mode, .next = *head };
	*head = i;
	return (uint16_t)i;
}

/* Nobody finds the page's cells from now on, and no address matches them. */
static void cells_retire(struct vcpu *v, uint32_t ram_page)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t *link = cell_head(t, ram_page);

	while (*link) {
		struct page_cell *c = &t->cells[*link];
		if (c->ram_page == ram_page) {
			v->hot.page_at[*link] = t->cell_invalid;
			*link = c->next;
		} else {
			link = &c->next;
		}
	}
}

static void cells_clear(struct vcpu *v, unsigned list)
{
	struct trans_vcpu *t = trans_of(v);
	struct cell_list *l = &t->celled[list];

	for (unsigned i = 0; i < l->count; i++) {
		v->hot.page_at[l->e[i]] = t->cell_invalid;
		t->cells[l->e[i]].listed &= (uint8_t)~(1u << list);
	}
	l->count = 0;
}

static void cell_set(struct vcpu *v, const struct tblock *k, uint64_t page, bool global)
{
	struct trans_vcpu *t = trans_of(v);
	struct page_cell *c = &t->cells[k->cell];
	struct cell_list *l = &t->celled[global];

	if (k->cell == CELL_NONE || !k->live)
		return;
	v->hot.page_at[k->cell] = page;
	if (c->listed & 1u << global)
		return;
	c->listed |= (uint8_t)(1u << global);
	l->e[l->count++] = k->cell;
}

void cells_init(struct vcpu *v, uint64_t invalid)
{
	trans_of(v)->cell_invalid = invalid;
	for (unsigned i = 0; i < PAGE_CELLS; i++)
		v->hot.page_at[i] = invalid;
}

/* After jump_cache_flush(). */
static void cells_reset(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);

	memset(t->cell_hash, 0, sizeof t->cell_hash);
	t->cell_count = 0;
}

/* --- blocks --- */

/* Empty: the RIP in it is one that no other slot is looked up for. */
static void slot_clear(struct jump_slot *s, unsigned index)
{
	s->rip = index ? 0 : 1;
	s->host = NULL;
}

struct tblock *cache_add(struct vcpu *v, uint32_t ram_page, uint64_t gpa, unsigned mode, uint32_t version)
{
	unsigned offset = gpa & ~GUEST_PAGE_MASK;
	struct trans_vcpu *t = trans_of(v);
	uint32_t i = ++t->block_count;
	uint32_t *head = &t->hash[block_hash(ram_page, offset, mode)];
	uint32_t *phead = &t->page_hash[page_hash(ram_page)];
	struct tblock *k = &t->blocks[i];

	*k = (struct tblock){ .hash_next = *head, .page_next = *phead, .ram_page = ram_page, .version = version,
			      .gpa_page = gpa & GUEST_PAGE_MASK, .offset = (uint16_t)offset, .mode = (uint8_t)mode, .live = true };
	if (!(mode & TMODE_CROSSING))
		k->cell = cell_find(t, ram_page, mode & ~TMODE_PLAIN);
	*head = i;
	*phead = i;
	return k;
}

void cache_flush(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);

	t->count_flushes++;
	memset(t->hash, 0, sizeof t->hash);
	memset(t->page_hash, 0, sizeof t->page_hash);
	t->block_count = 0;
	t->used = t->used_base;
	t->cold_used = (uint32_t)CODE_COLD_START(t->mem.size_bytes);
	t->generation++;
	jump_cache_flush(v);
	cells_reset(v);
	return_stacks_reset(v);
}

void translate_drop_all(struct vcpu *v)
{
	if (trans_of(v))
		cache_flush(v);
}

static void block_drop(struct vcpu *v, struct tblock *k)
{
	struct jump_slot *slots = v->hot.jump[k->mode % TRANSLATE_MODES];
	const uint8_t *host = cache_rx(trans_of(v), k->far_entry);

	k->live = false;
	if (!slots || !k->far_entry)
		return;
	for (unsigned i = k->offset; i < JUMP_CACHE_ENTRIES; i += GUEST_PAGE_SIZE)
		if (slots[i].host == host)
			slot_clear(&slots[i], i);
}

void cache_drop_page(struct vcpu *v, uint32_t ram_page)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t *link = &t->page_hash[page_hash(ram_page)];

	cells_retire(v, ram_page);
	while (*link) {
		struct tblock *k = &t->blocks[*link];
		if (k->ram_page == ram_page) {
			block_drop(v, k);
			if (k->partner)
				block_drop(v, &t->blocks[k->partner]);
			*link = k->page_next;
		} else {
			link = &k->page_next;
		}
	}
}

/* Takes what other threads, or this one, said of changed code. */
void cache_inbox(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	uint32_t pages[INBOX_PAGES], n;

	if (!atomic_load_explicit(&t->inbox_count, memory_order_acquire))
		return;
	/* The request is set and cleared under the lock: it stands only while the inbox holds something. */
	pthread_mutex_lock(&t->inbox_lock);
	atomic_fetch_and(&v->request, ~(uint32_t)REQUEST_CODE);
	n = t->inbox_count;
	memcpy(pages, t->inbox, sizeof pages);
	t->inbox_count = 0;
	pthread_mutex_unlock(&t->inbox_lock);
	t->count_stale += n;
	if (n > INBOX_PAGES) {
		cache_flush(v);
		return;
	}
	for (uint32_t i = 0; i < n; i++)
		cache_drop_page(v, pages[i]);
	t->generation++;
}

void translate_invalidate(struct soft_engine *en, uint32_t ram_page, uint64_t lines)
{
	for (unsigned i = 0; i < SOFT_MAX_VCPUS; i++) {
		struct vcpu *v = en->vcpu[i];
		struct trans_vcpu *t = v ? trans_of(v) : NULL;
		uint32_t n;

		if (!t)
			continue;
		pthread_mutex_lock(&t->inbox_lock);
		n = t->inbox_count;
		if (n < INBOX_PAGES)
			t->inbox[n] = ram_page;
		if (n <= INBOX_PAGES)
			t->inbox_count = n + 1;
		vcpu_request(v, REQUEST_CODE);
		pthread_mutex_unlock(&t->inbox_lock);
	}
}

/* --- the jump cache --- */

int jump_cache_need(struct vcpu *v, unsigned mode)
{
	struct jump_slot *s;

	if (v->hot.jump[mode])
		return 0;
	s = mmap(NULL, JUMP_CACHE_ENTRIES * sizeof *s, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (s == MAP_FAILED)
		return -ENOMEM;
	slot_clear(&s[0], 0);
	v->hot.jump[mode] = s;
	return 0;
}

static void filled_clear(struct vcpu *v, const struct filled *f)
{
	slot_clear((struct jump_slot *)v->hot.jump[f->mode] + f->slot, f->slot);
}

static uint16_t *fill_head(struct fill_list *l, uint64_t page)
{
	return &l->head[(page >> GUEST_PAGE_SHIFT) % FILL_HEADS];
}

static struct filled *fill_add(struct fill_list *l, uint64_t page)
{
	uint16_t *head = fill_head(l, page);
	struct filled *f = &l->e[++l->count];

	f->page = page;
	f->next = *head;
	*head = (uint16_t)l->count;
	return f;
}

/* Slots that were filled for others since are emptied as well: too often, never too seldom. */
static void list_clear(struct vcpu *v, unsigned list)
{
	struct fill_list *l = &trans_of(v)->filled[list];

	for (unsigned i = 1; i <= l->count; i++) {
		filled_clear(v, &l->e[i]);
		*fill_head(l, l->e[i].page) = 0;
	}
	l->count = 0;
	cells_clear(v, list);
}

void jump_cache_flush(struct vcpu *v)
{
	list_clear(v, 0);
	list_clear(v, 1);
}

/* Drops what was filled for a page; crossing: only instructions that go on in the next one. */
static void page_drop(struct vcpu *v, unsigned list, uint64_t page, bool crossing)
{
	struct trans_vcpu *t = trans_of(v);
	uint16_t *link = fill_head(&t->filled[list], page);

	while (*link) {
		struct filled *f = &t->filled[list].e[*link];
		const struct tblock *k = &t->blocks[f->block];
		if (f->page != page || (crossing && !(k->mode & TMODE_CROSSING))) {
			link = &f->next;
			continue;
		}
		filled_clear(v, f);
		if (v->hot.page_at[k->cell] == page)
			v->hot.page_at[k->cell] = t->cell_invalid;
		*link = f->next;
	}
}

/* After INVLPG. */
static void pages_drop(struct vcpu *v)
{
	const struct interp *ip = interp_of(v);

	for (unsigned i = 0; i < ip->flushed_count; i++)
		for (unsigned list = 0; list < 2; list++) {
			page_drop(v, list, ip->flushed[i], false);
			page_drop(v, list, ip->flushed[i] - GUEST_PAGE_SIZE, true);
		}
}

void jump_cache_sync(struct vcpu *v)
{
	struct trans_vcpu *t = trans_of(v);
	struct interp *ip = interp_of(v);

	if (t->epoch_all != ip->epoch_all || ip->flushed_count > FLUSHED_PAGES) {
		jump_cache_flush(v);
	} else {
		if (t->epoch_local != ip->epoch_local)
			list_clear(v, 0);
		pages_drop(v);
	}
	ip->flushed_count = 0;
	t->epoch_all = ip->epoch_all;
	t->epoch_local = ip->epoch_local;
	t->fetch_epoch = ip->fetch_epoch;
}

void jump_cache_put(struct vcpu *v, unsigned mode, uint64_t rip, const struct tblock *k, bool global)
{
	struct trans_vcpu *t = trans_of(v);
	struct jump_slot *s = jump_cache_slot(v, mode, rip);
	struct filled *f;

	if (t->filled[global].count == FILL_LIST)
		list_clear(v, global);
	f = fill_add(&t->filled[global], rip & GUEST_PAGE_MASK);
	f->mode = (uint8_t)mode;
	f->slot = (uint16_t)(rip & (JUMP_CACHE_ENTRIES - 1));
	f->block = (uint32_t)(k - t->blocks);
	s->host = cache_rx(t, k->far_entry);
	s->rip = rip;
	cell_set(v, k, rip & GUEST_PAGE_MASK, global);
}
