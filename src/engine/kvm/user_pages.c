/*
 * What surrounds user code in KVM.
 *
 *   root: the guest's own, copied | one entry more:  IDT -> one HLT per vector | SYSCALL's target: HLT | TSS, stack
 *
 * So every way out of user code ends in a HLT, which KVM reports. KVM shadows the guest's page tables and learns of
 * changes by write-protecting them, but not of writes from this process: whatever was changed since the last visit,
 * other than by adding entries, makes it drop all it knows. With several vCPUs it is dropped on each entry.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>

#include "cpu/mmu.h"
#include "engine/kvm/user.h"

#define PTE_P 1u
#define PTE_W 2u
#define PTE_U 4u
#define PTE_A 0x20u
#define PTE_D 0x40u
#define PTE_PS 0x80u
#define PTE_NX (1ull << 63)
#define PTE_ADDR 0x000ffffffffff000ull
#define ENTRIES 512

/* --- slot --- */

static int slot(struct user_cpu *u, bool on)
{
	struct kvm_userspace_memory_region r = {
		.slot = KVM_SLOTS + u->v->w.index, .guest_phys_addr = u->gpa, .memory_size = on ? USER_BYTES : 0,
		.userspace_addr = (uint64_t)(uintptr_t)u->page,
	};
	return ioctl(u->v->en->vm_fd, KVM_SET_USER_MEMORY_REGION, &r) < 0 ? -errno : 0;
}

/* Taking any slot away makes KVM drop every shadow page. */
static bool forget_all(struct user_cpu *u)
{
	for (unsigned i = 0; i < u->tables; i++)
		free(u->table[i].copy);
	memset(u->bucket, 0, sizeof(u->bucket));
	u->tables = 0;
	u->stale = false;
	return slot(u, false) == 0 && slot(u, true) == 0;
}

int user_pages_init(struct user_cpu *u)
{
	u->gpa = USER_GPA + u->v->w.index * USER_BYTES;
	u->page = mmap(NULL, USER_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (u->page == MAP_FAILED)
		return -errno;
	u->cr3 = ~0ull;
	return slot(u, true);
}

void user_pages_fini(struct user_cpu *u)
{
	for (unsigned i = 0; i < u->tables; i++)
		free(u->table[i].copy);
	munmap(u->page, USER_BYTES);
}

/* --- our pages --- */

static uint64_t *qwords(struct user_cpu *u, unsigned page)
{
	return (uint64_t *)(void *)(u->page + page * GUEST_PAGE_SIZE);
}

static void build(struct user_cpu *u, unsigned index, uint16_t cs)
{
	uint64_t *idt = qwords(u, USER_IDT);

	u->root_index = index;
	u->cs = cs;
	u->va = (uint64_t)((int64_t)((uint64_t)index << 55) >> 16);
	qwords(u, USER_PDPT)[0] = (u->gpa + USER_PD * GUEST_PAGE_SIZE) | PTE_P | PTE_W;
	qwords(u, USER_PD)[0] = (u->gpa + USER_PT * GUEST_PAGE_SIZE) | PTE_P | PTE_W;
	for (unsigned i = 0; i < USER_PAGES; i++)
		qwords(u, USER_PT)[i] = (u->gpa + i * GUEST_PAGE_SIZE) | PTE_P | PTE_W | PTE_A | PTE_D;
	memset(qwords(u, USER_CODE), 0xf4, GUEST_PAGE_SIZE);
	for (unsigned i = 0; i < 256; i++) {	/* interrupt gates of DPL 0 */
		uint64_t at = u->va + USER_CODE * GUEST_PAGE_SIZE + i * USER_STUB;
		idt[2 * i] = (at & 0xffff) | (uint64_t)cs << 16 | 0x8eull << 40 | (at >> 16 & 0xffff) << 48;
		idt[2 * i + 1] = at >> 32;
	}
	/* RSP0 lies at 4 in the TSS */
	uint64_t top = u->va + USER_BYTES;
	memcpy((char *)qwords(u, USER_TSS) + 4, &top, 8);
}

static unsigned free_entry(const uint64_t *root)
{
	for (unsigned i = ENTRIES - 1; i >= ENTRIES / 2; i--)
		if (!(root[i] & PTE_P))
			return i;
	return 0;
}

/* A code segment of the guest's for CPL 0, 64 bits: SYSCALL's, if its descriptor says so. 0: none. */
static uint16_t kernel_cs(struct user_cpu *u, const struct x86_state *s)
{
	uint16_t sel = (uint16_t)(s->star >> 32) & 0xfff8;
	struct map *m = u->v->en->cfg.map;
	struct mmu_result r;
	uint64_t d;
	uint32_t error;

	if (!sel || sel + 7u > s->gdtr.limit ||
	    !mmu_walk(s, m, s->gdtr.base + sel, MMU_PEEK, &r, &error) || !map_read(m, r.gpa, &d, 8))
		return 0;
	return (d >> 40 & 0xfd) == 0x99 && (d >> 53 & 3) == 1 ? sel : 0;
}

/* --- guest tables --- */

static bool user_entry(uint64_t e) { return (e & (PTE_P | PTE_U)) == (PTE_P | PTE_U); }

static struct user_table *table_find(struct user_cpu *u, uint64_t gpa, unsigned level)
{
	unsigned h = (unsigned)((gpa >> GUEST_PAGE_SHIFT) * 0x9e3779b97f4a7c15ull >> 52) % USER_BUCKETS;
	struct user_table *t;

	for (; u->bucket[h]; h = (h + 1) % USER_BUCKETS)
		if (u->table[u->bucket[h] - 1].gpa == gpa)
			return &u->table[u->bucket[h] - 1];
	if (u->tables == USER_TABLES)
		return NULL;
	t = &u->table[u->tables];
	*t = (struct user_table){ .gpa = gpa, .level = level, .stamp = u->stamp - 1, .copy = calloc(ENTRIES, 8) };
	if (!t->copy)
		return NULL;
	u->bucket[h] = (uint16_t)++u->tables;
	return t;
}

/* Compares a table with what it was, and remembers what it is. false: too many, or none that KVM should see. */
static bool table_check(struct user_cpu *u, uint64_t gpa, unsigned level)
{
	const uint64_t *now = map_ptr(u->v->en->cfg.map, gpa, GUEST_PAGE_SIZE, false);
	struct user_table *t = now ? table_find(u, gpa, level) : NULL;

	if (!t || t->level != level)
		return false;
	if (t->stamp == u->stamp)
		return true;
	t->stamp = u->stamp;
	for (unsigned i = 0; i < ENTRIES; i++) {
		uint64_t old = t->copy[i], e = __atomic_load_n(&now[i], __ATOMIC_RELAXED);
		t->copy[i] = e;
		if (user_entry(old) && (((old ^ e) & ~(uint64_t)(PTE_A | PTE_D)) || (old & ~e)))
			u->stale = true;
		if (user_entry(e) && level > 1 && !(level < 4 && (e & PTE_PS)) && !table_check(u, e & PTE_ADDR, level - 1))
			return false;
	}
	return true;
}

static bool tables_check(struct user_cpu *u)
{
	u->stamp++;
	return table_check(u, u->cr3, u->levels);
}

/* The page of the GDT that the gates' segment comes from is looked at by KVM, too. */
static bool gdt_moved(struct user_cpu *u, const struct x86_state *s)
{
	uint64_t was[2] = { u->gdt_gpa[0], u->gdt_gpa[1] };
	struct mmu_result r;
	uint32_t error;

	for (unsigned i = 0; i < 2; i++) {
		uint64_t gva = s->gdtr.base + (i ? s->gdtr.limit : 0);
		u->gdt_gpa[i] = mmu_walk(s, u->v->en->cfg.map, gva, MMU_PEEK, &r, &error) ? r.gpa : ~0ull;
	}
	return was[0] != u->gdt_gpa[0] || was[1] != u->gdt_gpa[1];
}

/* Half of a fourth-level table, with what its entry in the fifth level forbids. */
static bool half_copy(struct user_cpu *u, uint64_t *root, unsigned at, uint64_t top)
{
	if (!(top & PTE_P)) {
		memset(root + at, 0, GUEST_PAGE_SIZE / 2);
		return true;
	}
	if (!map_read(u->v->en->cfg.map, (top & PTE_ADDR) + at * 8, root + at, GUEST_PAGE_SIZE / 2))
		return false;
	for (unsigned i = at; i < at + ENTRIES / 2; i++)
		root[i] = (root[i] & ~(uint64_t)(PTE_P | PTE_W | PTE_U)) | (root[i] & top & (PTE_P | PTE_W | PTE_U)) |
			  (top & PTE_NX);
	return true;
}

/* Five levels become four: the lowest and the highest 128 TiB. User code that goes elsewhere gets #GP, and comes back. */
static bool halves_copy(struct user_cpu *u, uint64_t *root)
{
	uint64_t low, high;

	return map_read(u->v->en->cfg.map, u->cr3, &low, 8) &&
	       map_read(u->v->en->cfg.map, u->cr3 + 8 * (ENTRIES - 1), &high, 8) &&
	       half_copy(u, root, 0, low) && half_copy(u, root, ENTRIES / 2, high);
}

static bool root_copy(struct user_cpu *u, uint16_t cs)
{
	uint64_t *root = qwords(u, USER_ROOT);
	unsigned index;

	if (u->levels == 5 ? !halves_copy(u, root) : !map_read(u->v->en->cfg.map, u->cr3, root, GUEST_PAGE_SIZE))
		return false;
	index = u->root_index;
	if (!index || (root[index] & PTE_P))
		index = free_entry(root);
	if (!index)
		return false;
	if (index != u->root_index || cs != u->cs) {
		build(u, index, cs);
		u->stale = true;
	}
	root[index] = (u->gpa + USER_PDPT * GUEST_PAGE_SIZE) | PTE_P | PTE_W;
	return true;
}

bool user_pages_enter(struct user_cpu *u, const struct x86_state *s)
{
	bool alone = u->v->en->cfg.vcpus == 1, fits = true;
	uint16_t cs = kernel_cs(u, s);

	u->stale |= gdt_moved(u, s) || (s->cr3 & PTE_ADDR) != u->cr3 || !alone;
	u->cr3 = s->cr3 & PTE_ADDR;
	u->levels = s->cr4 & CR4_LA57 ? 5 : 4;
	if (!cs || !root_copy(u, cs))
		return false;
	if (!u->stale)
		fits = tables_check(u);
	if ((u->stale || !fits) && !forget_all(u))
		return false;
	if (alone && !u->tables)
		fits = tables_check(u);
	u->stale |= !fits;	/* too large to remember: next time anew */
	return true;
}

void user_pages_leave(struct user_cpu *u)
{
	if (!u->stale && u->v->en->cfg.vcpus == 1)
		u->stale = !tables_check(u) || u->stale;
}
