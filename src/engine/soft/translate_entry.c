/*
 * Between C and translated code: one way in, one way out for each kind of exit.
 *
 * Translated code runs on its return stack, so each way changes stacks.
 *
 * An exit is a CALL to its trampoline with struct exit_data behind it; the trampoline pops that address, stores
 * guest registers and flags, saves guest FP state if it is live, and returns to C as `enter` would.
 */
#include "engine/soft/translate_private.h"

static const uint8_t callee_saved[] = { H_RBX, H_RBP, 12, 13, 14, 15 };

void emit_flags_load(struct emitter *e)
{
	emit_op_mem(e, false, 0x8b, H_RAX, hm_gs(offsetof(struct vcpu, s.rflags)));
	emit_op_reg(e, false, 0x89, H_RAX, H_RCX);	/* mov ecx, eax */
	e3(e, 0xc1, 0xe9, 11);				/* shr ecx, 11 */
	e3(e, 0x83, 0xe1, 1);				/* and ecx, 1: OF */
	e2(e, 0x88, 0xc4);				/* mov ah, al */
	e3(e, 0x80, 0xc1, 0x7f);			/* add cl, 0x7f: overflows if 1 */
	e1(e, 0x9e);					/* sahf */
}

static void emit_enter(struct emitter *e)
{
	uint8_t *skip;

	for (unsigned i = 0; i < sizeof callee_saved; i++)
		emit_push(e, callee_saved[i], false);
	e2(e, 0x48, 0x83), e2(e, 0xec, 8);		/* sub rsp, 8 */
	emit_store(e, H_RSI, hm_gs(OFF_HOT(enter_target)));
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(fpu_want)), 0);
	skip = emit_jcc8(e, CC_E);
	e1(e, 0x0f), e2(e, 0xae, 0x1c), e1(e, 0x24);	/* stmxcsr [rsp] */
	e3(e, 0x8b, 0x04, 0x24);			/* mov eax, [rsp] */
	emit_op_mem(e, false, 0x89, H_RAX, hm_gs(OFF_HOT(host_mxcsr)));
	emit_op_mem(e, false, 0x8b, H_RAX, hm_gs(OFF_HOT(fpu_high)));
	e3(e, 0x83, 0xc8, 7);				/* or eax, 7 */
	e2(e, 0x31, 0xd2);				/* xor edx, edx */
	e3(e, 0x65, 0x48, 0x0f), e2(e, 0xae, 0x2c);	/* xrstor64 gs:[fpu] */
	e1(e, 0x25), e_u32(e, offsetof(struct vcpu, s.fpu));
	emit_store_imm8(e, hm_gs(OFF_HOT(fpu_live)), 1);
	patch8(skip, e->p);
	emit_flags_load(e);
	for (unsigned r = 0; r < 16; r++)
		if (host_reg_of(r) != H_NONE)
			emit_load(e, host_reg_of(r), hm_gs(OFF_GPR(r)));
	emit_load(e, H_T0, hm_gs(OFF_HOT(t0)));
	emit_store(e, H_RSP, hm_gs(OFF_HOT(c_rsp)));
	emit_load(e, H_RSP, hm_gs(OFF_HOT(rsp)));
	emit_op_mem(e, false, 0xff, 4, hm_gs(OFF_HOT(enter_target)));	/* jmp */
}

static void emit_leave(struct emitter *e)
{
	uint8_t *skip, *none;

	for (unsigned r = 0; r < 16; r++)
		if (host_reg_of(r) != H_NONE)
			emit_store(e, host_reg_of(r), hm_gs(OFF_GPR(r)));
	e1(e, 0x9c);						/* pushfq */
	e1(e, 0x58);						/* pop rax */
	emit_store(e, H_RSP, hm_gs(OFF_HOT(rsp)));
	emit_load(e, H_RSP, hm_gs(OFF_HOT(c_rsp)));
	emit_op_mem(e, false, 0x8b, H_RCX, hm_gs(offsetof(struct vcpu, s.rflags)));
	e1(e, 0x25), e_u32(e, FLAGS_ARITH);			/* and eax, arithmetic */
	e2(e, 0x81, 0xe1), e_u32(e, ~FLAGS_ARITH);		/* and ecx, the rest */
	e2(e, 0x09, 0xc8);					/* or eax, ecx */
	emit_op_mem(e, false, 0x89, H_RAX, hm_gs(offsetof(struct vcpu, s.rflags)));
	emit_cmp_imm8(e, true, hm_gs(OFF_HOT(fpu_live)), 0);
	skip = emit_jcc8(e, CC_E);
	emit_mov_imm(e, H_RAX, 7);
	e2(e, 0x31, 0xd2);
	e3(e, 0x65, 0x48, 0x0f), e2(e, 0xae, 0x24);		/* xsave64 gs:[fpu] */
	e1(e, 0x25), e_u32(e, offsetof(struct vcpu, s.fpu));
	emit_op_mem(e, false, 0x8b, H_RAX, hm_gs(OFF_HOT(fpu_high)));
	e2(e, 0x85, 0xc0);					/* test eax, eax */
	none = emit_jcc8(e, CC_E);
	e3(e, 0x65, 0x48, 0x0f), e2(e, 0xae, 0x34);		/* xsaveopt64 gs:[fpu]: who reads these asks XSTATE_BV */
	e1(e, 0x25), e_u32(e, offsetof(struct vcpu, s.fpu));
	patch8(none, e->p);
	e2(e, 0xdb, 0xe3);					/* fninit */
	e3(e, 0x65, 0x0f, 0xae), e2(e, 0x14, 0x25), e_u32(e, OFF_HOT(host_mxcsr));	/* ldmxcsr */
	e3(e, 0xc5, 0xf8, 0x77);				/* vzeroupper */
	patch8(skip, e->p);
	e2(e, 0x48, 0x83), e2(e, 0xc4, 8);			/* add rsp, 8 */
	for (unsigned i = sizeof callee_saved; i-- > 0; )
		emit_push(e, callee_saved[i], true);
	e1(e, 0xc3);
}

/* Asks lookup_quick() with the guest's state where it is; flags are parked, but may be wanted by an exit. What it finds takes the place of the address that the exit's CALL
 * pushed, so that the host's CPU sees CALL and RET in pairs. */
static void emit_quick(struct vcpu *v, struct emitter *e)
{
	static const uint8_t saved[] = { H_RAX /* flags */, H_RCX, H_RDX, H_RSI, H_RDI, H_R8, H_R9, H_R10, H_R11 };
	const unsigned n = sizeof saved;
	uint8_t *none;

	for (unsigned pass = 0; pass < 2; pass++) {
		if (!pass) {
			emit_push(e, H_RAX, false);
			e1(e, 0x9f);				/* lahf */
			e3(e, 0x0f, 0x90, 0xc0);		/* seto al */
			for (unsigned i = 0; i < n; i++)	/* nothing there asks for an aligned stack */
				emit_push(e, saved[i], false);
			emit_op_reg(e, true, 0x89, H_T0, H_RSI);
			emit_mov_imm(e, H_RDI, (uint64_t)(uintptr_t)v);
			emit_mov_imm(e, H_RAX, (uint64_t)(uintptr_t)lookup_quick);
			e2(e, 0xff, 0xd0);			/* call rax */
			emit_op_reg(e, true, 0x85, H_RAX, H_RAX);
			none = emit_jcc(e, CC_E);
			emit_store(e, H_RAX, hm_base(H_RSP, (int32_t)(n + 1) * 8));
		} else {
			patch32(none, e->p);
		}
		for (unsigned i = n; i-- > 0; )
			emit_push(e, saved[i], true);
		e2(e, 0x04, 0x7f);				/* add al, 0x7f */
		e1(e, 0x9e);					/* sahf */
		emit_push(e, H_RAX, true);
		if (!pass)
			e1(e, 0xc3);
	}
}

void trans_emit_trampolines(struct vcpu *v, struct emitter *e)
{
	struct trans_vcpu *t = trans_of(v);
	const uint8_t *leave;

	t->enter = (void (*)(struct vcpu *, const uint8_t *))(uintptr_t)(t->mem.rx + (e->p - t->mem.rw));
	emit_enter(e);
	leave = e->p;
	emit_leave(e);
	for (unsigned i = 1; i < TEXIT_COUNT; i++) {
		t->exit_to[i] = e->p;
		if (i == TEXIT_LOOKUP)
			emit_quick(v, e);
		emit_store(e, H_T0, hm_gs(OFF_HOT(t0)));
		emit_store(e, H_T1, hm_gs(OFF_HOT(t1)));
		emit_push(e, H_T1, true);
		emit_store(e, H_T1, hm_gs(OFF_HOT(exit_ptr)));
		emit_store_imm32(e, hm_gs(OFF_HOT(exit_reason)), i);
		emit_jmp_to(e, leave);
	}
	jump_emit_shared(v, e);
}
