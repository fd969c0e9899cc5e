/* Drives virtio-vsock by polling, and listens on port 1024: what comes in goes back. On port 2048 it speaks first.
 *
 * It says "listening" once the device takes connections, and "reset" when the host tells it that all are gone. Words that
 * it obeys beside others': CLOSE ends all connections in good order, DROP without any, CALL makes one to a port of the
 * host's. Who sends and does not read is dropped. With LATE defined (late.c) it touches the device only when it is told
 * to LISTEN.
 *
 * Sources: the virtio specification 1.2, 2.7 (split queues), 4.2.2 (MMIO registers), 5.10 (socket device).
 */
#include "guest.h"

enum { CLOSE = 32, DROP, LISTEN, CALL };
enum { RX, TX, EVENT };
enum { REQUEST = 1, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST };
enum { MAGIC_VALUE = 0, DEVICE_ID = 0x08, FEATURES = 0x20, FEATURES_SELECT = 0x24, QUEUE = 0x30, QUEUE_SIZE = 0x38,
       QUEUE_READY = 0x44, NOTIFY = 0x50, STATUS = 0x70, DESCRIPTORS = 0x80, AVAILABLE = 0x90, USED = 0xa0, CID = 0x100 };
enum { ACKNOWLEDGED = 1, DRIVER = 2, DRIVER_OK = 4, FEATURES_OK = 8 };

#define VIRT 0x74726976
#define VSOCK 19
#define ECHOES 1024
#define SPEAKS 2048
#define CALLS 4096 /* and one more for each word that was obeyed before */
#define HOST 2
#define BOTH_WAYS 3
#define WRITABLE 2
#define SIZE 8
#define BUFFER 4096
#define ROOM (SIZE * BUFFER)
#define CONNECTIONS 8

#define PAGES 0x301000ul
#define QUEUES 0x310000ul  /* three pages for each */
#define BUFFERS 0x320000ul /* SIZE for each queue */

struct header {
	u64 from, to;
	u32 from_port, to_port, length;
	u16 type, op;
	u32 flags, room, taken;
} __attribute__((packed));

struct descriptor { u64 address; u32 length; u16 flags, next; };
struct available { u16 flags, index, ring[SIZE]; };
struct used { u16 flags, index; struct { u32 id, length; } ring[SIZE]; };

struct connection { u32 open, port, own_port, taken, sent, host_room, host_taken; };

/* All that it remembers, where memory is zero at the start. */
struct memory {
	u32 registers, cid;
	u16 seen[3];
	struct connection connections[CONNECTIONS];
};
#define OWN ((struct memory *)0x302000)

static volatile struct descriptor *descriptors(int queue) { return (void *)(QUEUES + queue * 0x3000ul); }
static volatile struct available *available(int queue) { return (void *)(QUEUES + queue * 0x3000ul + 0x1000); }
static volatile struct used *used(int queue) { return (void *)(QUEUES + queue * 0x3000ul + 0x2000); }
static u64 buffer(int queue, u32 id) { return BUFFERS + (queue * SIZE + id) * (u64)BUFFER; }
static u32 get(u32 name) { return *(volatile u32 *)(u64)(OWN->registers + name); }
static void set(u32 name, u32 value) { *(volatile u32 *)(u64)(OWN->registers + name) = value; }
static void fence(void) { __asm__ volatile("" ::: "memory"); }

/* The page tables that we were given end before the devices, which lie in the fourth GiB. */
static void map_device(u32 address)
{
	volatile u64 *table = (void *)PAGES;
	table[address >> 21 & 511] = (address & ~0x1ffffful) | 0x83;
	*(volatile u64 *)0xa018 = PAGES | 3;
}

/* The kernel's command line tells where devices are: virtio_mmio.device=4K@0xd0000000:5 */
static int find_device(void)
{
	for (const char *text = (const char *)0x20000; *text; text++) {
		if (text[0] != '@' || text[1] != '0' || text[2] != 'x')
			continue;
		u32 address = 0;
		for (text += 3; *text && *text != ':'; text++)
			address = address << 4 | (u32)(*text > '9' ? *text - 'a' + 10 : *text - '0');
		map_device(address);
		OWN->registers = address;
		if (get(MAGIC_VALUE) == VIRT && get(DEVICE_ID) == VSOCK)
			return 1;
	}
	return 0;
}

static void offer(int queue, u32 id)
{
	volatile struct available *ring = available(queue);
	ring->ring[ring->index % SIZE] = (u16)id;
	fence();
	ring->index++;
	fence();
	set(NOTIFY, (u32)queue);
}

static void open_queue(int queue)
{
	set(QUEUE, (u32)queue);
	set(QUEUE_SIZE, SIZE);
	set(DESCRIPTORS, (u32)(u64)descriptors(queue));
	set(AVAILABLE, (u32)(u64)available(queue));
	set(USED, (u32)(u64)used(queue));
	set(QUEUE_READY, 1);
	for (u32 id = 0; id < SIZE; id++) {
		descriptors(queue)[id].address = buffer(queue, id);
		descriptors(queue)[id].length = BUFFER;
		descriptors(queue)[id].flags = queue == TX ? 0 : WRITABLE;
	}
}

static void start_device(void)
{
	set(STATUS, ACKNOWLEDGED);
	set(STATUS, ACKNOWLEDGED | DRIVER);
	set(FEATURES_SELECT, 1);
	set(FEATURES, 1); /* version 1 of the standard, and nothing beside it */
	set(STATUS, ACKNOWLEDGED | DRIVER | FEATURES_OK);
	for (int queue = RX; queue <= EVENT; queue++)
		open_queue(queue);
	set(STATUS, ACKNOWLEDGED | DRIVER | FEATURES_OK | DRIVER_OK);
	OWN->cid = get(CID);
	for (u32 id = 0; id < SIZE; id++) {
		offer(RX, id);
		offer(EVENT, id);
	}
}

/* One packet, with *length* bytes of *payload*; returns when the device has taken it. */
static void send(u32 port, u32 own_port, u16 op, u32 flags, u32 taken, const volatile u32 *payload, u32 length)
{
	volatile struct header *packet = (void *)buffer(TX, 0);
	volatile u32 *words = (void *)(buffer(TX, 0) + sizeof *packet);
	packet->from = OWN->cid;
	packet->to = HOST;
	packet->from_port = own_port;
	packet->to_port = port;
	packet->length = length;
	packet->type = 1;
	packet->op = op;
	packet->flags = flags;
	packet->room = ROOM;
	packet->taken = taken;
	for (u32 word = 0; word * 4 < length; word++)
		words[word] = payload[word];
	descriptors(TX)[0].length = (u32)sizeof *packet + length;
	offer(TX, 0);
	while (used(TX)->index != available(TX)->index)
		fence();
}

static void answer(struct connection *c, u16 op, u32 flags)
{
	send(c->port, c->own_port, op, flags, c->taken, 0, 0);
}

static struct connection *find(u32 open, u32 port, u32 own_port)
{
	for (int at = 0; at < CONNECTIONS; at++) {
		struct connection *c = &OWN->connections[at];
		if (c->open == open && (!open || (c->port == port && c->own_port == own_port)))
			return c;
	}
	return 0;
}

static struct connection *open(u32 port, u32 own_port, u16 op)
{
	struct connection *c = find(0, 0, 0);
	if (!c)
		return 0;
	c->open = 1;
	c->port = port;
	c->own_port = own_port;
	c->taken = 0;
	c->sent = 0;
	answer(c, op, 0);
	return c;
}

static void tell(struct connection *c, const volatile u32 *payload, u32 length)
{
	if (c->sent + length - c->host_taken > c->host_room) {
		answer(c, RST, 0);
		c->open = 0;
		return;
	}
	send(c->port, c->own_port, RW, 0, c->taken, payload, length);
	c->sent += length;
}

static const u32 WELCOME[] = { 0x636c6577, 0x0a656d6f }; /* "welcome\n" */

static void receive(const volatile struct header *packet)
{
	u32 port = packet->from_port, own_port = packet->to_port;
	u16 op = packet->op;
	struct connection *c = find(1, port, own_port);
	if (!c && op == REQUEST && (own_port == ECHOES || own_port == SPEAKS))
		c = open(port, own_port, RESPONSE);
	if (!c && op != RST)
		send(port, own_port, RST, 0, 0, 0, 0);
	if (!c)
		return;
	c->host_room = packet->room;
	c->host_taken = packet->taken;
	if (op == REQUEST && own_port == SPEAKS) {
		tell(c, WELCOME, sizeof WELCOME);
	} else if (op == RW) {
		c->taken += packet->length;
		tell(c, (const volatile u32 *)(packet + 1), packet->length);
	} else if (op == CREDIT_REQUEST) {
		answer(c, CREDIT_UPDATE, 0);
	} else if (op == SHUTDOWN) {
		answer(c, RST, 0);
		c->open = 0;
	} else if (op == RST) {
		c->open = 0;
	}
}

static void end_all(u16 op)
{
	for (int at = 0; at < CONNECTIONS; at++) {
		struct connection *c = &OWN->connections[at];
		if (c->open && op)
			answer(c, op, op == SHUTDOWN ? BOTH_WAYS : 0);
		if (op != SHUTDOWN) /* then the host answers with a reset */
			c->open = 0;
	}
}

/* The oldest buffer that the device has filled, or -1. */
static int filled(int queue)
{
	u16 *seen = &OWN->seen[queue];
	if (used(queue)->index == *seen)
		return -1;
	return (int)used(queue)->ring[(*seen)++ % SIZE].id;
}

static void poll(void)
{
	/* It may be stopped between any two lines: looked at second, the event is seen before what came after it. */
	int packet = filled(RX);
	int event = filled(EVENT); /* there is one kind of it */
	if (event >= 0) {
		end_all(0);
		say("reset\n");
		offer(EVENT, (u32)event);
	}
	if (packet >= 0) {
		receive((const volatile struct header *)buffer(RX, (u32)packet));
		offer(RX, (u32)packet);
	}
}

void _start(void)
{
	show();
#ifdef LATE
	say("waiting\n");
	while (obey() != LISTEN)
		BOARD->counter++;
#endif
	if (!find_device()) {
		say("no vsock device\n");
		fault();
	}
	start_device();
	say("listening\n");
	for (;;) {
		BOARD->counter++;
		u32 word = obey();
		if (word == CLOSE)
			end_all(SHUTDOWN);
		else if (word == DROP)
			end_all(RST);
		else if (word == CALL)
			open(BOARD->argument, CALLS + BOARD->obeyed, REQUEST);
		poll();
	}
}
