/*
 * A table of stubs, direct-mapped by a hash of what the emitted bytes depend on. Each slot has its own place in
 * the executable memory and its own key; the lock is taken only to write.
 *
 * A slot is never rewritten once filled: a colliding instruction takes the next free slot (linear probing). When
 * the table is full, the stub is made in the caller's own spare slot, one per vCPU.
 */
#include "engine/soft/fp_stub.h"

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "cpu/optable.h"
#include "engine/soft/soft.h"
#include "host/execmem.h"

#define SLOTS 16384u
#define SPARE SOFT_MAX_VCPUS

struct fp_stubs {
	struct execmem code;
	pthread_mutex_t lock;		/* writers */
	_Atomic uint64_t key[SLOTS];	/* 0: free; published after the code */
};

int fp_stubs_new(struct fp_stubs **out, struct error *e)
{
	struct fp_stubs *s = calloc(1, sizeof *s);
	if (!s)
		return error_set(e, ENOMEM, NULL, "create the interpreter", "out of memory");
	int ret = execmem_init(&s->code, (size_t)(SLOTS + SPARE) * FP_STUB_BYTES, e);
	if (ret) {
		free(s);
		return ret;
	}
	pthread_mutex_init(&s->lock, NULL);
	*out = s;
	return 0;
}

void fp_stubs_free(struct fp_stubs *s)
{
	if (!s)
		return;
	execmem_fini(&s->code);
	pthread_mutex_destroy(&s->lock);
	free(s);
}

/* Everything the emitted instruction depends on, exactly: two keys are equal only for equal stubs.
 *   row 0-15 | modrm 16-23 | imm 24-31 | rex 32-35 | vvvv 36-40 | L 41-42 | 66 43 | is4 44-47 | R' 48 | aaa 49-51 |
 *   z 52 | b 53 | used 63 */
static uint64_t stub_key(const struct insn *in)
{
	uint8_t is4 = in->nops == 4 && in->ops[3].kind == OPK_XMM ? in->ops[3].reg : 0;
	uint8_t modrm = in->modrm >> 6 == 3 ? in->modrm : in->modrm & 0x38;
	return (uint64_t)(uint16_t)(in->row - x86_optable) | (uint64_t)modrm << 16 | (in->imm & 0xff) << 24 |
	       (uint64_t)(in->rex & 15) << 32 | (uint64_t)(in->vvvv & 31) << 36 | (uint64_t)(in->vex_l & 3) << 41 |
	       (uint64_t)in->p66 << 43 | (uint64_t)(is4 & 15) << 44 | (uint64_t)in->evex_r << 48 |
	       (uint64_t)(in->evex_mask & 7) << 49 | (uint64_t)in->evex_z << 52 | (uint64_t)in->evex_b << 53 | 1ull << 63;
}

static unsigned emit_at(struct fp_stubs *s, unsigned slot, const struct insn *in,
			unsigned (*emit)(uint8_t *out, const struct insn *in))
{
	uint8_t bytes[FP_STUB_BYTES + 32];
	unsigned n = emit(bytes, in);
	ASSERT(n <= FP_STUB_BYTES);
	memcpy(s->code.rw + (size_t)slot * FP_STUB_BYTES, bytes, n);
	return slot;
}

/* Code that was just written through the other mapping may run behind this (SDM vol. 3, 8.1.3, 8.3). IRET, as CPUID and
 * what else serialises leaves virtual machines. The red zone stays. */
static void serialise(void)
{
	uint64_t rsp, t;

	__asm__ volatile("mov %%rsp, %0\n"
			 "lea -128(%%rsp), %%rsp\n"
			 "mov %%ss, %k1\n"
			 "push %1\n"
			 "push %0\n"
			 "pushfq\n"
			 "mov %%cs, %k1\n"
			 "push %1\n"
			 "lea 1f(%%rip), %1\n"
			 "push %1\n"
			 "iretq\n"
			 "1:\n"
			 : "=&r"(rsp), "=&r"(t) : : "memory");
}

static unsigned make(struct vcpu *v, struct fp_stubs *s, uint64_t key, const struct insn *in,
		     unsigned (*emit)(uint8_t *out, const struct insn *in), unsigned first)
{
	unsigned slot = first;
	pthread_mutex_lock(&s->lock);
	for (unsigned probe = 0; probe < 64; probe++, slot = (slot + 1) % SLOTS) {
		uint64_t have = atomic_load(&s->key[slot]);
		if (have && have != key)
			continue;
		if (!have) {
			emit_at(s, slot, in, emit);
			atomic_store_explicit(&s->key[slot], key, memory_order_release);
		}
		pthread_mutex_unlock(&s->lock);
		return slot;
	}
	pthread_mutex_unlock(&s->lock);
	slot = emit_at(s, SLOTS + v->w.index % SPARE, in, emit);
	serialise();
	return slot;
}

const void *fp_stub(struct vcpu *v, const struct insn *in,
		    unsigned (*emit)(uint8_t *out, const struct insn *in))
{
	struct fp_stubs *s = v->en->fp_stubs;
	uint64_t key = stub_key(in);
	unsigned first = (unsigned)((key * 0x9e3779b97f4a7c15ull) >> 50) % SLOTS, slot = first;
	for (unsigned probe = 0; probe < 64; probe++, slot = (slot + 1) % SLOTS) {
		uint64_t have = atomic_load_explicit(&s->key[slot], memory_order_acquire);
		if (have == key)
			return s->code.rx + (size_t)slot * FP_STUB_BYTES;
		if (!have)
			break;
	}
	slot = make(v, s, key, in, emit, first);
	return s->code.rx + (size_t)slot * FP_STUB_BYTES;
}
