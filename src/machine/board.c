/*
 * The board: which parts it has, and how they are wired.
 *
 *   device -- irq_line --> isa_set: pin n --> 8259 IRQ n   and IO-APIC pin n (IRQ 0: pin 2)
 *   PCI INTx PIRQ A-D ---> IO-APIC pins 16-19, and through the LPC bridge to the 8259s
 *   PCI MSI-X, IO-APIC --> LAPICs --> vCPU threads (run.c)
 *
 * An engine with an irqchip of its own has these controllers and the 8254 in the host's kernel; the board then
 * has none, and lines and messages go to the engine.
 */
#include "machine/board.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <x86intrin.h>

#include "cpu/model.h"
#include "devices/char/i8042.h"
#include "devices/char/uart.h"
#include "devices/firmware/acpi_pm.h"
#include "devices/firmware/acpi_tables.h"
#include "devices/firmware/fw_cfg.h"
#include "devices/irq/ioapic.h"
#include "devices/irq/lapic.h"
#include "devices/irq/pic.h"
#include "devices/pci/lpc.h"
#include "devices/pci/pci.h"
#include "devices/timer/hpet.h"
#include "devices/timer/pit.h"
#include "devices/timer/rtc.h"
#include "devices/virtio/net.h"
#include "devices/virtio/rng.h"
#include "host/loop.h"
#include "machine/board_private.h"
#include "memory/map.h"

enum { IRQ_TIMER = 0, IRQ_KEYBOARD = 1, IRQ_COM1 = 4, IRQ_RTC = 8 };

/* --- interrupts: to the engine's controllers if it has them, else to the board's own --- */

/* A line may move before the engine is there (false, at a device's birth) or after. */
static bool kernel_set(struct board *b, unsigned gsi, bool level)
{
	if (b->irqchip && b->engine)
		b->irqchip->set_gsi(b->engine, gsi, level);
	return b->irqchip;
}
static void isa_set(void *opaque, unsigned irq, bool level)
{
	struct board *b = opaque;
	if (kernel_set(b, irq, level))
		return;
	pic_set(b->pic, irq, level);
	ioapic_set(b->ioapic, irq ? irq : 2, level);
}
static struct irq_line isa_line(struct board *b, unsigned irq)
{
	return (struct irq_line){ isa_set, b, irq };
}
/* The 8254 and the RTC: cut off while the HPET stands in for them. */
static void clock_set(void *opaque, unsigned irq, bool level)
{
	if (!atomic_load(&((struct board *)opaque)->hpet_legacy))
		isa_set(opaque, irq, level);
}
static struct irq_line clock_line(struct board *b, unsigned irq)
{
	return (struct irq_line){ clock_set, b, irq };
}
static void on_hpet_legacy(void *opaque, bool on)
{
	struct board *b = opaque;
	atomic_store(&b->hpet_legacy, on);
	if (b->irqchip && b->engine)
		b->irqchip->set_hpet_legacy(b->engine, on);
	isa_set(b, IRQ_TIMER, false);
	isa_set(b, IRQ_RTC, false);
}
static void lpc_set(void *opaque, unsigned irq, bool level)
{
	struct board *b = opaque;
	if (!kernel_set(b, ENGINE_GSI_8259 + irq, level))
		pic_set(b->pic, irq, level);
}
/* Pins from 16 on: the IO-APIC's alone. */
static void pin_set(void *opaque, unsigned pin, bool level)
{
	struct board *b = opaque;
	if (!kernel_set(b, pin, level))
		ioapic_set(b->ioapic, pin, level);
}
static void msi_send(void *opaque, uint64_t gpa, uint32_t data)
{
	struct board *b = opaque;
	if (!b->irqchip)
		lapic_msi(b->lapics, gpa, data);
	else if (b->engine)
		b->irqchip->send_msi(b->engine, gpa, data);
}
static void pic_output(void *opaque)
{
	lapic_extint(((struct board *)opaque)->lapics);
}

/* --- what the LAPICs ask of the board --- */

static void host_kick(void *opaque, unsigned cpu) { cpu_news(&((struct board *)opaque)->cpu[cpu]); }

static void cpu_event(struct cpu_thread *c, uint32_t event, uint8_t vector)
{
	pthread_mutex_lock(&c->lock);
	if (event == EVENT_INIT)
		c->events = EVENT_INIT;
	else
		c->events |= event;
	c->sipi_vector = vector;
	pthread_mutex_unlock(&c->lock);
	cpu_news(c);
}
static void host_init(void *opaque, unsigned cpu) { cpu_event(&((struct board *)opaque)->cpu[cpu], EVENT_INIT, 0); }
static void host_sipi(void *opaque, unsigned cpu, uint8_t vector)
{
	cpu_event(&((struct board *)opaque)->cpu[cpu], EVENT_SIPI, vector);
}
static void host_nmi(void *opaque, unsigned cpu)
{
	struct cpu_thread *c = &((struct board *)opaque)->cpu[cpu];
	unsigned n = atomic_load(&c->nmis);
	while (n < NMIS_MAX && !atomic_compare_exchange_weak(&c->nmis, &n, n + 1))
		;
	cpu_news(c);
}
static uint64_t host_tsc(void *opaque, unsigned cpu)
{
	struct board *b = opaque;
	return b->config.engine->tsc(b->cpu[cpu].vcpu);
}
static void host_eoi(void *opaque, uint8_t vector) { ioapic_eoi(((struct board *)opaque)->ioapic, vector); }
static bool host_extint(void *opaque) { return pic_pending(((struct board *)opaque)->pic); }
static int host_extint_ack(void *opaque) { return pic_ack(((struct board *)opaque)->pic); }

/* --- ends --- */

static void on_power_off(void *opaque) { board_finish(opaque, BOARD_POWER_OFF); }
static void on_reset(void *opaque) { board_finish(opaque, BOARD_RESET); }
static void on_pci_reset(void *opaque, bool hard)
{
	(void)hard;
	board_finish(opaque, BOARD_RESET);
}

/* The host was suspended, and the guest's timers have not run yet. KVM sees to its own clock. */
static void on_gap(void *opaque)
{
	struct board *b = opaque;
	for (unsigned i = 0; i < b->config.vcpus && b->config.engine == &engine_soft; i++)
		b->config.engine->stood_still(b->cpu[i].vcpu);
}

/* The host TSC's rate, against CLOCK_MONOTONIC over 20 ms. */
static uint64_t tsc_measure(void)
{
	uint64_t t0 = clock_now_ns(), c0 = __rdtsc(), t1, c1;
	do {
		t1 = clock_now_ns();
		c1 = __rdtsc();
	} while (t1 - t0 < 20000000);
	return (uint64_t)((unsigned __int128)(c1 - c0) * 1000000000u / (t1 - t0));
}

static int memory_init(struct board *b, struct error *e)
{
	uint64_t ram = b->config.ram_bytes;
	b->layout.low_ram = ram < BOARD_LOW_RAM_MAX ? ram : BOARD_LOW_RAM_MAX;
	b->layout.high_ram = ram - b->layout.low_ram;
	int ret = map_add_ram(b->map, 0, b->layout.low_ram, e);
	if (!ret && b->layout.high_ram)
		ret = map_add_ram(b->map, 1ull << 32, b->layout.high_ram, e);
	return ret;
}

static void interrupts_init(struct board *b)
{
	const struct lapic_host lapic_host = {
		.opaque = b, .kick = host_kick, .init = host_init, .sipi = host_sipi, .nmi = host_nmi,
		.tsc = host_tsc, .current = current_vcpu, .eoi = host_eoi, .extint_pending = host_extint,
		.extint_ack = host_extint_ack, .tsc_hz = b->tsc_hz,
	};
	b->lapics = lapic_bus_new(b->map, b->loop, b->config.vcpus, &lapic_host);
	b->ioapic = ioapic_new(b->map, b->lapics);
	b->pic = pic_new(b->map, pic_output, b);
	b->pit = pit_new(b->map, b->loop, clock_line(b, IRQ_TIMER));
}

static void chipset_init(struct board *b)
{
	const struct uart_host console = { b->config.console_opaque, b->config.console_write, b->config.console_room };
	const struct acpi_pm_host ends = { b, on_power_off, on_reset };
	if (!b->irqchip)
		interrupts_init(b);
	b->rtc = rtc_new(b->map, b->loop, clock_line(b, IRQ_RTC), b->layout.low_ram, b->layout.high_ram);
	struct hpet_wiring timer = { .legacy = { isa_line(b, IRQ_TIMER), isa_line(b, IRQ_RTC) },
				     .opaque = b, .legacy_mode = on_hpet_legacy };
	for (unsigned i = 20; i < HPET_PINS; i++)	/* the pins above PCI's are its own */
		timer.pin[i] = (struct irq_line){ pin_set, b, i };
	b->hpet = hpet_new(b->map, b->loop, &timer);
	b->uart = uart_new(b->map, 0x3f8, isa_line(b, IRQ_COM1), &console);
	const struct i8042_host keyboard = { b, on_reset };
	b->i8042 = i8042_new(b->map, isa_line(b, IRQ_KEYBOARD), &keyboard);
	b->pm = acpi_pm_new(b->map, isa_line(b, ACPI_SCI_IRQ), &ends);
}

static int fw_cfg_init(struct board *b, struct error *e)
{
	uint16_t cpus = (uint16_t)b->config.vcpus;	/* little-endian, as the host is */
	b->fw_cfg = fw_cfg_new(b->map);
	if (fw_cfg_item(b->fw_cfg, FW_CFG_RAM_SIZE, &b->config.ram_bytes, 8) ||
	    fw_cfg_item(b->fw_cfg, FW_CFG_CPUS, &cpus, 2) || fw_cfg_item(b->fw_cfg, FW_CFG_CPUS_MAX, &cpus, 2))
		return error_set(e, ENOMEM, NULL, "describe the board to firmware", "out of memory");
	return 0;
}

static uint64_t mmio64_gpa(const struct board *b)
{
	uint64_t top = (1ull << 32) + b->layout.high_ram;
	return (top + PCI_MMIO64_SIZE - 1) & ~(PCI_MMIO64_SIZE - 1);
}

static int pci_init(struct board *b, struct error *e)
{
	struct irq_line intx[4];
	const struct msi_sink msi = { msi_send, b };
	struct lpc_wiring lpc = { .opaque = b };
	for (unsigned i = 0; i < 4; i++)
		intx[i] = (struct irq_line){ pin_set, b, 16 + i };
	for (unsigned i = 0; i < 16; i++)
		lpc.isa[i] = (struct irq_line){ lpc_set, b, i };
	b->pci = pci_bus_new(b->map, intx, &msi, mmio64_gpa(b));
	if (!b->pci || !(b->lpc = lpc_new(b->pci, &lpc)))
		return error_set(e, ENOMEM, NULL, "build the PCI bus", "out of memory");
	pci_bus_on_reset_request(b->pci, on_pci_reset, b);
	struct virtio_rng *rng;
	return virtio_rng_new(&rng, b->pci, b->map, b->loop, e);
}

static int cpus_init(struct board *b, struct error *e)
{
	const struct cpu_model_config model = { .name = b->config.cpu_model, .tsc_hz = b->tsc_hz,
						.kvmclock = b->config.engine == &engine_soft };
	int ret = cpu_model_new(&b->model, &model, e);
	if (ret)
		return ret;
	const struct engine_config ec = {
		.map = b->map, .model = b->model, .vcpus = b->config.vcpus, .tsc_hz = b->tsc_hz,
		.interpret_only = b->config.interpret_only,
		.trace = b->config.trace, .trace_opaque = b->config.trace_opaque,
		.code_made = b->config.code_made, .code_opaque = b->config.code_opaque,
	};
	if ((ret = b->config.engine->create(&b->engine, &ec, e)))
		return ret;
	for (unsigned i = 0; i < b->config.vcpus && !ret; i++) {
		struct vcpu_wiring w = cpu_wiring_template;
		w.opaque = &b->cpu[i];
		w.index = i;
		ret = b->config.engine->vcpu_create(&b->cpu[i].vcpu, b->engine, &w, e);
	}
	return ret;
}

int board_new(struct board **out, struct loop *l, const struct board_config *c, struct error *e)
{
	struct board *b = calloc(1, sizeof *b);
	ASSERT(b && c->vcpus >= 1 && c->vcpus <= BOARD_VCPUS_MAX && c->ram_bytes >= BOARD_RAM_MIN);
	b->config = *c;
	b->loop = l;
	b->irqchip = c->engine->irqchip;
	b->tsc_hz = tsc_measure();
	if (c->engine == &engine_soft)	/* it makes its own clock: whole MHz, as CPUID leaf 0x15 can say */
		b->tsc_hz -= b->tsc_hz % 1000000;
	pthread_mutex_init(&b->error_lock, NULL);
	pthread_mutex_init(&b->debug.lock, NULL);
	pthread_cond_init(&b->debug.cond, NULL);
	for (unsigned i = 0; i < BOARD_VCPUS_MAX; i++) {
		b->cpu[i].board = b;
		b->cpu[i].index = i;
		pthread_mutex_init(&b->cpu[i].lock, NULL);
		pthread_cond_init(&b->cpu[i].cond, NULL);
	}
	int ret;
	if (!(b->map = map_new())) {
		ret = error_errno(e, errno, "raise the limits on memory and files", "create the guest's memory map");
		goto fail;
	}
	if ((ret = memory_init(b, e)))
		goto fail;
	chipset_init(b);
	if ((ret = fw_cfg_init(b, e)) || (ret = disks_init(b, e)) || (ret = pci_init(b, e)) || (ret = cpus_init(b, e)))
		goto fail;
	loop_on_gap(l, on_gap, b);
	*out = b;
	return 0;
fail:
	board_free(b);
	return ret;
}

void board_free(struct board *b)
{
	if (!b)
		return;
	loop_on_gap(b->loop, NULL, NULL);
	if (b->pci) {	/* what is under way on a disk ends in its device */
		pci_bus_reset(b->pci);
		while (!pci_bus_idle(b->pci) && !loop_step(b->loop))
			;
		pci_bus_free(b->pci);
	}
	disks_free(b);
	for (unsigned i = 0; i < BOARD_VCPUS_MAX; i++) {
		if (b->cpu[i].vcpu)
			b->config.engine->vcpu_destroy(b->cpu[i].vcpu);
		pthread_mutex_destroy(&b->cpu[i].lock);
		pthread_cond_destroy(&b->cpu[i].cond);
	}
	if (b->engine)
		b->config.engine->destroy(b->engine);
	b->engine = NULL;
	if (b->model)
		cpu_model_free(b->model);
	fw_cfg_free(b->fw_cfg);
	acpi_pm_free(b->pm);
	i8042_free(b->i8042);
	uart_free(b->uart);
	hpet_free(b->hpet);
	rtc_free(b->rtc);
	pit_free(b->pit);
	pic_free(b->pic);
	ioapic_free(b->ioapic);
	lapic_bus_free(b->lapics);
	map_free(b->map);
	pthread_cond_destroy(&b->debug.cond);
	pthread_mutex_destroy(&b->debug.lock);
	pthread_mutex_destroy(&b->error_lock);
	free(b);
}

int board_net_user(struct board *b, const struct net_forward *fwd, int nfwd, struct error *e)
{
	/* locally administered; each card of the board has its own */
	const uint8_t mac[6] = { 0x52, 0x54, 0x00, 0x76, 0x78, (uint8_t)(0x10 + b->nics++) };
	struct virtio_net *nic;
	struct net_backend nat;
	int ret = virtio_net_new(&nic, b->pci, b->map, b->loop, mac, e);
	if (ret || (ret = nat_open(&nat, b->loop, virtio_net_sink(nic), fwd, nfwd, e)))
		return ret;
	virtio_net_attach(nic, &nat);
	return 0;
}

static int acpi_init(struct board *b, struct error *e)
{
	const struct acpi_config c = {
		.vcpus = b->config.vcpus, .ecam_gpa = PCI_ECAM_GPA, .last_bus = 255, .mmio32_gpa = PCI_MMIO32_GPA,
		.mmio32_end = PCI_MMIO32_END, .mmio64_gpa = mmio64_gpa(b), .mmio64_size = PCI_MMIO64_SIZE,
		.pm_base = ACPI_PM_BASE, .sci_irq = ACPI_SCI_IRQ, .hpet = true, .hot_slots = disks_hot_slots(b),
	};
	uint8_t *tables = malloc(BOOT_ACPI_SIZE);
	size_t len = tables ? acpi_tables_build(&c, BOOT_ACPI, tables, BOOT_ACPI_SIZE) : 0;
	int ret = len ? boot_place(b->map, BOOT_ACPI, tables, len, "the ACPI tables", e)
		      : error_set(e, ENOMEM, NULL, "build the ACPI tables", "they do not fit");
	free(tables);
	return ret;
}

int board_boot(struct board *b, const struct boot_files *f, struct error *e)
{
	struct x86_state *s = calloc(1, sizeof *s);
	ASSERT(s);
	pci_bus_assign(b->pci);
	lpc_assign(b->lpc);
	int ret = acpi_init(b, e);
	for (unsigned i = 0; i < b->config.vcpus && !ret; i++) {
		state_reset(s, i == 0);
		if (i)
			s->activity = ACTIVITY_WAIT_SIPI;
		else
			ret = boot_load(b->map, &b->layout, f, s, e);
		b->config.engine->set_state(b->cpu[i].vcpu, s);
	}
	free(s);
	return ret;
}

void board_power_button(struct board *b) { acpi_pm_button(b->pm); }

size_t board_console_input(struct board *b, const uint8_t *bytes, size_t n)
{
	return uart_receive(b->uart, bytes, n);
}
