#include "chipset.h"

static void on_kick(void *o, unsigned cpu) { atomic_fetch_add(&((struct chipset *)o)->kicks[cpu], 1); }
static void on_init(void *o, unsigned cpu) { atomic_fetch_add(&((struct chipset *)o)->inits[cpu], 1); }
static void on_nmi(void *o, unsigned cpu) { atomic_fetch_add(&((struct chipset *)o)->nmis[cpu], 1); }
static void on_sipi(void *o, unsigned cpu, uint8_t v) { atomic_store(&((struct chipset *)o)->sipis[cpu], v); }
static uint64_t on_tsc(void *o, unsigned cpu) { (void)o, (void)cpu; return clock_now_ns(); }
static unsigned on_current(void *o) { return ((struct chipset *)o)->current; }
static void on_eoi(void *o, uint8_t vector)
{
	atomic_fetch_add(&((struct chipset *)o)->eois, 1);
	ioapic_eoi(((struct chipset *)o)->ioapic, vector);
}
static bool on_extint(void *o) { return pic_pending(((struct chipset *)o)->pic); }
static int on_extint_ack(void *o) { return pic_ack(((struct chipset *)o)->pic); }
static void on_output(void *o) { atomic_fetch_add(&((struct chipset *)o)->output, 1); }
static void on_reset(void *o) { atomic_fetch_add(&((struct chipset *)o)->resets, 1); }
static void on_off(void *o) { atomic_fetch_add(&((struct chipset *)o)->offs, 1); }
static void on_legacy(void *o, bool on) { atomic_store(&((struct chipset *)o)->hpet_legacy, on); }
static void on_line(void *o, unsigned pin, bool level)
{
	struct chipset *c = o;
	if (level && !atomic_exchange(&c->level[pin], true))
		atomic_fetch_add(&c->rises[pin], 1);
	if (!level)
		atomic_store(&c->level[pin], false);
}
static void on_transmit(void *o, uint8_t byte)
{
	struct chipset *c = o;
	c->sent[c->sent_count++ % sizeof c->sent] = byte;
}

static void *loop_main(void *o)
{
	loop_run(((struct chipset *)o)->loop);
	return NULL;
}

void chipset_init(struct chipset *c)
{
	struct error e;
	const struct lapic_host host = { c, on_kick, on_init, on_sipi, on_nmi, on_tsc, on_current, on_eoi, on_extint,
					 on_extint_ack, 1000000000 };
	const struct uart_host console = { .opaque = c, .transmit = on_transmit };
	const struct acpi_pm_host ends = { c, on_off, on_reset };
	const struct i8042_host keyboard = { c, on_reset };
	struct hpet_wiring timer = { .legacy = { { on_line, c, 0 }, { on_line, c, 8 } }, .opaque = c,
				     .legacy_mode = on_legacy };
	for (unsigned i = 20; i < HPET_PINS; i++)
		timer.pin[i] = (struct irq_line){ on_line, c, i };
	memset(c, 0, sizeof *c);
	c->map = map_new();
	c->loop = loop_new();
	assert_true(c->map && c->loop);
	assert_int_equal(map_add_ram(c->map, 0, 16 << 20, &e), 0);
	c->lapics = lapic_bus_new(c->map, c->loop, 4, &host);
	c->ioapic = ioapic_new(c->map, c->lapics);
	c->pic = pic_new(c->map, on_output, c);
	c->pit = pit_new(c->map, c->loop, (struct irq_line){ on_line, c, 0 });
	c->rtc = rtc_new(c->map, c->loop, (struct irq_line){ on_line, c, 8 }, 16 << 20, 0);
	c->hpet = hpet_new(c->map, c->loop, &timer);
	c->uart = uart_new(c->map, 0x3f8, (struct irq_line){ on_line, c, 4 }, &console);
	c->i8042 = i8042_new(c->map, (struct irq_line){ on_line, c, 1 }, &keyboard);
	c->pm = acpi_pm_new(c->map, (struct irq_line){ on_line, c, ACPI_SCI_IRQ }, &ends);
	c->fw_cfg = fw_cfg_new(c->map);
	assert_int_equal(pthread_create(&c->thread, NULL, loop_main, c), 0);
}

void chipset_fini(struct chipset *c)
{
	loop_stop(c->loop);
	pthread_join(c->thread, NULL);
	fw_cfg_free(c->fw_cfg);
	acpi_pm_free(c->pm);
	i8042_free(c->i8042);
	uart_free(c->uart);
	hpet_free(c->hpet);
	rtc_free(c->rtc);
	pit_free(c->pit);
	pic_free(c->pic);
	ioapic_free(c->ioapic);
	lapic_bus_free(c->lapics);
	loop_free(c->loop);
	map_free(c->map);
}

int chipset_setup(void **state)
{
	*state = calloc(1, sizeof(struct chipset));
	chipset_init(*state);
	return 0;
}

int chipset_teardown(void **state)
{
	chipset_fini(*state);
	free(*state);
	return 0;
}

bool wait_count(atomic_uint *p, unsigned at_least)
{
	for (int i = 0; i < 5000 && atomic_load(p) < at_least; i++)
		usleep(1000);
	return atomic_load(p) >= at_least;
}
