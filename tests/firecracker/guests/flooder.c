/* Writes to its console and does nothing else. */
#include "guest.h"

void _start(void)
{
	show();
	flood();
}
