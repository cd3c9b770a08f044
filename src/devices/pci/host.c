/*
 * The 82G33 host bridge, function 00:00.0 (Intel 3 Series data sheet 316966, chapter 5), and the two ways
 * to configuration space: ports CF8/CFC and the ECAM window that PCIEXBAR places.
 *
 *	PCIEXBAR 60h: | 38:28 base | 27:26 base or zero | ... | 2:1 length: 256, 128, 64 MiB | 0 enable |
 *	PAM0-6   90h: stored only; the RAM below 1 MiB is always readable and writable
 */
#include "base/error.h"
#include "devices/pci/dev.h"

enum { HOST_PCIEXBAR = 0x60, HOST_PAM0 = 0x90, HOST_SMRAM = 0x9d, HOST_ESMRAMC = 0x9e, HOST_TOLUD = 0xb0 };

static struct pci_dev *function_at(struct pci_bus *b, unsigned bdf)
{
	if (bdf >> 8 || (bdf & 7))	/* bus 0, function 0 of each slot */
		return NULL;
	return b->dev[bdf >> 3] && !b->dev[bdf >> 3]->hidden ? b->dev[bdf >> 3] : NULL;
}

/* --- ECAM: offset = bus 27:20, device 19:15, function 14:12, register 11:0 --- */

static uint64_t ecam_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pci_bus *b = opaque;
	struct pci_dev *d;
	uint64_t v;

	pthread_mutex_lock(&b->lock);
	d = function_at(b, (unsigned)(offset >> 12));
	v = d ? config_read(d, offset & 0xfff, size) : ~0ull;
	pthread_mutex_unlock(&b->lock);
	return v;
}

static void ecam_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_bus *b = opaque;
	struct pci_dev *d;

	pthread_mutex_lock(&b->lock);
	d = function_at(b, (unsigned)(offset >> 12));
	if (d)
		config_write(d, offset & 0xfff, size, (uint32_t)value);
	pthread_mutex_unlock(&b->lock);
}

static const struct io_ops ecam_ops = { ecam_read, ecam_write, 1, 4 };

/* --- ports: CF8 address (dword only), CF9 reset control (byte), CFC-CFF data --- */

static struct pci_dev *selected(struct pci_bus *b)
{
	if (!(b->config_address >> 31))
		return NULL;
	return function_at(b, b->config_address >> 8 & 0xffff);
}

static uint64_t ports_read(void *opaque, uint64_t offset, unsigned size)
{
	struct pci_bus *b = opaque;
	uint64_t v = ~0ull;

	pthread_mutex_lock(&b->lock);
	if (offset >= 4) {
		struct pci_dev *d = selected(b);

		if (d)
			v = config_read(d, (b->config_address & 0xfc) + (offset & 3), size);
	} else if (offset == 0 && size == 4) {
		v = b->config_address;
	} else if (offset == 1 && size == 1) {
		v = b->reset_control;
	}
	pthread_mutex_unlock(&b->lock);
	return v;
}

/* ICH9 13.7.5: bit 2 rising resets; bit 1 chooses a hard reset, bit 3 a full power cycle. */
static bool reset_control_write(struct pci_bus *b, uint8_t value)
{
	bool rising = (value & 4) && !(b->reset_control & 4);

	b->reset_control = value & 0x0e;
	return rising;
}

static void ports_write(void *opaque, uint64_t offset, unsigned size, uint64_t value)
{
	struct pci_bus *b = opaque;
	bool reset = false;

	pthread_mutex_lock(&b->lock);
	if (offset >= 4) {
		struct pci_dev *d = selected(b);

		if (d)
			config_write(d, (b->config_address & 0xfc) + (offset & 3), size, (uint32_t)value);
	} else if (offset == 0 && size == 4) {
		b->config_address = (uint32_t)value & 0x80fffffc;
	} else if (offset == 1 && size == 1) {
		reset = reset_control_write(b, (uint8_t)value);
	}
	pthread_mutex_unlock(&b->lock);
	if (reset && b->on_reset_request)
		b->on_reset_request(b->reset_opaque, value & 2);
}

static const struct io_ops ports_ops = { ports_read, ports_write, 1, 4 };

static void ecam_follow(void *opaque, unsigned offset, unsigned len)
{
	struct pci_bus *b = opaque;
	uint64_t reg, base;

	if (offset >= HOST_PCIEXBAR + 8 || offset + len <= HOST_PCIEXBAR)
		return;
	reg = cfg_get32(b->host, HOST_PCIEXBAR) | (uint64_t)cfg_get32(b->host, HOST_PCIEXBAR + 4) << 32;
	/* The window is as large as 256 MiB whatever its length says: bus 0 is in the first MiB. */
	base = reg & 0x7ff0000000ull;
	region_enable(b->map, b->ecam, false);
	if ((reg & 1) && base) {
		region_move(b->map, b->ecam, base);
		region_enable(b->map, b->ecam, true);
	}
}

int host_bridge_add(struct pci_bus *b)
{
	const struct pci_ids ids = { .vendor = 0x8086, .device = 0x29c0, .subvendor = 0x1af4,
				     .subdevice = 0x1100, .class_code = 0x060000, .revision = 2 };
	uint8_t *wmask;

	b->host = pci_dev_add(b, 0, &ids, b);
	if (!b->host)
		return -1;
	wmask = pci_dev_wmask(b->host);
	cfg_put32(wmask, HOST_PCIEXBAR, 0xf0000007u);
	cfg_put32(wmask, HOST_PCIEXBAR + 4, 0x7f);
	wmask[HOST_PAM0] = 0x30;
	for (unsigned i = 1; i < 7; i++)
		wmask[HOST_PAM0 + i] = 0x33;
	wmask[HOST_SMRAM] = 0x58;
	wmask[HOST_ESMRAMC] = 0x87;
	cfg_put16(wmask, HOST_TOLUD, 0xfff0);
	b->host->config[HOST_SMRAM] = 0x02;
	pci_dev_on_config_write(b->host, ecam_follow);

	b->ecam = map_add_mmio(b->map, PCI_ECAM_GPA, PCI_ECAM_SIZE, &ecam_ops, b, "ecam");
	b->ports = map_add_pio(b->map, 0xcf8, 8, &ports_ops, b, "pci-ports");
	if (!b->ecam || !b->ports)
		return -1;
	region_enable(b->map, b->ecam, false);
	return 0;
}

void host_bridge_assign(struct pci_bus *b)
{
	config_write(b->host, HOST_PCIEXBAR + 4, 4, 0);
	config_write(b->host, HOST_PCIEXBAR, 4, (uint32_t)PCI_ECAM_GPA | 1);
}
