/* What the guests share: the ports, and the board on which the host reads and writes beside them.
 *
 * Firecracker starts an ELF file in 64-bit mode at its entry point: one vCPU, interrupts off, the first GiB of memory
 * mapped onto itself by page tables at 0x9000, a stack below 0x8ff0. Machines without virtualisation hardware may
 * interpret this, one instruction after the other: plain moves only.
 *
 *   0x200000 the guest    0x300000 the board    0x400000 memory to write on
 */
typedef unsigned char u8;
typedef unsigned short u16;
typedef unsigned int u32;
typedef unsigned long u64;

struct board {        /* guests.py says the same */
	u64 magic;    /* where the host finds the guest's memory by */
	u64 counter;  /* goes up for as long as the vCPU runs */
	u32 mailbox;  /* the host writes a word; the guest obeys it and writes 0 */
	u32 argument;
	u32 obeyed;   /* how many words it has obeyed */
};

enum { SAY = 1, TOUCH, FLOOD, HALT, RESET, FAULT, NOWHERE };

#define BOARD ((volatile struct board *)0x300000)
#define MAGIC 0x4554414d45534143ul /* "CASEMATE" */
#define PLENTY 0x400000ul
#define PAGE 4096
#define NOTHING_THERE 0x30000000ul /* mapped, but beyond the memory of every guest here */

static inline void out(u16 port, u8 value) { __asm__ volatile("outb %0, %1" ::"a"(value), "d"(port)); }

static void say(const char *text)
{
	while (*text)
		out(0x3f8, (u8)*text++);
}

static void say_word(u32 word)
{
	for (int shift = 28; shift >= 0; shift -= 4)
		out(0x3f8, (u8)"0123456789abcdef"[word >> shift & 15]);
	out(0x3f8, '\n');
}

static void touch(u32 pages, u32 value)
{
	for (u32 page = 0; page < pages; page++)
		*(volatile u32 *)(PLENTY + page * PAGE) = value + page;
}

static void flood(void)
{
	for (;;)
		say("all work and no play makes a dull guest\n");
}

/* No interrupt table is there: the first fault is the third. */
static void fault(void) { __asm__ volatile("ud2"); }

/* Does what the word on the board says, if there is one; which it was. */
static u32 obey(void)
{
	u32 word = BOARD->mailbox;
	if (!word)
		return 0;
	if (word == SAY)
		say_word(BOARD->argument);
	else if (word == TOUCH)
		touch(BOARD->argument, BOARD->obeyed + 1);
	else if (word == FLOOD)
		flood();
	else if (word == HALT)
		__asm__ volatile("hlt");
	else if (word == RESET)
		out(0x64, 0xfe);
	else if (word == FAULT)
		fault();
	else if (word == NOWHERE)
		((void (*)(void))NOTHING_THERE)();
	BOARD->mailbox = 0;
	BOARD->obeyed++;
	return word;
}

static void show(void)
{
	BOARD->counter = 0;
	BOARD->mailbox = 0;
	BOARD->obeyed = 0;
	BOARD->magic = MAGIC;
}
