/* Says that it is there, then counts and obeys. */
#include "guest.h"

void _start(void)
{
	show();
	say("counting\n");
	for (;;) {
		BOARD->counter++;
		obey();
	}
}
