/* Says its last words and faults three times over. */
#include "guest.h"

void _start(void)
{
	show();
	say("these are my last words\n");
	fault();
}
